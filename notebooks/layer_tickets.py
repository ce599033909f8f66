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
# # Layer tickets
#
# Jordao et al. ("When Layers Play the Lottery, all Tickets Win at Initialization"): Tables 1 to 4.
#
# **Claims.** Whole residual blocks leave, instead of weights. (1) Tickets with up to five blocks less match the dense
# network to one point, whether blocks are scored after training (Table 1) or at initialisation (Table 2), and which
# criterion scores them matters little. (2) They are better than tickets that lose whole filters (Table 3). (3) They
# save time and memory on ordinary hardware (Table 4).
#
# Its text does not say how long, at which learning rate and in which batches was trained, how weights' scores add up to
# a block's, nor which memory is meant; its "GraSP" is described as SNIP without the absolute value, here *SNIP,
# signed*: both are run. Of the other criteria it gives no formulas: they follow the first author's public code.
#
# Its runs are one sweep, [experiments/layer_tickets](../experiments/layer_tickets), on this machine or on a cluster:
#
# ```
# python -m lottery paper layer_tickets --scale small
# python -m lottery paper layer_tickets --scale paper --launcher slurm
# ```

# %% tags=["parameters"]
RUNS: list[str] = []  # your run folders, or patterns; none: those of SCALE, made in ./runs where they are missing
SCALE = "smoke"  # or small, paper: what they cost is below

# %%
from pathlib import Path

import pandas as pd
from IPython.display import Image, display

from lottery import papers
from lottery.analysis.claims import Claim, across, checked, dense_level, distinct, named, studies, tickets, within
from lottery.analysis.statistics import summary
from lottery.figures import layers
from lottery.record.table import load_runs

pd.set_option("display.float_format", "{:.2f}".format, "display.max_colwidth", None, "display.max_rows", 100)
paper = papers.load("layer_tickets")
figures = Path("figures/layer_tickets")
pd.DataFrame({"cost": {name: scale.cost for name, scale in paper.scales.items()}})

# %% [markdown]
# What leaves, by which criterion, and whether it is scored before or after training.

# %%
NAMES = {
    "snip": "SNIP",
    "snip_signed": "SNIP, signed",
    "grasp": "GraSP",
    "kl": "KL",
    "hrank": "HRank",
    "expect_abs": "expectABS",
    "pls": "PLS",
}
folders = RUNS or papers.ensure("layer_tickets", SCALE)
frame = distinct(named(load_runs(folders, {"finished": True})))
frame["filters"] = frame["config.method._target_"].str.endswith("FilterTickets")
frame["trained"] = frame["config.method.scored"].eq("trained")
targets = frame["config.method.criterion._target_"].where(~frame["filters"], frame["config.criterion._target_"])
frame["criterion"] = targets.str.rpartition(".")[2].replace(NAMES)
ways = frame["trained"].map({True: ", after training", False: ""})
frame["label"] = frame["criterion"] + ways + frame["filters"].map({True: ", filters", False: ""})
frame["removed"] = frame["removed_units"].map(lambda names: len(names) if isinstance(names, list) else 0)
studies(frame)

# %% [markdown]
# ## Accuracy against the number of blocks that leave
#
# Hollow: the published differences from the dense network (ResNet-32), set against the dense network of these runs.

# %%
TABLE_2 = {"SNIP": (0.08, 0.00, -0.50, -0.53, -1.00), "GraSP": (0.40, 0.72, 0.34, 0.41, 0.12)}
SOURCE = "Jordao et al., Table 2, ResNet-32, relative to dense"
blocks = frame[~frame["filters"]]
differences = tickets(within(frame)).assign(points=lambda rows: 100 * rows["difference"])
networks = {
    name: (rows, name.split()[0].lower().replace("-", "")) for name, rows in blocks.groupby("network", sort=False)
}

for rows, stem in networks.values():
    level = dense_level(rows)
    published = [
        {
            "x": p,
            "y": level + points / 100,
            "series": "SNIP, signed" if name == "GraSP" else name,
            "label": f'"{name}", {SOURCE}',
        }
        for name, row in TABLE_2.items()
        for p, points in enumerate(row, 1)
    ]
    display(
        Image(
            layers.layers(
                rows.drop(columns=list(rows.filter(like="probe/cost_"))),
                figures / f"accuracy_{stem}",
                published=published,
            )[0]
        )
    )

# %% [markdown]
# ## Table 1: scored after training, one block less
#
# Test accuracy less that of the dense network, in points; columns: what tickets are rewound to, of their 182 or more
# epochs, and here of the steps in the table above.

# %%
TABLE_1 = {  # rewound to epoch 0, 25, 50, 75
    "HRank": (-0.01, 0.21, 0.10, 0.12),
    "expectABS": (0.33, 0.13, -0.48, -0.62),
    "PLS": (0.06, 0.31, 0.10, 0.10),
    "random": (0.38, 0.15, 0.26, -0.07),
    "KL": (0.74, 0.46, -0.03, -0.17),
}
one_less = differences.query("trained and not filters and removed == 1")
here = summary(one_less, ["network", "criterion", "step_rewind"], "points")
here["rewound"] = (
    here["network"] + ", step " + here["step_rewind"].map("{:,.0f}".format) + " (n = " + here["n"].astype(str) + ")"
)
theirs = pd.DataFrame.from_dict(
    TABLE_1, orient="index", columns=[f"published, epoch {epoch}" for epoch in (0, 25, 50, 75)]
)
theirs.join(here.pivot(index="criterion", columns="rewound", values="mean"))

# %% [markdown]
# ## Table 2: scored at initialisation
#
# The same; columns: how many blocks leave.

