"""Import Lightning with the two classes of torchmetrics that it needs, instead of every metric.

The `__init__` of torchmetrics imports scipy.signal and torchvision, and takes longer than torch. It is deferred until
something else of torchmetrics is used, by whomever.
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from importlib.metadata import version
from typing import Any

from lottery.imports import deferred

if "torchmetrics" not in sys.modules:
    package: Any = deferred("torchmetrics")
    package.__version__ = version("torchmetrics")
    package._logger = logging.getLogger("torchmetrics")
    with suppress(ImportError):  # of a version that is built otherwise: then Lightning imports all of it
        import torchmetrics.utilities  # noqa: F401 - before the others, which need it whole
        from torchmetrics.collections import MetricCollection
        from torchmetrics.metric import Metric

        package.Metric, package.MetricCollection = Metric, MetricCollection

import pytorch_lightning as pl
from pytorch_lightning.plugins.environments import LightningEnvironment

__all__ = ["LightningEnvironment", "pl"]
