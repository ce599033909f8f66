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
# # Stabilizing the lottery ticket hypothesis
#
# Frankle, Dziugaite, Roy & Carbin, arXiv 1903.01611: Figures 2 and 3.
#
# **Claims.** Where IMP finds winning tickets they are stable: another data order, and pruning itself, move them less
# than they move random masks of the same layer counts (Fig. 3). Where it fails, on larger networks at their usual
# learning rate, IMP's masks are no more stable than random ones; a low learning rate, warm-up, or rewinding to an early
# step of the dense run instead of step 0, mends both.
#
# Its runs are one sweep, [experiments/stabilizing](../experiments/stabilizing), on this machine or on a cluster:
#
# ```
# python -m lottery paper stabilizing --scale small
# python -m lottery paper stabilizing --scale paper --launcher slurm
# ```

# %% tags=["parameters"]
RUNS: list[str] = []  # your run folders, or patterns; none: those of SCALE, made in ./runs where they are missing
SCALE = "smoke"  # or small, paper: what they cost is below

# %%
from pathlib import Path

import pandas as pd
from IPython.display import Image, display

from lottery import papers
from lottery.analysis.claims import Claim, across, beside, checked, named, studies, tickets, within
from lottery.figures import density, rewinding
from lottery.record.table import load_runs

pd.set_option("display.float_format", "{:.2f}".format, "display.max_colwidth", None, "display.max_rows", 100)
paper = papers.load("stabilizing")
figures = Path("figures/stabilizing")
pd.DataFrame({"cost": {name: scale.cost for name, scale in paper.scales.items()}})

# %%
folders = RUNS or papers.ensure("stabilizing", SCALE)
frame = named(load_runs(folders, {"finished": True}))
studies(frame)

# %% [markdown]
# A network and its recipe (learning rate and warm-up) are one subject; the paper has seven of them.

# %%
SUBJECTS = {  # and what the figures are called that hold their published numbers
    "LeNet-300-100 on MNIST": "lenet",
    "ResNet-20 on CIFAR-10": "resnet20",
    "ResNet-20 on CIFAR-10, low rate": "resnet20_low",
    "ResNet-20 on CIFAR-10, warm-up": "resnet20_warmup",
    "VGG-19 on CIFAR-10": "vgg19",
    "VGG-19 on CIFAR-10, low rate": "vgg19_low",
    "VGG-19 on CIFAR-10, warm-up": "vgg19_warmup",
}


def subject(row: pd.Series) -> str:
    if row["config.schedule.warmup"] != "0it":
        return f"{row['network']}, warm-up"
    return row["network"] + (
        ", low rate" if row["network"].endswith("CIFAR-10") and row["config.optim.lr"] == 0.01 else ""
    )


frame["subject"] = [subject(row) for _, row in frame.iterrows()]
subjects = {name: (rows, SUBJECTS.get(name)) for name, rows in frame.groupby("subject", sort=False)}

# %% [markdown]
# ## Figure 2: the networks, and what they reach
#
# Test accuracy (%) after the last step: dense, of tickets from step 0, and of random masks of their layer counts,
# beside the published ones.

# %%
for name, (rows, known) in subjects.items():
    published = paper.published(f"fig3_accuracy_{known}") if known else ()
    start = rows[rows["config.rewind.to"] == "init"]
    display(
        Image(density.accuracy(start, figures / f"accuracy_{known or 'other'}", published=published, title=name)[0])
    )
    if known:
        display(beside(published, start))

# %% [markdown]
# ## Figure 3: stability
#
# Distances of the kept weights between two trainings of the same ticket: in another data order, and of the pruned
# network from the dense one with the same mask laid over it. Against the step that tickets are rewound to; hollow:
# published, at step 0. L2 distances grow with the length of training and with the learning rate: where these runs are
# shorter than the paper's, compare ratios and angles.

# %%
for name, (rows, known) in subjects.items():
    published = paper.published(f"fig3_stability_{known}") if known else ()
    display(
        Image(
            rewinding.stability(rows, figures / f"fig3_stability_{known or 'other'}", published=published, title=name)[
                0
            ]
        )
    )

# %% [markdown]
# ## Barrier and accuracy against the rewind point
#
# The first step from which tickets match the dense network: 0 for LeNet, 500 for ResNet-20, 100 for VGG-19 (published).

# %%
for name, (rows, known) in subjects.items():
    display(Image(rewinding.rewind(rows, figures / f"rewind_point_{known or 'other'}", title=name)[0]))

# %% [markdown]
# ## What agrees
#
# A row a claim, computed from the LeNet runs, or whatever there is instead. Ratios and differences are taken within
# each study; n counts seeds. `agrees` is about the mean.

# %%
lenet = [rows for name, (rows, _) in subjects.items() if name.startswith("LeNet")]
rows = (lenet or [rows for rows, _ in subjects.values()])[0]
start, later = rows[rows["config.rewind.to"] == "init"], tickets(rows[rows["step_rewind"] > 0])
late = later[later["step_rewind"] == later["step_rewind"].max()]


def measured(rows: pd.DataFrame) -> pd.DataFrame:
    """Those of the densities at which stability was measured."""
    return tickets(rows[rows["probe/l2_pruning"].notna()])


def of_random(probe: str) -> pd.DataFrame:
    return measured(within(start, f"probe/{probe}", "random"))


def of_reset(value: str) -> pd.DataFrame:
    """The latest rewind point beside step 0, by seed."""
    return across(measured(late), measured(start), value, "seed")


share = {"value": "ratio", "most": 1, "unit": "times"}
checked(
    [
        Claim(
            "another data order moves tickets less than random masks, L2",
            of_random("l2_order"),
            published=0.35,
            **share,
        ),
        Claim("and by a smaller angle", of_random("angle_order"), published=0.46, **share),
        Claim("pruning moves them less too, L2", of_random("l2_pruning"), published=0.64, **share),
        Claim("and by a smaller angle", of_random("angle_pruning"), published=0.64, **share),
        Claim("more accurate than random masks", measured(within(start, against="random")), least=0, published=0.8),
        Claim("no less accurate than dense", measured(within(start)), least=-0.002, published=0.3),
        Claim(
            "rewound later, another data order moves them less, L2",
            of_reset("probe/l2_order"),
            published="< 1",
            **share,
        ),
        Claim("and pruning moves them less, L2", of_reset("probe/l2_pruning"), published="< 1", **share),
        Claim(
            "accuracy: nothing gained or lost on LeNet",
            of_reset("test_accuracy"),
            least=-0.002,
            most=0.002,
            published="0",
        ),
    ]
)
