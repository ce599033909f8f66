# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Linear mode connectivity and the lottery ticket hypothesis
#
# Frankle, Dziugaite, Roy & Carbin, ICML 2020: Figures 2 to 5.
#
# **Claims.** Train two copies of a network from step k of one run in different data orders. If the error on the
# straight line between what they become rises by less than 2 points, the network is *stable* at step k. LeNet on MNIST
# is stable from step 0 on, larger networks only from an early step of training on. Tickets of IMP match the dense
# network exactly when they are stable: rewound to such a step; random masks and reinitialised tickets are neither.
#
# Its runs are one sweep, [experiments/lmc](../experiments/lmc), on this machine or on a cluster:
#
# ```
# python -m lottery paper lmc --scale small
# python -m lottery paper lmc --scale paper --launcher slurm
# ```

# %% tags=["parameters"]
RUNS: list[str] = []  # your run folders, or patterns; none: those of SCALE, made in ./runs where they are missing
SCALE = "smoke"  # or small, paper: what they cost is below

# %%
from pathlib import Path

import pandas as pd
from IPython.display import Image, display

from lottery import papers
from lottery.analysis.claims import Claim, checked, named, studies, within
from lottery.analysis.statistics import summary
from lottery.figures import connectivity, rewinding
from lottery.record.table import load_runs

pd.set_option("display.float_format", "{:.2f}".format, "display.max_colwidth", None, "display.max_rows", 100)
paper = papers.load("lmc")
figures = Path("figures/lmc")
pd.DataFrame({"cost": {name: scale.cost for name, scale in paper.scales.items()}})

# %%
folders = RUNS or papers.ensure("lmc", SCALE)
frame = named(load_runs(folders, {"finished": True}))
networks = dict(list(frame.groupby("network", sort=False)))
studies(frame)

# %% [markdown]
# ## Figures 2 and 4: the error along the line
#
# Between two copies, from each step k: the dense network and its ticket. Means over seeds, in bands from the lowest to
# the highest.

# %%
for name, rows in networks.items():
    stem = f"lines_{name.split()[0].lower()}"
    display(Image(connectivity.lmc(rows, figures / stem)[0]))

# %% [markdown]
# ## Figures 3 and 5: barrier and accuracy against k
#
# The barrier is the highest error on the line less the mean of its ends. Tickets, random masks of their layer counts,
# tickets with new initial weights, and the dense network trained again from the same step.

# %%
for name, rows in networks.items():
    stem = f"rewind_{name.split()[0].lower()}"
    display(Image(rewinding.rewind(rows, figures / stem)[0]))

# %% [markdown]
# The same in numbers: barrier in points of test error and test accuracy (%), means over n seeds.

# %%
BARRIER = "probe/lmc_error_test"
again = frame[(frame["round"] > 0) & frame[BARRIER].notna()]
again = again.assign(what=again["control"].fillna("ticket").where(again["density"] < 1, "dense, again from there"))
keys = ["network", "what", "step_rewind"]
barrier, accuracy = (summary(again, keys, value) for value in (BARRIER, "test_accuracy"))
points = pd.DataFrame({"step": barrier["step_rewind"], "barrier": 100 * barrier["mean"], "n": barrier["n"]})
points = pd.concat([barrier[["network", "what"]], points.assign(accuracy=100 * accuracy["mean"])], axis=1)
points.pivot(index=["network", "what"], columns="step", values=["barrier", "accuracy"])

# %% [markdown]
# ## From which step on?
#
# The first k that was tried at which the mean barrier is below 2 points, *stable*; and the first at which the mean
# accuracy is less than 0.2 points below that of the dense network, *matching*. Published: the first stable step of the
# dense network, and the first step at which the ticket is both.

# %%
PUBLISHED = {
    ("LeNet-300-100 on MNIST", "ticket"): 0,
    ("LeNet-300-100 on MNIST", "dense, again from there"): 0,
    ("ResNet-20 on CIFAR-10", "ticket"): 500,
    ("ResNet-20 on CIFAR-10", "dense, again from there"): 2000,
}
dense = frame[(frame["round"] == 0) & frame["control"].isna()].groupby("network")["test_accuracy"].mean()


def onset(rows: pd.DataFrame) -> pd.Series:
    stable = rows["barrier"] < 2
    matching = rows["accuracy"] > 100 * dense[rows["network"].iloc[0]] - 0.2
    first = {name: rows["step"][holds].min() for name, holds in {"stable": stable, "matching": matching}.items()}
    return pd.Series(first | {"both": rows["step"][stable & matching].min(), "n": rows["n"].min()})


onsets = pd.DataFrame({key: onset(rows) for key, rows in points.groupby(["network", "what"], sort=False)}).T
onsets.assign(published=[PUBLISHED.get(key) for key in onsets.index]).astype("Int64").rename_axis(["network", "what"])

# %% [markdown]
# ## What agrees
#
# A row a claim, computed from the LeNet runs, or whatever there is instead; differences are taken within each study.
# `agrees` is about the mean.

# %%
lenet = [rows for name, rows in networks.items() if name.startswith("LeNet")]
rows = (lenet or list(networks.values()))[0]
first = rows[(rows["round"] > 0) & (rows["step_rewind"] == 0) & rows[BARRIER].notna()]
of_dense, sparse = first[first["density"] == 1], first[first["density"] < 1]
ticket = sparse[sparse["control"].isna()]
to_dense = within(rows)
to_dense = to_dense[to_dense.index.isin(ticket.index)]
checked(
    [
        Claim("the dense network is stable at step 0: barrier", of_dense, BARRIER, most=0.02, published="< 1"),
        Claim("its ticket is stable at step 0: barrier", ticket, BARRIER, most=0.02, published="< 2"),
        Claim("and as accurate as the dense network", to_dense, least=-0.002, published="> -0.2"),
        Claim("it is more accurate than random masks", within(sparse, against="random"), least=0, published="> 0"),
        Claim("and than with new initial weights", within(sparse, against="reinit"), least=0, published="> 0"),
        Claim(
            "its barrier is lower than random masks'", within(sparse, BARRIER, "random"), most=0, published="not given"
        ),
        Claim("and than with new initial weights", within(sparse, BARRIER, "reinit"), most=0, published="not given"),
    ]
)
