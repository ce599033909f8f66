"""Plotly's own JavaScript, compressed, as the report embeds it once. Torch-free."""

from __future__ import annotations

import base64
import gzip
import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True)
class Bundle:
    """`packed`: base64 of gzip, 0.4 of the size; `digest`: base64 of the sha256 by which a browser knows the script."""

    packed: str
    digest: str


def plotly_bundle() -> Bundle | None:
    """None where the package plotly is not installed: then a report has static figures alone."""
    spec = find_spec("plotly")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "package_data" / "plotly.min.js"
    if not path.is_file():
        return None
    script = path.read_bytes()
    return Bundle(base64.b64encode(gzip.compress(script, 9, mtime=0)).decode(), script_digest(script))


def script_digest(script: bytes) -> str:
    """As a content security policy names a script."""
    return base64.b64encode(hashlib.sha256(script).digest()).decode()
