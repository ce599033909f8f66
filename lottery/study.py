"""A study: runs a method, and turns its rounds into a table. Snapshots, probes and tracking happen here only."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lottery.config import settings, study_key
from lottery.errors import ConfigError, LotteryError, cause
from lottery.lease import LeaseLost
from lottery.models.build import check_fit
from lottery.own_code import own_code
from lottery.parts import instantiated, typed_method
from lottery.probes.measuring import Measuring
from lottery.ranks.alone import Alone, RanksDiffer, use_machine
from lottery.record.folder import RunFolder, check_writable
from lottery.record.names import CONFIG, REPORT
from lottery.record.provenance import Provenance
from lottery.record.rows import Row
from lottery.signals import StopFlag
from lottery.stages import controls
from lottery.stages.attempts import Attempts
from lottery.stages.bench import Bench
from lottery.stages.crew import Crew
from lottery.stages.lab import Lab
from lottery.stages.round import Round
from lottery.stages.store import Store, environment
from lottery.stages.trained import Moved, Trained
from lottery.ticket import weights_digest
from lottery.tracking.terminal import Terminal, closing
from lottery.tracking.trackers import StudyTracker, follow, make_tracker, with_rates
from lottery.training.progress import NonFiniteLoss
from lottery.trust import remember

LOG = logging.getLogger("lottery")

SCORES = (
    "train_loss", "train_accuracy", "val_loss", "val_accuracy", "test_loss", "test_accuracy",
    "early_stop_step", "early_stop_test_accuracy",
)  # fmt: skip


class Study:
    """One method, one configuration, one seed: one run folder."""

    def __init__(
        self, cfg: DictConfig, stop: StopFlag | None = None, ranks: Alone | None = None,
        attempts: Attempts | None = None, crew: Crew | None = None, inputs: Callable[[], str] = str,
    ) -> None:  # fmt: skip
        """Prepare a study.

        ranks:    the processes that train together, this one as rank 0
        attempts: of the job
        crew:     the workers that train for this process; None: it trains itself
        inputs:   `lottery.inputs.still` of this study; without it, the study always runs again in full
        """
        self.config = settings(cfg)
        self.ranks, self.attempts, self.crew, self.inputs = ranks, attempts or Attempts(), crew, inputs
        self.yaml = OmegaConf.to_yaml(cfg, resolve=True)
        self.method = typed_method(cfg.method)
        self.key = study_key(cfg)
        self.folder = RunFolder(Path(self.config.paths.runs) / self.config.name / self.key)
        self.stop = StopFlag() if stop is None else stop  # a flag is false until it is set
        self.terminal = Terminal(live=self.config.trainer.progress)
        self.probes = {name: instantiated(node, f"probes.{name}") for name, node in (self.config.probes or {}).items()}
        self.measuring = Measuring(self.probes)
        self.history: list[Round] = []  # the tickets so far, round 0 first
        self._warned: set[str] = set()

    def run(self) -> list[Row]:
        """Run the method to its end and return the table. Finished stages are found, not computed again.

        Raises ConfigError before anything is written; LotteryError or Interrupted later, with finished rounds kept.
        """
        processes = len(self.crew) if self.crew else self.ranks.place.here if self.ranks else 1
        use_machine(self.config.trainer.threads, processes)
        tracker, status = None, "failed"
        try:
            lab = self.prepared()
            self.folder.open(self.yaml, self.stop, self.wait_for_folder)
            self.attempts.works()
            remember([self.config.model["_target_"], self.config.data._target_])
            self.terminal.open(self.folder.path, f"{self.config.name}: {self.folder.path}", self.trainings())
            for note in [*self.folder.notes, *self.provenance(lab).noted(self.folder.path)]:
                LOG.warning(note)
            tracker = make_tracker(self.config, self.key, self.folder.path)
            tracker.start(self.yaml)
            follow(lab, tracker, self.terminal.progress, self.config.method["_target_"], self.crew)
            with self.crew.at_work(self.terminal, self.stop) if self.crew else nullcontext():
                rows = self.record_all(lab, tracker)
            drawn = self.drawn(tracker, rows)
            status = "finished"
            self.terminal.status.end()
            self.report()
            with suppress(LeaseLost):  # the other process seals it
                self.folder.seal(drawn, self.inputs(), self.terminal.warnings, self._warned)
            return rows
        except BaseException as error:
            self.log_failure(error)
            raise
        finally:
            if tracker is not None:
                tracker.close(status)
            self.folder.close()
            self.terminal.close()

    def prepared(self) -> Lab:
        """Build the lab, and check all that can be checked before training. Raises ConfigError."""
        check_fit(self.config.model, tuple(self.config.data.shape), self.config.data.classes)
        root, name = Path(self.config.paths.store), f"{self.config.name}/{self.key}"
        open_store = self.crew.store if self.crew else Store
        store = open_store(root, name, self.stop, self.terminal.waiting, self.attempts, self.note_environment)
        lab = Lab(self.config, self.stop, self.terminal.tick, store, self.ranks)
        lab.check_short_batch(getattr(self.method, "steps", None))
        lab.check()
        for part, at in [(self.method, lab), *((probe, Bench(lab)) for probe in self.probes.values())]:
            if hasattr(part, "check"):
                part.check(at)
        self.folder.notes += lab.store.check()
        check_writable({"paths.runs": self.folder.path, "paths.store": root})
        return lab

    def wait_for_folder(self, line: str) -> None:
        """Print a line that says which process runs this study, and stop counting this run."""
        self.attempts.waits()
        print(line, flush=True)

    def log_failure(self, error: BaseException) -> None:
        """Record an error in the study's log and status, except a wrong configuration found before a study began."""
        with suppress(LotteryError):
            if not self.folder.opened and isinstance(error, Exception) and not isinstance(error, ConfigError):
                self.folder.create()
                self.folder.keep(CONFIG, self.yaml.encode())
        if self.folder.opened:
            if isinstance(error, Exception):
                self.folder.log_failure(error)
            self.terminal.status.end(error, self.folder.path)

    def record_all(self, lab: Lab, tracker: StudyTracker) -> list[Row]:
        """Record every round as soon as it is done; return the rows."""
        rows: list[Row] = []
        previous = None  # the round, of the same rewind point, that this ticket was pruned from
        for round in self.rounds(lab):
            if round.control is None:
                before = self.history[:1] + [known for known in self.history[1:] if known.rewound == round.rewound]
                previous = before[-1] if before else None
                self.history.append(round)
            row = self.record(round, previous, lab)
            curve = with_rates(round.trained.result["curve"], round.ticket, round.ticket.recipe or lab.recipe)
            tracker.round(row, curve, self.folder.mask_path(row))
            self.terminal.round(row, round.cached)
            rows.append(row)
        self.folder.settle()
        return rows

    def drawn(self, tracker: StudyTracker, rows: list[Row]) -> list[Path]:
        """Draw the figures, and return their files, and that of the report to come."""
        from lottery.figures.study import draw_study  # matplotlib is slow to import, and needed only here

        self.terminal.afterwards("drawing the figures")
        drawn = draw_study(self.folder.path)
        for path in drawn:
            tracker.figure(path)
        self.folder.lease.check()  # before the study counts as done
        for line in closing(rows, self.config.method["_target_"], self.folder.path):
            LOG.info(line)
        return [*drawn, self.folder.path / REPORT]

    def report(self) -> None:
        """Write the report. Errors are only logged, since the study counts as done already."""
        from lottery.report.command import write_report

        self.terminal.afterwards("writing the report")
        try:
            write_report([self.folder.path], self.folder.path / REPORT, interactive=False)
        except Exception as error:
            LOG.warning("%s could not be written: %s", REPORT, cause(error))

    def rounds(self, lab: Lab) -> Iterator[Round]:
        """Yield the method's rounds, each followed by its controls. The dense network has none."""
        now = self.terminal.progress
        try:
            for ticket in self.method(lab):
                yield ticket
                for kind, copy in controls.wanted(self.config, ticket):
                    now.at(ticket.index, kind, copy)
                    yield controls.run_control(lab, ticket, kind, copy)
                now.at(ticket.index + 1)
        except (NonFiniteLoss, RanksDiffer) as error:
            raise type(error)(f"{now.where}: {error}") from error

    def trainings(self) -> int:
        """Return how many trainings the study plans, copies for probes included; 0 where the method does not say."""
        rounds, beside = getattr(self.method, "rounds", 0), 1 + len(controls.wanted(self.config))
        probes = [(getattr(probe, "copies", 1), getattr(probe, "rounds", [])) for probe in self.probes.values()]
        copies = [max([1, *(n for n, only in probes if k in (only or [k]))]) for k in range(rounds + 1)]
        return copies[0] + beside * sum(copies[1:]) if rounds else 0

    # -- a round's record -------------------------------------------------------------------------------------------

    def record(self, round: Round, previous: Round | None, lab: Lab) -> Row:
        """Measure a round, write its files, and return its row."""
        row = self.row(round, lab)
        bench = Bench(lab, self.history, partial(self.note_copy, round))
        row |= self.measuring(round, previous, bench)
        for name in row["collapsed_layers"]:
            self.warn_once(f"{name} is pruned empty: the study goes on, and collapsed_layers lists it")
        if round.search is not None:
            row |= round.search.facts
            self.folder.add_search(row, round.search.result["log"], round.search.snapshots)
        if isinstance(round.trained, Moved):
            self.folder.add_snapshots(row, round.trained.snapshots)
        if round.units is not None:
            row |= {"removed_units": list(round.ticket.removed), "units": len(round.units)}
            self.folder.add_units(row, round.units)
        parent = previous.mask.digest if previous is not None else None
        known = len(self.folder.rows)
        row = self.folder.add(row, self.details(round, parent, bench), round.mask, parent)
        if len(self.folder.rows) > known:
            self.attempts.left()
        return row

    def row(self, round: Round, lab: Lab) -> Row:
        """Return a round's line of the table (design, 4.2)."""
        mask, result = round.mask, round.trained.result
        searched = round.search.result["seconds"] if round.search else 0.0
        gone = lab.layers.weights_of(round.ticket.removed)
        never_pruned = [shape.numel() for name, shape in lab.weights.items() if name not in mask and name not in gone]
        return {
            "round": round.index,
            "control": round.control,
            "copy": round.copy,
            "density": mask.density,
            "density_weights": (mask.kept + sum(never_pruned)) / lab.total_weights,
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
            **round.trained.facts,
        }

    def details(self, round: Round, parent: str | None, bench: Bench) -> dict[str, Any]:
        """Return the details of a row: where its numbers come from."""
        trained, ticket = round.trained, round.trained.ticket  # whose mask is the one at the start
        return {
            "curve": trained.result["curve"],
            "stages": round.stages | bench.used,
            "digests": {
                "mask": round.mask.digest,
                "parent_mask": parent,
                "start": ticket.state.digest,
                "trained": trained.state.digest,
            },
            "ticket": {
                **{name: getattr(ticket, name) for name in ("step", "order_step", "steps", "hold_lr", "silent")},
                "optimizer": ticket.optimizer.digest if ticket.optimizer else None,
            },
            **self.provenance(bench).record(),
            **trained.notes,
        }

    def provenance(self, lab: Lab) -> Provenance:
        """Return the data, and the user's own code, that the numbers come from."""
        config = self.config
        parts = [config.model, config.method, config.criterion, config.probes, {"_target_": config.data._target_}]
        return Provenance(lab.dataset.name, lab.dataset.digest, own_code(parts))

    def note_copy(self, round: Round, number: int, trained: Trained | None) -> None:
        """Show on the terminal that a probe trains a copy of a round, or (`trained`) that this copy is finished."""
        now = self.terminal.progress
        if trained is None:
            now.at(round.index, f"{round.control} {round.copy} copy" if round.control else "copy", number)
        else:
            now.finished(trained.cached)

    def note_environment(self, then: dict[str, str]) -> None:
        """Warn that a reused stage was computed with other versions or on another machine (design, 4.7)."""
        for name, now in environment().items():
            if then.get(name) != now:
                self.warn_once(f"reused stages were computed with {name} {then.get(name)}, now {now}")

    def warn_once(self, text: str) -> None:
        """Log a warning, unless it was logged before."""
        if text not in self._warned:
            self._warned.add(text)
            LOG.warning("%s", text)
