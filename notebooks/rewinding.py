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
# # Rewinding and fine-tuning
#
# Renda, Frankle & Carbin, ICLR 2020: accuracy against density for weight rewinding, learning-rate rewinding and
# fine-tuning.
#
# **Claims.** After every pruning the network is retrained for equally many steps. *Learning-rate rewinding* (the final
# weights, the schedule of the last epochs) is as good as *weight rewinding* (weights and schedule of that epoch) or
# better, and both beat *fine-tuning* at the last learning rate. Resetting to the initial weights is worse than all
# three on residual networks.
#
# Its runs are one sweep, [experiments/rewinding](../experiments/rewinding), on this machine or on a cluster:
#
# ```
# python -m lottery paper rewinding --scale small
# python -m lottery paper rewinding --scale paper --launcher slurm
# ```

# %% tags=["parameters"]
RUNS: list[str] = []  # your run folders, or patterns; none: those of SCALE, made in ./runs where they are missing
SCALE = "smoke"  # or small, paper: what they cost is below

# %%
from pathlib import Path

import pandas as pd
from IPython.display import Image, display

from lottery import papers
from lottery.analysis.claims import Claim, across, beside, checked, named, near, relative, studies, tickets
from lottery.figures import density
from lottery.record.table import load_runs

pd.set_option("display.float_format", "{:.2f}".format, "display.max_colwidth", None, "display.max_rows", 100)
paper = papers.load("rewinding")
figures = Path("figures/rewinding")
pd.DataFrame({"cost": {name: scale.cost for name, scale in paper.scales.items()}})

# %%
folders = RUNS or papers.ensure("rewinding", SCALE)
frame = named(load_runs(folders, {"finished": True}))
studies(frame)

# %% [markdown]
# What is kept of the weights, and of the schedule, makes the arm.

# %%
ARMS = {
    ("keep", "keep"): "fine-tuning",
    ("keep", "rewind"): "learning-rate rewinding",
    ("rewind", "rewind"): "weight rewinding",
}


def arm(row: pd.Series) -> str:
    words = ARMS[row["config.rewind.weights"], row["config.rewind.schedule"]]
    if row["config.rewind.to"] == "init":
        words = "reset to init" if words == "weight rewinding" else f"{words}, all epochs"
    return f"one-shot, {words}" if row["config.method.one_shot"] else words


frame["label"] = [arm(row) for _, row in frame.iterrows()]
frame["label"].unique().tolist()

# %% [markdown]
# ## Accuracy against density, iterative
#
# Means over seeds, the band from the lowest to the highest. Hollow: their ResNet-20 on CIFAR-10, median of 3 (released
# results). Where these runs are of another network, only differences can be compared: the published points are moved so
# that their dense network lies at ours.

# %%
one_shot = frame["label"].str.startswith("one-shot")
iterative = frame[~one_shot]
theirs = paper.published("iterative_resnet20")
same = set(frame["network"]) == {"ResNet-20 on CIFAR-10"}
published = theirs if same else relative(theirs, iterative)
Image(density.accuracy(iterative, figures / "iterative", published=published)[0])

# %% [markdown]
# ## One-shot
#
# One pruning, then one retraining: part of `--scale paper`. Test accuracy less that of the dense network, in points.

# %%
theirs_at_once = paper.published("one_shot_resnet20")
if one_shot.any():
    display(Image(density.accuracy(frame[one_shot], figures / "one_shot", published=theirs_at_once)[0]))
beside(theirs_at_once, frame[one_shot], of_dense=True)

# %% [markdown]
# ## The iterative ones as a table
#
# Test accuracy less that of the dense network, in points: here (mean, lowest, highest of n seeds) beside the published
# medians.

# %%
beside(theirs, iterative, of_dense=True)

# %% [markdown]
# ## What agrees
#
# A row a claim, computed from these runs, at the published density of 10.7 % and, as it is sparse enough already to
# show, at 32.8 %. Differences are between studies of the same seed and round. `agrees` is about the sign of the mean;
# "open" where no density is within a factor of 1.25 of the published one.


# %%
def less(ours: str, other: str, percent: float) -> pd.DataFrame:
    one, two = (tickets(iterative[iterative["label"] == name]) for name in (ours, other))
    return near(across(one, two), percent / 100)


WEIGHTS, RATE, TUNED, INIT = "weight rewinding", "learning-rate rewinding", "fine-tuning", "reset to init"
checked(
    [
        Claim("weight rewinding beats fine-tuning", less(WEIGHTS, TUNED, 32.8), least=0, published=0.82),
        Claim("and more so when sparser", less(WEIGHTS, TUNED, 10.7), least=0, published=2.33),
        Claim("learning-rate rewinding beats fine-tuning", less(RATE, TUNED, 32.8), least=0, published=0.72),
        Claim("and more so when sparser", less(RATE, TUNED, 10.7), least=0, published=2.64),
        Claim("it is as good as weight rewinding", less(RATE, WEIGHTS, 32.8), least=-0.002, published=-0.10),
        Claim("and better when sparser", less(RATE, WEIGHTS, 10.7), least=0, published=0.31),
        Claim("reset to init is worse than rewinding the weights", less(INIT, WEIGHTS, 10.7), most=0, published=-4.23),
        Claim("and worse than fine-tuning", less(INIT, TUNED, 10.7), most=0, published=-1.90),
    ]
)

# %% [markdown]
# On small networks whose tickets are stable from step 0 on, such as LeNet ([notebooks/lmc](lmc.ipynb)), nothing is lost
# by a reset: the last two claims are of residual networks.
