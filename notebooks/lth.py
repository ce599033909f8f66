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
# # The lottery ticket hypothesis
#
# Frankle & Carbin, ICLR 2019: Figures 1, 3, 4 and 5.
#
# **Claim.** Iterative magnitude pruning with reset to the initial weights finds subnetworks that learn faster than the
# dense network and reach a higher test accuracy, down to a few per cent of the weights. The same masks with new initial
# weights (*reinit*) do not, and random masks neither.
#
# Its runs are one sweep, [experiments/lth](../experiments/lth), on this machine or on a cluster:
#
# ```
# python -m lottery paper lth --scale small
# python -m lottery paper lth --scale paper --launcher slurm
# ```

# %% tags=["parameters"]
RUNS: list[str] = []  # your run folders, or patterns; none: those of SCALE, made in ./runs where they are missing
SCALE = "smoke"  # or small, paper: what they cost is below

# %%
from pathlib import Path

import pandas as pd
from IPython.display import Image, display

from lottery import papers
from lottery.analysis.claims import Claim, across, checked, dense_level, named, near, studies, tickets, within
from lottery.analysis.statistics import winning
from lottery.figures import density, training
from lottery.record.table import load_runs

pd.set_option("display.float_format", "{:.2f}".format, "display.max_colwidth", None, "display.max_rows", 100)
paper = papers.load("lth")
figures = Path("figures/lth")
pd.DataFrame({"cost": {name: scale.cost for name, scale in paper.scales.items()}})

# %%
folders = RUNS or papers.ensure("lth", SCALE)
frame = named(load_runs(folders, {"finished": True}))
studies(frame)

# %% [markdown]
# ## Figure 1: tickets and random masks
#
# The step of the lowest validation loss (*early stop*), and the test accuracy there, against the weights that remain.
# Means over seeds, the band from the lowest to the highest. Hollow: what the paper gives in relation to its dense
# network, set against the dense network of these runs.

# %%
conv = frame[frame["network"].str.startswith("Conv")]
lenet = frame.drop(conv.index)
dense = lenet[lenet["round"] == 0][["early_stop_step", "early_stop_test_accuracy"]].mean()
theirs = {"label": "ticket, Frankle & Carbin 2019, relative to dense", "series": "ticket"}
stops = [{"x": 0.211, "y": 0.62 * dense["early_stop_step"], **theirs}]
gains = {0.135: 0.003, 0.036: 0.0}
accuracies = [{"x": x, "y": dense["early_stop_test_accuracy"] + gain, **theirs} for x, gain in gains.items()]

of_random = lenet[lenet["control"].isna() | (lenet["control"] == "random")]
Image(density.early_stop(of_random, figures / "fig1_early_stop", density="density_weights", published=stops)[0])

# %%
at_stop = {"density": "density_weights", "value": "early_stop_test_accuracy"}
Image(density.accuracy(of_random, figures / "fig1_accuracy", published=accuracies, **at_stop)[0])

# %% [markdown]
# ## Figure 3: accuracy as training proceeds

# %%
some = [3, 7, 12, 15, 18] if lenet["round"].max() > 9 else ()
Image(training.training(lenet, figures / "fig3_training", rounds=some)[0])

# %% [markdown]
# ## Figure 4: tickets and the same masks with new initial weights

# %%
of_reinit = lenet[lenet["control"].isna() | (lenet["control"] == "reinit")]
Image(density.early_stop(of_reinit, figures / "fig4_early_stop", density="density_weights", published=stops)[0])

# %%
Image(density.accuracy(of_reinit, figures / "fig4_accuracy", published=accuracies, **at_stop)[0])

# %% [markdown]
# After the last step of training; the published accuracies are absolute here, and shown beside the paper's own network
# and data only.

# %%
same = set(lenet["network"]) == {"LeNet-300-100 on MNIST"}
published = paper.published("accuracy_after_last_step") if same else ()
Image(density.accuracy(lenet, figures / "accuracy_after_last_step", density="density_weights", published=published)[0])

# %% [markdown]
# ## Which are winning tickets?
#
# By the definition of the paper: smaller than the dense network, at least as accurate, and no slower. `difference`
# (points) is that of the accuracies at early stop, `step_difference` that of the steps; `shown`: a t test, with Holm's
# correction over the densities, rejects that it is less accurate.

