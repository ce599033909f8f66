# What `up` and `down` share: where the cluster lies, and which of its daemons run.
# shellcheck shell=bash

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
home=${SLURM_HOME:-${TMPDIR:-/tmp}/lottery-slurm-$(id -un)}
conf=$home/slurm.conf
nodes=(node1 node2)
mark="ClusterName=lottery-test" # how everyone tells this cluster from a real one
PATH=$PATH:/usr/sbin:/sbin      # where the daemons are, also for those whose PATH has no sbin

say() { echo "test cluster: $*" >&2; }
die() { say "$@" && exit 1; }

pid_of() { cat "$home/run/$1.pid" 2>/dev/null; } # munged, slurmctld, slurmd-node1 ...

# Whether a daemon runs, by its recorded pid. The pid may be another program's by now, and `kill -0` also answers for
# a zombie, which a container's pid 1 may leave lying about.
runs() {
    local pid name state
    pid=$(pid_of "$1") && [ -n "$pid" ] || return 1
    name=$(cat "/proc/$pid/comm" 2>/dev/null) && [ "$name" = "${1%%-*}" ] || return 1
    state=$(sed 's/.*) //; s/ .*//' "/proc/$pid/stat" 2>/dev/null) && [ "$state" != Z ]
}

# within SECONDS COMMAND: until it succeeds
within() {
    local until=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$until" ] || return 1
        sleep 0.1
    done
}
