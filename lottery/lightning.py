"""Keep a ticket's pruned weights at zero in anyone's LightningModule and Trainer: a callback."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lottery.errors import ConfigError
from lottery.masked_optimizer import MaskedOptimizer, check_same
from lottery.ticket import Mask
from lottery.training.lightning import pl


class TicketCallback(pl.Callback):
    """A callback under which pruned weights stay exactly zero while a Trainer fits; see `MaskedOptimizer`.

    mask: a `Mask`, or bool tensors by parameter name, true = kept; the names are the network's
    part: the attribute of the LightningModule that is the network, such as "net" or "model.student"; needed only where
          the mask fits several parts

    All optimizers of the module are masked, under automatic and manual optimization, in any precision. Gradients are
    zeroed before Lightning clips them. A checkpoint has the mask's digest, and a training that is continued from it
    (`ckpt_path`) under another mask is refused.
    Raises LotteryError when fitting begins, naming the tensor, where the mask does not fit.

    >>> mask = lottery.load_run("runs/imp_rewind").mask(1)
    >>> trainer = pl.Trainer(max_epochs=1, callbacks=[lottery.lightning.TicketCallback(mask)], logger=False)
    """

    def __init__(self, mask: Mapping[str, Tensor], part: str = "") -> None:
        self.mask, self.part = mask if isinstance(mask, Mask) else Mask(mask), part
        self._masked: list[MaskedOptimizer] = []

    @property
    def state_key(self) -> str:
        return f"{type(self).__qualname__}{self.part and f'[{self.part}]'}"  # several networks have a callback each

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        try:
            network = pl_module.get_submodule(self.part)
        except AttributeError as error:
            names = ", ".join(name for name, _ in pl_module.named_children())
            expected = f"the name of a module of {type(pl_module).__name__}, such as {names}"
            raise ConfigError.of("part", self.part, expected) from error
        self._masked = [MaskedOptimizer(optimizer, network, self.mask) for optimizer in trainer.optimizers]

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for masked in self._masked:
            masked.release()
        self._masked = []

    def state_dict(self) -> dict[str, Any]:
        return {"mask": self.mask.digest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        check_same(state_dict["mask"], self.mask)
