"""Independent random streams from one integer: a seed for each purpose, named by words."""

from __future__ import annotations

import hashlib


def derive(seed: int, *words: str | int) -> int:
    """A 63-bit seed that is a function of `seed` and the words alone, independent of machine and version."""
    text = "/".join(str(word) for word in (seed, *words))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
