"""Independent random streams from one integer: a seed for each purpose, named by words. No torch at the top."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager


def derive(seed: int, *words: str | int) -> int:
    """Derive a 63-bit seed from `seed` and the words alone, equal on every machine and in every version."""
    text = "/".join(str(word) for word in (seed, *words))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def reinit_seed(init: int, round: int, copy: int) -> int:
    """Derive the seed of a reinit control's weights from `seeds.init`, its round and its copy."""
    return derive(init, "reinit", round, copy)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of torch (CPU), numpy and Python; restore their states at the end of the block."""
    import numpy as np
    import torch

    pythons, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the accelerators, too
            reseed(seed)
            yield
    finally:
        random.setstate(pythons)
        np.random.set_state(numpys)  # noqa: NPY002


def reseed(seed: int) -> None:
    """Seed the global generators of Python and numpy; cheap enough for every training step."""
    import numpy as np

    random.seed(seed)
    np.random.seed(seed & 0xFFFF_FFFF)  # noqa: NPY002
