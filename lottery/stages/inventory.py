"""`python -m lottery store` by the name under which the command line looks for it; it lives in lottery/inventory."""

from lottery.inventory.command import store

__all__ = ["store"]
