"""Run a MaskedTraining in Lightning on one device, with Lightning's own features switched off."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path

from lottery.training.lightning import LightningEnvironment, pl
from lottery.training.module import MaskedTraining


class _Trainer(pl.Trainer):
    """Trainer that ignores a SIGTERM once the stop flag is set: Lightning would exit between chunks without saving."""

    stop: Callable[[], bool]

    @property
    def received_sigterm(self) -> bool:
        return super().received_sigterm and not self.stop()


def fit(module: MaskedTraining, accelerator: str, folder: Path, index: int | None = None) -> None:
    """Let Lightning drive the chunks on one device: GPU number `index`, where there are several.

    Where several processes train together, each has its own Lightning, which does not know of the others. The
    environment plugin is set explicitly: under SLURM, Lightning would otherwise install signal handlers and silently
    load the newest `hpc_ckpt_*` of the folder (specs: anchors E.3).
    """
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric)\b.*")
        trainer = _Trainer(
            accelerator=accelerator,
            devices=1 if index is None else [index],
            max_epochs=1,
            plugins=[LightningEnvironment()],
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.stop = module.hooks.stop
        try:
            trainer.fit(module)
        except SystemExit as error:  # Lightning turns a KeyboardInterrupt into it
            if isinstance(error.__context__, KeyboardInterrupt):
                raise error.__context__ from None
            raise
