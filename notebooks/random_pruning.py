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
# # Random pruning: widths, depths, layer densities
#
# Liu, Chen, Chen, Shen, Mocanu, Wang & Pechenizkiy, ICLR 2022 ("The Unreasonable Effectiveness of Random Pruning").
#
# **Claims.** A mask drawn at random before training, trained from scratch: (1) small networks trail the dense one, and
# the gap closes with width and depth, at ever higher sparsity; (2) layer densities that are chosen beforehand (ERK, or
# the ratios of SNIP) matter; (3) random networks are better calibrated, detect out-of-distribution images better, and
# are more robust to adversarial examples.
#
# These are the claims of its abstract and repository. No table of it could be read, so that no published number stands
# beside ours.
#
# Its runs are one sweep, [experiments/random_pruning](../experiments/random_pruning), on this machine or on a cluster:
#
# ```
# python -m lottery paper random_pruning --scale small
# python -m lottery paper random_pruning --scale paper --launcher slurm
# ```

# %% tags=["parameters"]
RUNS: list[str] = []  # your run folders, or patterns; none: those of SCALE, made in ./runs where they are missing
SCALE = "smoke"  # or small, paper: what they cost is below

# %%
import re
from pathlib import Path

import pandas as pd
from IPython.display import Image

from lottery import papers
from lottery.analysis.claims import Claim, across, checked, distinct, named, near, studies, tickets, within
from lottery.analysis.statistics import summary
from lottery.figures import density, quality, sizes
from lottery.record.table import load_runs

pd.set_option("display.float_format", "{:.2f}".format, "display.max_colwidth", None, "display.max_rows", 100)
paper = papers.load("random_pruning")
figures = Path("figures/random_pruning")
pd.DataFrame({"cost": {name: scale.cost for name, scale in paper.scales.items()}})

# %%
folders = RUNS or papers.ensure("random_pruning", SCALE)
frame = distinct(named(load_runs(folders, {"finished": True})))

# %% [markdown]
# Of an MLP, the width is that of its first hidden layer, and the depth the number of them.


# %%
def size(row: pd.Series) -> tuple[int, int]:
    """Width and depth."""
    if isinstance(hidden := row.get("config.model.hidden"), tuple):
        return hidden[0], len(hidden)
    return int(row["config.model.width"]), int(re.findall(r"\d+", row["network"])[0])


DENSITIES = "config.method.allocation._target_"
frame[["width", "depth"]] = [size(row) for _, row in frame.iterrows()]
frame["densities"] = frame[DENSITIES].str.rpartition(".")[2].replace({"from_criterion": "SNIP-ratio", "erk": "ERK"})
frame["label"] = "random, " + frame["densities"]
erk = frame[frame["densities"] == "ERK"]
widths = erk[erk["depth"] == erk.groupby("depth")["width"].nunique().idxmax()]
depths = erk[erk["width"] == erk.groupby("width")["depth"].nunique().idxmax()]
studies(frame)

# %% [markdown]
# ## Width
#
# Test accuracy of random (ERK) and dense networks against the width, an axis for each density. Means over seeds.

# %%
Image(sizes.width_depth(widths, figures / "widths")[0])

# %%
gaps = tickets(within(widths)).assign(at=lambda rows: 100 * rows["config.method.density"])
table = summary(gaps, ["width", "at"], "difference")
(100 * table.pivot(index="width", columns="at", values="mean")).rename_axis(
    columns="gap to dense (points), at density (%)"
)

# %% [markdown]
# ## Depth

# %%
Image(sizes.width_depth(depths, figures / "depths")[0])

# %% [markdown]
# ## Layer densities
#
# ERK, uniform, or the ratios of a SNIP mask, in the network that was trained with each of them.

# %%
width, depth = frame.groupby(["width", "depth"])["densities"].nunique().idxmax()
ratios = frame[(frame["width"] == width) & (frame["depth"] == depth)]
Image(density.accuracy(ratios, figures / "ratios", by="densities")[0])

# %% [markdown]
# ## Calibration, out-of-distribution detection, robustness
#
# As far as they were measured; OOD: ROC-AUC of the highest probability against images of another data set. A colour a
# network; dashed: its dense one.

# %%
Image(
    quality.quality(
        widths, figures / "quality", by="model.hidden" if "config.model.hidden" in frame else "model.width"
    )[0]
)

# %% [markdown]
# ## What agrees
#
# A row a claim, computed from these runs. Differences are taken within a study, or between studies of the same seed and
# density; n counts seeds. `agrees` is about the mean. "Matches" is a gap below half a point here.

# %%
dense_gap = within(erk)
wide, narrow = (
    dense_gap[dense_gap["run"].isin(widths.loc[widths["width"] == edge, "run"])]
    for edge in (widths["width"].max(), widths["width"].min())
)
deep, shallow = (
    dense_gap[dense_gap["run"].isin(depths.loc[depths["depth"] == edge, "run"])]
    for edge in (depths["depth"].max(), depths["depth"].min())
)
most, least = frame["config.method.density"].max(), frame["config.method.density"].min()
WORDS = {
    "probe/ece": ("(3) ECE of the widest, less the dense network's", {"most": 0}),
    "probe/ood_auc_mnist": ("(3) OOD ROC-AUC of the widest, less the dense network's", {"least": 0}),
    "probe/ood_auc_cifar100": ("(3) OOD ROC-AUC of the widest, less the dense network's", {"least": 0}),
    "probe/accuracy_fgsm": ("(3) FGSM accuracy of the widest, less the dense network's", {"least": 0}),
}


def gap_between(ours: pd.DataFrame, theirs: pd.DataFrame, at: float) -> pd.DataFrame:
    return near(across(ours, theirs, "difference", ["seed", "config.method.density"]), at)


def ratio_gap(ours: str) -> pd.DataFrame:
    rows, uniform = (tickets(ratios[ratios["densities"] == name]) for name in (ours, "uniform"))
    return near(across(rows, uniform, on=["seed", "config.method.density"]), least)


checked(
    [
        Claim("(1) the gap of the narrowest network to dense", near(tickets(narrow), least), most=0, published="< 0"),
        Claim(
            "(1) it closes with width: gap of the widest, less that",
            gap_between(wide, narrow, least),
            least=0,
            published="> 0",
        ),
        Claim(
            "(1) the widest one matches at the highest density",
            near(tickets(wide), most),
            least=-0.005,
            published="matches",
        ),
        Claim(
            "(1) it closes with depth: gap of the deepest, less the shallowest's",
            gap_between(deep, shallow, least),
            least=0,
            published="> 0",
        ),
        Claim("(2) ERK less uniform", ratio_gap("ERK"), least=0, published="> 0"),
        Claim("(2) SNIP-ratio less uniform", ratio_gap("SNIP-ratio"), least=0, published="> 0"),
        *(
            Claim(
                words,
                tickets(within(widths[widths["width"] == widths["width"].max()], probe)),
                published="better",
                **bound,
            )
            for probe, (words, bound) in WORDS.items()
            if probe in widths and widths[probe].notna().any()
        ),
    ]
)
