"""Plotly's own JavaScript, compressed, to embed in a report. Torch-free."""

from __future__ import annotations

import base64
import gzip
import hashlib
from importlib.util import find_spec
from pathlib import Path


def plotly_bundle() -> tuple[str, str] | None:
    """Return Plotly's script as base64 of its gzip, 0.4 of the size, and its `script_digest`.

    None where the package plotly is not installed: then a report has static figures alone.
    """
    spec = find_spec("plotly")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "package_data" / "plotly.min.js"
    if not path.is_file():
        return None
    script = path.read_bytes()
    return base64.b64encode(gzip.compress(script, 9, mtime=0)).decode(), script_digest(script)


def script_digest(script: bytes) -> str:
    """Return base64 of the SHA-256 of a script, by which a content security policy names the script."""
    return base64.b64encode(hashlib.sha256(script).digest()).decode()
