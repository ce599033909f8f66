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
# # Masks that move while a network trains
#
# SET (Mocanu et al. 2018), RigL (Evci et al. 2020), gradual magnitude pruning (GMP, Zhu & Gupta 2017) and GraNet (Liu
# et al. 2021), beside a static random mask and IMP.
#
# **Claims.** (1) A sparse network whose mask moves is more accurate than one under a static random mask of the same
# layer densities; (2) growth by the gradient (RigL) is as good as growth at random (SET) or better; (3) gradual
# pruning, whose training costs more, is as good as RigL or better. Published for WRN-22-2 on CIFAR-10 at 20 % of the
# weights, ERK, in an independent reproduction of RigL: static 91.2 % (equal layer densities), SET 92.9 %, RigL 93.1
# %, gradual pruning 93.2 %.
#
# **The lottery's question**, which these papers do not ask in this way: is the final mask enough, or is it the way
# there? The mask is trained again from the beginning, as a static one, from the same initial weights (static) and
# from new ones (reinit).
#
# Its runs are one sweep, [experiments/dynamic](../experiments/dynamic), on this machine or on a cluster:
#
# ```
# python -m lottery paper dynamic --scale small
# python -m lottery paper dynamic --scale paper --launcher slurm
# ```

# %% tags=["parameters"]
RUNS: list[str] = []  # your run folders, or patterns; none: those of SCALE, made in ./runs where they are missing
SCALE = "smoke"  # or small, paper: what they cost is below

# %%
from pathlib import Path

import pandas as pd
from IPython.display import Image, display
from matplotlib.figure import Figure

from lottery import papers
from lottery.analysis.claims import Claim, across, checked, named, studies, tickets, within
from lottery.analysis.statistics import summary
from lottery.figures import density, moving
from lottery.record.table import load_runs

pd.set_option("display.float_format", "{:.2f}".format, "display.max_colwidth", None, "display.max_rows", 200)
paper = papers.load("dynamic")
figures = Path("figures/dynamic")
pd.DataFrame({"cost": {name: scale.cost for name, scale in paper.scales.items()}})

# %%
folders = RUNS or papers.ensure("dynamic", SCALE)
frame = named(load_runs(folders, {"finished": True}))
frame["label"] = (
    frame["method"].str.removesuffix(", ERK").replace({"IMP, reset to init": "IMP", "gradual magnitude pruning": "GMP"})
)
length = frame.groupby("network")["steps"].transform("max")  # of a whole training
short = frame["run"].isin(frame.loc[frame["steps"] < length, "run"])  # dense networks of equal training cost
frame.loc[short, "label"] = "dense, shorter"
frame["at"] = (100 * frame["config.method.density"].fillna(frame["density"])).round(1)
whole = frame[~short]
networks = dict(list(whole.groupby("network")))
studies(frame)

# %% [markdown]
# ## Accuracy against density
#
# After equally many steps. Means over seeds; controls are left out here.

# %%
for name, rows in networks.items():
    path = figures / f"accuracy_{name.rpartition(' on ')[2].lower().replace('-', '_')}"
    display(Image(density.accuracy(rows[rows["control"].isna()], path, by="label")[0]))

# %% [markdown]
# ## Is the mask enough, or the way?
#
# Test accuracy (%) of the network (whose mask moved, but for IMP and random masks), of its final mask trained as a
# static one, and of that with new initial weights. Mean (lowest … highest) over seeds.

# %%
arms = tickets(whole[whole["label"].isin(["random", "IMP"])]).assign(arm="network")
moved = whole[whole["probe/explored"].groupby(whole["run"]).transform("count") > 0]
moved = moved[moved["round"] == 1].assign(arm=lambda rows: rows["control"].fillna("network"))
every = pd.concat([arms[arms["at"].isin(moved["at"].unique())], moved])
table = summary(every, ["network", "at", "label", "arm"], "test_accuracy")
table["text"] = [
    f"{100 * m:.2f} ({100 * a:.2f} … {100 * b:.2f})" for m, a, b in table[["mean", "min", "max"]].to_numpy()
]
table.pivot(index=["network", "at", "label"], columns="arm", values="text").fillna("").sort_index(
    ascending=[True, False, True]
)

# %% [markdown]
# ## Exploration
#
# The share of weights that were ever kept, against the step, beside what growth at random gives.

