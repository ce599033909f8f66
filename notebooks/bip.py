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
# # BiP: pruning by bi-level optimisation
#
# Zhang, Yao, Ram, Zhao, Chen, Hong, Wang & Liu, NeurIPS 2022: accuracy, sparsity and time (Fig. 1, Table 1).
#
# **Claims.** (1) A mask that is learned by bi-level optimisation, together with the weights, is as good as IMP's or
# better. (2) It costs about as much as one-shot pruning, whatever the density, where IMP trains anew for every round.
# (3) One-shot magnitude, and masks from before training, fall behind.
#
# The published numbers were presumably made by the released code, whose update is another one than the paper's: here
# both are run, each with an optimizer of its own (the weights by Adam, and by SGD at 0.1 as in the released
# configuration).
#
# Its runs are one sweep, [experiments/bip](../experiments/bip), on this machine or on a cluster:
#
# ```
# python -m lottery paper bip --scale small
# python -m lottery paper bip --scale paper --launcher slurm
# ```

# %% tags=["parameters"]
RUNS: list[str] = []  # your run folders, or patterns; none: those of SCALE, made in ./runs where they are missing
SCALE = "smoke"  # or small, paper: what they cost is below

# %%
from pathlib import Path

import pandas as pd
from IPython.display import Image, display

from lottery import papers
from lottery.analysis.claims import Claim, across, checked, named, relative, studies, tickets, within
from lottery.analysis.statistics import summary
from lottery.figures import cost, density
from lottery.record.table import load_runs

pd.set_option("display.float_format", "{:.2f}".format, "display.max_colwidth", None, "display.max_rows", 100)
paper = papers.load("bip")
figures = Path("figures/bip")
pd.DataFrame({"cost": {name: scale.cost for name, scale in paper.scales.items()}})

# %%
NAMES = {"IMP, reset to init": "IMP", "BiP by the released update": "BiP, released update", "SNIP at init": "SNIP"}
folders = RUNS or papers.ensure("bip", SCALE)
frame = named(load_runs(folders, {"finished": True}))
one_shot = frame["config.method.one_shot"].eq(True)
frame["label"] = frame["method"].replace(NAMES).mask(one_shot, "one-shot magnitude")
networks = {
    name: (rows, name.split()[0].lower().replace("-", "")) for name, rows in frame.groupby("network", sort=False)
}
studies(frame)

# %% [markdown]
# ## Accuracy against density
#
# Hollow: the sparsest tickets of Table 1 that are no worse than dense. Where these runs are of another network than the
# paper's, they are drawn in relation to the dense network: ResNet-20's.

# %%
for rows, stem in networks.values():
    known = [figure.name for figure in paper.figures if figure.name == f"accuracy_{stem}"]
    published = paper.published(known[0]) if known else relative(paper.published("accuracy_resnet20"), rows)
    display(Image(density.accuracy(rows, figures / f"accuracy_{stem}", published=published)[0]))

# %% [markdown]
# Table 1's measure: the sparsest density at which a method's mean accuracy is at least that of the dense network, in
# per cent of the weights; of the densities that were tried here. Published on CIFAR-10; where a method has no such
# density at all it says none.

# %%
TABLE = {  # sparsity (%) of the sparsest winning ticket: ResNet-18, ResNet-20
    "IMP": (87, 74),
    "one-shot magnitude": (49, None),
    "GraSP": (None, None),
    "BiP": (89, 67),
}
differences = tickets(within(frame)).assign(at=lambda rows: 100 * rows["density"].round(3))
means = summary(differences, ["network", "label", "at"], "difference")
wins = means[means["mean"] >= 0].groupby(["label", "network"])["at"].min().unstack()
theirs = pd.DataFrame.from_dict(TABLE, orient="index", columns=["ResNet-18, published", "ResNet-20, published"])
wins.reindex(means["label"].unique()).join(100 - theirs, how="outer").astype(object).map(
    lambda at: "none" if pd.isna(at) else f"{at:.3g}"
)

# %% [markdown]
# ## Cost and accuracy
#
# Test accuracy against all batches that lead to the ticket, the dense network's included where it is pruned. A step of
# BiP takes two batches.

# %%
for rows, stem in networks.values():
    display(Image(cost.cost(rows, figures / f"cost_{stem}")[0]))

# %% [markdown]
# The same against seconds on the machine that they ran on, with whatever else ran there.

# %%
for rows, stem in networks.values():
    display(Image(cost.cost(rows, figures / f"seconds_{stem}", x="seconds")[0]))

# %% [markdown]
# Beside the published times of ResNet-18 on CIFAR-10, read off a plot (to about 5 minutes): in units of a dense
# training. The published times do not say whether the dense network's training is part of them; here it is, where one
# is pruned.

# %%
MINUTES = {"dense": "82", "BiP": "86", "one-shot magnitude": "70", "IMP": "70 (80 % of the weights) to 1,200 (3 %)"}
spent = cost.with_cost(frame, "steps")
spent = spent.assign(share=spent["cost"] / spent["run"].map(spent[spent["round"] == 0].groupby("run")["steps"].first()))
spent = tickets(spent).assign(at=lambda rows: 100 * rows["density"].round(3))
costs = summary(spent, ["network", "label", "at"], "share").pivot(
    index=["network", "label"], columns="at", values="mean"
)
costs = costs[sorted(costs, reverse=True)]
costs.assign(**{"published, minutes": [MINUTES.get(name, "") for _, name in costs.index]})

# %% [markdown]
# ## What agrees
#
# A row a claim, computed from the LeNet runs, or whatever there is instead. Differences and ratios are between studies
# of the same seed and density; n counts seeds. `agrees` is about the mean.

# %%
lenet = [name for name in networks if name.startswith("LeNet")]
rows = spent[spent["network"] == (lenet or list(networks))[0]].assign(percent=lambda rows: rows["at"].round(1))


def bip_and(other: str, percent: float, value: str = "test_accuracy") -> pd.DataFrame:
    at = rows[rows["percent"] == percent]
    return across(at[at["label"] == "BiP"], at[at["label"] == other], value, ["seed", "percent"])


checked(
    [
        *(Claim(f"(1) BiP less IMP at {at} %", bip_and("IMP", at), least=0, published=">= 0") for at in (10, 2.2, 1)),
        *(
            Claim(
                f"(2) batches of BiP beside IMP's at {at} %",
                bip_and("IMP", at, "cost"),
                "ratio",
                most=1,
                published="0.14 to 0.5",
                unit="times",
            )
            for at in (10, 2.2, 1)
        ),
        *(
            Claim(f"(3) BiP less {name} at {at} %", bip_and(name, at), least=0, published="> 0")
            for name in ("one-shot magnitude", "SNIP")
            for at in (10, 1)
        ),
        *(
            Claim(f"BiP less random (ERK) at {at} %", bip_and("random, ERK", at), least=0, published="not given")
            for at in (10, 1)
        ),
        *(
            Claim(
                f"BiP and the released update differ by less than 0.5 at {at} %",
                bip_and("BiP, released update", at),
                least=-0.005,
                most=0.005,
                published="the same method",
            )
            for at in (10, 2.2, 1)
        ),
    ]
)
