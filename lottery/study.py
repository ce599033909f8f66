"""A study: drives a method, and turns its rounds into a table. Snapshots, probes and tracking happen here only."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from lottery.config import settings, study_key, typed_method
from lottery.errors import ConfigError, LotteryError, cause
from lottery.models.build import check_fit
from lottery.parts import made
from lottery.stages.lab import Lab
from lottery.stages.round import Round
from lottery.stages.search import Searched
from lottery.stages.store import environment
from lottery.stages.trained import Trained
from lottery.ticket import weights_digest
from lottery.tracking.folder import Row, RunFolder, check_writable
from lottery.tracking.terminal import Terminal
from lottery.tracking.trackers import Tracker, make_tracker
from lottery.training.module import NonFiniteLoss
from lottery.training.parallel import Ranks, RanksDiffer
from lottery.training.signals import StopFlag

LOG = logging.getLogger("lottery")
OWN_THREADS = torch.get_num_threads()  # torch's own choice

SCORES = (
    "train_loss", "train_accuracy", "val_loss", "val_accuracy", "test_loss", "test_accuracy",
    "early_stop_step", "early_stop_test_accuracy",
)  # fmt: skip


class Study:
    """One method, one configuration, one seed: one run folder."""

    def __init__(self, cfg: DictConfig, stop: StopFlag | None = None, ranks: Ranks | None = None) -> None:
        """`ranks`: the processes that train together, of which this one is the first."""
        self.config = settings(cfg)
        self.ranks = ranks
        self.yaml = OmegaConf.to_yaml(cfg, resolve=True)
        self.method = typed_method(cfg.method)
        self.key = study_key(cfg)
        self.folder = RunFolder(Path(self.config.paths.runs) / self.config.name / self.key)
        self.stop = StopFlag() if stop is None else stop  # a flag is false until it is set
        self.terminal = Terminal(live=self.config.trainer.progress)
        self.probes = {name: made(node, f"probes.{name}") for name, node in (self.config.probes or {}).items()}
        self._warned: set[str] = set()

    def run(self) -> list[Row]:
        """Run the method to its end and return the table. What was finished before is found, not computed again.

        Raises ConfigError before anything is written; LotteryError or Interrupted later, with finished rounds kept.
        """
        set_threads(self.config.trainer.threads, self.ranks.place.here if self.ranks else 1)
        tracker, status = None, "failed"
        try:
            lab = self.prepared()
            self.folder.open(self.yaml, self.stop, partial(print, flush=True))
            self.terminal.open(self.folder.path, f"{self.config.name}: {self.folder.path}", self.trainings())
            for note in self.folder.notes:
                LOG.warning(note)
            tracker = make_tracker(self.config, self.key, self.folder.path)
            tracker.start(self.yaml)
            table = self.table(lab, tracker)
            status = "finished"
            self.terminal.status.end()
            self.report()
            return table
        except BaseException as error:
            self.log_failure(error)
            raise
        finally:
            if tracker is not None:
                tracker.close(status)
            self.folder.close()
            self.terminal.close()

    def prepared(self) -> Lab:
        """The lab, once everything has been checked that can be before training. Raises ConfigError."""
        check_fit(self.config.model, tuple(self.config.data.shape), self.config.data.classes)
        name = f"{self.config.name}/{self.key}"
        lab = Lab(self.config, self.stop, self.terminal.tick, self.terminal.waiting, name, self.ranks)
        lab.check()
        for part in (self.method, *self.probes.values()):
            if hasattr(part, "check"):
                part.check(lab)
        check_writable({"paths.runs": self.folder.path, "paths.store": Path(self.config.paths.store)})
        return lab

    def log_failure(self, error: BaseException) -> None:
        """Put it into study.log and status.json; a wrong configuration, found before a study began, into neither."""
        with suppress(LotteryError):
            if not self.folder.opened and isinstance(error, Exception) and not isinstance(error, ConfigError):
                self.folder.create(self.yaml)
        if self.folder.opened:
            if isinstance(error, Exception):
                self.folder.log_failure(error)
            self.terminal.status.end(error, self.folder.path)

    def table(self, lab: Lab, tracker: Tracker) -> list[Row]:
        """Every round's row, recorded as soon as the round is done; then the figures."""
        rows: list[Row] = []
        previous = None  # the ticket that this one, or this control's, was pruned from: of the same rewind point
        for round in self.rounds(lab):
            if round.control is None:
                same = [known for known in lab.history[1:] if known.rewound == round.rewound]
                previous = next(iter([*same[::-1], *lab.history[:1]]), None)
                lab.history.append(round)
            row = self.record(round, previous, lab)
            tracker.round(row, round.trained.result["curve"], self.folder.mask_path(row))
            self.terminal.round(row, round.cached)
            rows.append(row)
        from lottery.analysis.figures import draw_study  # matplotlib is slow to import, and needed only here

        for path in draw_study(self.folder.path):
            tracker.figure(path)
        LOG.info("done: %d rows, masks, curves and figures in %s", len(rows), self.folder.path)
        return rows

    def report(self) -> None:
        """Write report.html, now that the study counts as done: it is, whatever goes wrong with the report."""
        from lottery.analysis.report.command import write_report

        try:
            write_report([self.folder.path], self.folder.path / "report.html", interactive=False)
        except Exception as error:
            LOG.warning("report.html could not be written: %s", cause(error))

    def rounds(self, lab: Lab) -> Iterator[Round]:
        """The method's rounds, each followed by its controls. The dense network needs none."""
        now = self.terminal.progress
        try:
            for ticket in self.method(lab):
                yield ticket
                whole = ticket.mask.kept == ticket.mask.size and not ticket.ticket.removed
                if ticket.index > 0 and not whole:  # the dense network has none
                    for kind, copy in lab.controls():
                        now.at(ticket.index, kind, copy)
                        yield lab.control(ticket, kind, copy)
                now.at(ticket.index + 1)
        except (NonFiniteLoss, RanksDiffer) as error:
            raise type(error)(f"{now.where}: {error}") from error

    def trainings(self) -> int:
        """How many trainings the study plans; 0 where the method does not say."""
        rounds = getattr(self.method, "rounds", 0)
        wanted = self.config.controls
        beside = 1 + sum(vars(wanted).values())
        return sum((beside if k else 1) * self.copies(k) for k in range(rounds + 1)) if rounds else 0

    def copies(self, round: int) -> int:
        """How often the probes have a ticket of this round trained, its own training included."""
        asked = [
            getattr(probe, "copies", 1)
            for probe in self.probes.values()
            if round in (getattr(probe, "rounds", []) or [round])
        ]
        return max(asked, default=1)

    # -- a round's record -------------------------------------------------------------------------------------------

    def record(self, round: Round, previous: Round | None, lab: Lab) -> Row:
        """Measure a round and write it down."""
        row = self.row(round, lab)
        if round.search is not None and round.search.cached:
            lab.reused.append(round.search.environment())
        lab.measured.clear()
        lab.on_copy = partial(self.note_copy, round)
        for probe in self.probes.values():
            row |= {f"probe/{name}": finite(value) for name, value in probe(round, previous, lab).items()}
        self.note_environments([*([round.trained.environment()] if round.trained.cached else []), *lab.reused])
        lab.reused.clear()
        self.warn_collapsed(row["collapsed_layers"])
        if round.search is not None:
            row |= self.searched(round.search)
            self.folder.add_search(row, round.search)
        if round.units is not None:
            row |= {"removed_units": list(round.ticket.removed), "units": len(round.units)}
            self.folder.add_units(row, round.units)
        parent = previous.mask.digest if previous is not None else None
        return self.folder.add(row, self.details(round, parent, lab), round.mask, parent)

    def row(self, round: Round, lab: Lab) -> Row:
        """A line of rounds.jsonl (design, 4.2)."""
        mask, result = round.mask, round.trained.result
        searched = round.search.result["seconds"] if round.search else 0.0
        removed = round.ticket.removed
        unprunable = lab.total_weights - mask.size - (lab.layers.unprunable_in(removed) if removed else 0)
        gone = lab.layers.weights_of(removed) if removed else ()
        return {
            "round": round.index,
            "control": round.control,
            "copy": round.copy,
            "density": mask.density,
            "density_weights": (mask.kept + unprunable) / lab.total_weights,
            "kept": mask.kept,
            "prunable": mask.size,
            "layer_density": mask.layer_density,
            "collapsed_layers": [name for name in mask.collapsed if name not in gone],
            "step_rewind": (lab.rewind.step if round.rewound is None else round.rewound) if round.index else 0,
            "steps": result["steps"],
            **{name: result[name] for name in SCORES},
            "seconds": float(f"{result['seconds'] + searched:.3f}"),
            "cached": round.cached,
            "mask_digest": mask.digest,
            "weights_digest": weights_digest(round.trained.state.tensors(), mask),
        }

    @staticmethod
    def searched(search: Searched) -> Row:
        """What the search of a round took: its steps, the batches it used, and its time."""
        result = search.result
        return {
            "search_steps": result["steps"],
            "search_batches": result["batches"],
            "search_seconds": float(f"{result['seconds']:.3f}"),
        }

    def details(self, round: Round, parent: str | None, lab: Lab) -> dict[str, Any]:
        """rounds/round_NNN.json: where the numbers come from."""
        ticket, trained = round.ticket, round.trained
        return {
            "curve": trained.result["curve"],
            "stages": lab.stages(round),
            "digests": {
                "mask": ticket.mask.digest,
                "parent_mask": parent,
                "start": ticket.state.digest,
                "trained": trained.state.digest,
            },
            "ticket": {
                "step": ticket.step,
                "order_step": ticket.order_step,
                "steps": ticket.steps,
                "hold_lr": ticket.hold_lr,
                "optimizer": ticket.optimizer.digest if ticket.optimizer else None,
            },
            "environment": trained.environment(),
            "seconds": trained.result["seconds"],
        }

    def note_copy(self, round: Round, number: int, trained: Trained | None) -> None:
        """Say that a probe has a round trained again in another data order, and when that is done."""
        now = self.terminal.progress
        if trained is None:
            now.at(round.index, f"{round.control} {round.copy} copy" if round.control else "copy", number)
        else:
            now.finished(trained.cached)

    # -- notes in the log -------------------------------------------------------------------------------------------

    def warn_collapsed(self, layers: list[str]) -> None:
        """Say once of each layer that nothing of it is left."""
        for name in layers:
            if name not in self._warned:
                self._warned.add(name)
                LOG.warning("%s is pruned empty: the study goes on, and collapsed_layers lists it", name)

    def note_environments(self, recorded: Iterable[dict[str, str]]) -> None:
        """Say where a reused stage was computed by other versions or on another machine (design, 4.7)."""
        for then in recorded:
            for name, now in environment().items():
                note = f"{name} {then.get(name)}, now {now}"
                if then.get(name) != now and note not in self._warned:
                    self._warned.add(note)
                    LOG.warning("reused stages were computed with %s", note)


def finite(figure: Any) -> Any:
    """A probe's figure as JSON has it: what is infinite or undefined is null."""
    if isinstance(figure, dict):
        return {name: finite(value) for name, value in figure.items()}
    if isinstance(figure, list):
        return [finite(value) for value in figure]
    return None if isinstance(figure, float) and not math.isfinite(figure) else figure


def set_threads(threads: int | None, processes: int = 1) -> None:
    """CPU threads for torch: as asked, else what SLURM granted, else torch's own choice.

    What was not asked for is divided between the `processes` that this one starts on the machine, itself included.
    """
    granted = os.environ.get("SLURM_CPUS_PER_TASK")
    if threads or granted or processes > 1:
        torch.set_num_threads(threads or max(1, int(granted or OWN_THREADS) // processes))