# %%
wins = winning(lenet[lenet["control"].isna()])
wins["density"], wins["difference"] = 100 * wins["density_weights"], 100 * wins["difference"]
wins["t_low"], wins["t_high"] = 100 * wins["t_low"], 100 * wins["t_high"]
shown = ["density", "n", "difference", "t_low", "t_high", "p_holm", "shown", "step_difference", "winning"]
wins.loc[wins["density"] < 100, shown]

# %% [markdown]
# ## Figure 5: convolutional networks
#
# Conv-2, Conv-4 and Conv-6 on CIFAR-10 are among the runs of `--scale paper` only: GPU work. Published: how many times
# earlier than the dense network tickets stop at most, and how many points they gain at most, and at which density.

# %%
CONV = {
    "Conv-2": ((0.088, 3.5), (0.046, 3.4)),
    "Conv-4": ((0.092, 3.5), (0.111, 3.5)),
    "Conv-6": ((0.151, 2.5), (0.264, 3.3)),
}
for name, rows in conv.groupby("network", sort=False):
    short, stem = name.split()[0], "fig5_" + name.split()[0].lower().replace("-", "")
    (x, faster), (at, more) = CONV.get(short, ((1, 1), (1, 0)))
    stop, level = dense_level(rows, "early_stop_step"), dense_level(rows, "early_stop_test_accuracy")
    stops, gains = [{"x": x, "y": stop / faster, **theirs}], [{"x": at, "y": level + more / 100, **theirs}]
    display(Image(density.early_stop(rows, figures / f"{stem}_stop", density="density_weights", published=stops)[0]))
    display(Image(density.accuracy(rows, figures / f"{stem}_accuracy", published=gains, **at_stop)[0]))
best = {name: [100 * x, y, 100 * at, more] for name, ((x, y), (at, more)) in CONV.items()}
pd.DataFrame.from_dict(best, orient="index", columns=["at (%)", "times earlier", "at (%) ", "points more"])

# %% [markdown]
# ## What agrees
#
# A row a claim, computed from these runs. `here`: the mean over n seeds, each compared with its own dense network or
# control; `t_low` and `t_high` the 95 % interval of this mean; `holds_in`: for how many seeds the claim is true.
# `agrees` is about the sign of the mean; it is "open" where no density is within a factor of 1.25 of the published one.


# %%
def at(rows: pd.DataFrame, percent: float) -> pd.DataFrame:
    return near(tickets(rows), percent / 100, "density_weights")


STEP, GAIN = "early_stop_step", "early_stop_test_accuracy"
steps, gain, last = within(lenet, STEP), within(lenet, GAIN), within(lenet, "test_accuracy")
their_steps, their_gain = within(lenet, STEP, "reinit"), within(lenet, GAIN, "reinit")
reinit, random = (lenet[lenet["control"] == control] for control in ("reinit", "random"))
reinit_gain = gain[gain["control"] == "reinit"]
of_random = near(across(reinit, random, GAIN, ["run", "round"]), 0.135)
all_steps, all_gain = within(frame, STEP), within(frame, GAIN)


def of_conv(rows: pd.DataFrame, name: str, x: float) -> pd.DataFrame:
    return at(rows[rows["network"].str.startswith(name)], 100 * x)


share = {"value": "ratio", "most": 1, "unit": "times"}
checked(
    [
        Claim("early stop: share of the dense network's steps", at(steps, 21.1), published=0.62, **share),
        Claim("early stop: share of reinit's steps", at(their_steps, 21.1), published=0.4, **share),
        Claim("more accurate at early stop than dense", at(gain, 13.5), least=0, published="> 0.3"),
        Claim("and at the dense level again", at(gain, 3.6), least=-0.002, published="0"),
        Claim("and below it", at(gain, 2.9), most=0, published="< 0"),
        Claim("more accurate than reinit", at(their_gain, 21.1), least=0, published=0.5),
        Claim("reinit is below dense", near(reinit_gain, 0.211, "density_weights"), most=0, published="< 0"),
        Claim("reinit is better than a random mask", of_random, least=0, published="> 0"),
        Claim("more accurate after the last step too", at(last, 13.5), least=0, published=0.35),
        Claim("all training images are learnt", at(lenet, 3.6), "train_accuracy", least=1, published=100, unit="%"),
        *(
            Claim(f"{n}: early stop", of_conv(all_steps, n, x), published=1 / y, **share)
            for n, ((x, y), _) in CONV.items()
        ),
        *(
            Claim(f"{n}: more accurate", of_conv(all_gain, n, x), least=0, published=y)
            for n, (_, (x, y)) in CONV.items()
        ),
    ]
)
