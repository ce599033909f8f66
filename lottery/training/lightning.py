"""Import Lightning with the two classes of torchmetrics that it needs, instead of every metric.

The `__init__` of torchmetrics imports scipy.signal, torchvision and pyplot, and takes longer than torch. It is deferred
until something else of torchmetrics is used, by whomever.
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from importlib.metadata import version
from typing import Any

from lottery.imports import deferred, load


def import_metric() -> None:
    """Import torchmetrics' Metric and MetricCollection, and defer the rest. Raises ImportError where it cannot."""
    package = deferred("torchmetrics", __version__=version("torchmetrics"), _logger=logging.getLogger("torchmetrics"))
    deferred("torchmetrics.utilities")
    plot = deferred("torchmetrics.utilities.plot", _AX_TYPE=object, _PLOT_OUT_TYPE=object)

    def draw(*args: Any, **kwargs: Any) -> Any:
        load(plot)  # which replaces this function
        return plot.plot_single_or_multi_val(*args, **kwargs)

    plot.plot_single_or_multi_val = draw
    from torchmetrics.collections import MetricCollection
    from torchmetrics.metric import Metric

    package.Metric, package.MetricCollection = Metric, MetricCollection


if "torchmetrics" not in sys.modules:
    with suppress(ImportError):  # of a version that is built otherwise: Lightning imports all of it
        import_metric()

import pytorch_lightning as pl  # noqa: E402
from pytorch_lightning.plugins.environments import LightningEnvironment  # noqa: E402

__all__ = ["LightningEnvironment", "pl"]
