"""Provisional (the founder wrote it so that others can run; HELPER export replaces this file wholly)."""
from __future__ import annotations


def normalised_by(network, image_shape): return {}
def silent(network, mask, image_shape): return {}