# %%
for name, rows in networks.items():
    lowest = moved.loc[moved["network"] == name, "at"].min()
    explored = rows[rows["label"].isin(["SET", "RigL", "GraNet"]) & (rows["at"] == lowest)]
    path = figures / f"explored_{name.rpartition(' on ')[2].lower().replace('-', '_')}"
    display(Image(moving.moving(explored, path, by="label")[0]))

# %% [markdown]
# ## Training cost
#
# Test accuracy against multiply-adds of the training, relative to the dense training of full length. The dense
# network is trained for fewer steps: its line is what this cost buys without sparsity. The cost of a static random
# mask is that of SET.

# %%
cost = moved[moved["control"].isna()].assign(cost=lambda rows: rows["probe/train_cost"])
static = tickets(whole[whole["label"] == "random"])
same = cost[cost["label"] == "SET"].groupby(["network", "at"])["cost"].mean()
static = static.assign(cost=[same[key] for key in zip(static["network"], static["at"], strict=True)])
dense = frame[(frame["round"] == 0) & frame["control"].isna()].assign(
    cost=lambda rows: rows["steps"] / length, label="dense"
)
dense = dense.drop_duplicates(["network", "seed", "steps"])
spent = pd.concat([cost, static, dense]).groupby(["network", "label", "cost"])["test_accuracy"].mean().reset_index()
figure = Figure(figsize=(9, 3.6), layout="constrained")
for axes, (name, rows) in zip(
    figure.subplots(1, len(networks), squeeze=False)[0], spent.groupby("network"), strict=True
):
    for label, points in rows.groupby("label", sort=False):
        points = points.sort_values("cost")
        axes.plot(
            points["cost"], 100 * points["test_accuracy"], "--" if label == "dense" else "o", label=label, markersize=4
        )
    axes.set(xscale="log", title=name, xlabel="multiply-adds of training / dense", ylabel="test accuracy (%)")
axes.legend()
figure.savefig(figures / "cost.svg")
figure.savefig(figures / "cost.png", dpi=120)
Image(figures / "cost.png")

# %% [markdown]
# ## What agrees
#
# A row a claim, computed from these runs. Differences are taken between studies of the same seed, data set and
# density, or within a study; n counts seeds. `agrees` is about the mean. Published differences are those of WRN-22-2
# above.


# %%
def less(ours: str, theirs: str, at: float, name: str) -> pd.DataFrame:
    """Accuracy of one method less that of another."""
    rows = networks[name][networks[name]["at"] == at]
    one, other = (tickets(rows[rows["label"] == label]) for label in (ours, theirs))
    return across(one, other, on=["seed", "at"])


def less_mask(label: str, at: float, name: str) -> pd.DataFrame:
    """Accuracy of the network whose mask moved less that of its mask alone."""
    rows = networks[name][(networks[name]["label"] == label) & (networks[name]["at"] == at)]
    return tickets(within(rows, against="static"))


def less_dense(label: str, at: float, name: str) -> pd.DataFrame:
    """Accuracy less that of the dense network of the lowest training cost that is as high, to 2 %."""
    rows = cost[(cost["label"] == label) & (cost["at"] == at) & (cost["network"] == name)]
    theirs = dense[(dense["network"] == name) & (dense["cost"] >= 0.98 * rows["cost"].min())]
    return across(rows, theirs[theirs["cost"] == theirs["cost"].min()], on="seed")


PAIRS = [
    ("(1) SET less a static random mask", "SET", "random", "1.7"),
    ("(1) RigL less a static random mask", "RigL", "random", "1.9"),
    ("(2) RigL less SET", "RigL", "SET", "0.2"),
    ("(3) GMP less RigL", "GMP", "RigL", "0.1"),
    ("GraNet less GMP", "GraNet", "GMP", "not given"),
    ("IMP less GMP", "IMP", "GMP", "not given"),
]
claims = []
for name in networks:
    data = name.rpartition(" on ")[2]
    for at in sorted(moved.loc[moved["network"] == name, "at"].unique(), reverse=True):
        found = [(words, less(ours, theirs, at, name), published) for words, ours, theirs, published in PAIRS]
        found += [(f"{each} less its mask alone", less_mask(each, at, name), "not given") for each in ("SET", "GMP")]
        found += [("SET less dense, equal training cost", less_dense("SET", at, name), "not given")]
        claims += [Claim(f"{data}, {at:g} %: {words}", rows, least=0, published=known) for words, rows, known in found]
checked(claims)