# %%
published = pd.DataFrame.from_dict(
    {f"published: {name}": row for name, row in TABLE_2.items()}, orient="index", columns=range(1, 6)
)
of_init = differences.query("not trained and not filters")
table = summary(of_init, ["network", "criterion", "removed"], "points")
table["row"] = table["network"].str.split().str[0] + ": " + table["criterion"]
words = table.apply(lambda row: f"{row['mean']:+.2f} ({row['min']:+.2f} … {row['max']:+.2f})", axis=1)
here = table.assign(words=words).pivot(index="row", columns="removed", values="words")
pd.concat([published.map("{:+.2f}".format), here]).fillna("")

# %% [markdown]
# ## Table 3: blocks or filters
#
# One block less, or about as many multiply-adds less by the filters of lowest score in every block.

# %%
TABLE_3 = {("SNIP", "filters"): -0.79, ("GraSP", "filters"): -0.11, ("SNIP", "layers"): 0.08, ("GraSP", "layers"): 0.40}
pairs = differences.query("not trained and (filters or removed == 1)")
pairs = pairs.assign(what=pairs["filters"].map({True: "filters", False: "layers"}))
here = summary(pairs, ["network", "criterion", "what"], "points").set_index(["criterion", "what"])
here.assign(published=[TABLE_3.get(key) for key in here.index])[
    ["network", "published", "mean", "min", "max", "n"]
].sort_index()

# %% [markdown]
# ## Table 4: what it saves
#
# Shares of the dense network's (%), and the speed-up of a training step: on the processor of these runs, without other
# work beside it if it is to be trusted, while the published ones are of a GPU. Memory is what a training step needs
# here; which one is published is not known.

# %%
TABLE_4 = {  # FLOPs, memory, CO2e saved (%), speed-up
    ("ResNet-32", 1): (6.82, 10.13, 11.11, 1.10),
    ("ResNet-32", 3): (20.47, 25.29, 25.92, 1.35),
    ("ResNet-32", 5): (34.13, 30.11, 33.33, 1.57),  # printed at 4 blocks; its FLOPs are of 5
    ("ResNet-56", 3): (11.25, 15.15, 13.33, 1.16),
    ("ResNet-56", 4): (15.00, 19.42, 20.00, 1.24),
    ("ResNet-56", 5): (18.76, 23.69, 24.44, 1.34),
    ("ResNet-56", 12): (45.00, 45.82, 51.11, 2.03),
}
SAVED = ["multiply-adds saved", "memory saved", "CO2e saved", "speed-up"]
theirs = pd.DataFrame.from_dict(TABLE_4, orient="index", columns=SAVED)
theirs.index = [f"published, {network}, {removed} less" for network, removed in theirs.index]
MEASURED = ["probe/cost_macs_share", "probe/cost_memory_share", "probe/cost_step_speedup"]
timed = tickets(blocks.reindex(columns=pd.Index([*blocks, *MEASURED]).unique()).dropna(subset=MEASURED))
means = timed.groupby(["network", "removed"])[MEASURED].mean()
own = pd.concat([100 - 100 * means[MEASURED[0]], 100 - 100 * means[MEASURED[1]], means[MEASURED[2]]], axis=1)
own.columns, own.index = [*SAVED[:2], SAVED[3]], [f"here, {network}, {removed} less" for network, removed in own.index]
pd.concat([theirs, own])

# %%
for name, rows in blocks[blocks["run"].isin(timed["run"])].groupby("network", sort=False):
    same = [(of, p, row[3]) for (of, p), row in TABLE_4.items() if of == name.split()[0]]
    beside = same or [(of, p, row[3]) for (of, p), row in TABLE_4.items() if of == "ResNet-32"]
    known = [{"x": p, "y": y, "panel": "speedup", "label": f"Jordao et al., Table 4, {of}"} for of, p, y in beside]
    display(Image(layers.layers(rows, figures / f"table4_{networks[name][1]}", published=known)[0]))

# %% [markdown]
# ## What agrees
#
# A row a claim, computed from these runs: differences from the dense network of the same seed, or between tickets of
# the same seed; n counts seeds. "Matches" is one point here, as in the paper. `agrees` is about the mean: differences
# of less than a point are within what seeds differ by, so read the interval.


# %%
def less(label: str, removed: int) -> pd.DataFrame:
    return differences[(differences["label"] == label) & (differences["removed"] == removed)]


def filters_less(name: str) -> pd.DataFrame:
    of_filters = differences[differences["label"] == f"{name}, filters"]
    return across(of_filters, less(name, 1), "difference", "seed")


def faster(removed: int) -> pd.DataFrame:
    return timed[timed["removed"] == removed]


SNIP, SIGNED = ("SNIP", TABLE_2["SNIP"]), ("SNIP, signed", TABLE_2["GraSP"])
at_init = [(name, p, row[p - 1]) for name, row in (SNIP, SIGNED) for p in (1, 3, 5)]
steps = {"value": "probe/cost_step_speedup", "least": 1, "unit": "times"}
checked(
    [
        *(Claim(f"(1) {name} at init, {p} less", less(name, p), least=-0.01, published=x) for name, p, x in at_init),
        Claim("(1) random blocks, 1 less", less("random", 1), least=-0.01, published="+0.38"),
        Claim("(1) KL after training, 1 less", less("KL, after training", 1), least=-0.01, published="-0.17 to +0.74"),
        Claim("(2) SNIP: filters less layers", filters_less("SNIP"), most=0, published=-0.87),
        Claim("(2) GraSP: filters less layers", filters_less("GraSP"), most=0, published=-0.51),
        Claim("(3) speed-up of a training step, 1 less", faster(1), published=1.10, **steps),
        Claim("(3) speed-up of a training step, 3 less", faster(3), published=1.35, **steps),
        Claim("(3) speed-up of a training step, 5 less", faster(5), published=1.57, **steps),
    ]
)
