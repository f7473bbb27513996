"""The training loop of every family."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Generic, cast
from warnings import warn

import torch
from torch import Tensor
from typing_extensions import TypeVar

from ..data.feeding import RandomAccess, Streamed, feed
from ..distributed import is_main, own_rows, restarted, take_from_main, world_size
from ..errors import Interrupted, Notice, UsageError
from ..objective import Objective
from ..progress import Progress, silent
from ..serialization import serialize
from .averages import Average, averaging
from .checkpoint import HELD_OUT, list_checkpoints, load_weights
from .checks import next_batch, refuse_uneven, refuse_untrainable
from .class_labels import with_checked_labels
from .config import Training
from .digests import tensors_in
from .estimate import Estimate
from .folder import locked, reason, remedy, writable
from .held_out import HeldOut
from .log import Log
from .named import parameters, weights
from .optim import learning_rate, optimizer
from .parallel import assembled, keep_activations, laid_like, recompute
from .posthoc import drop_later, write_snapshot
from .resume import (
    first_few,
    log_notes,
    newest_of_run,
    optimizer_slots,
    other_settings,
    refuse_other_launch,
    refuse_other_model,
    restore_averages,
    restore_data,
)
from .saving import consolidate, description_of, set_aside, state_of, write
from .step import TrainingStep
from .stopping import AT_ONCE, GO_ON, Interruption, TooLate, agreement
from .trackers import Tracker, Trackers, flat, trackers_of

SEARCH = 30
"""The most steps in a row that float16 may skip while it finds the scale of the loss, which each of them halves."""
Trained = TypeVar("Trained", bound=Objective[Any])


class Trainer(Generic[Trained]):
    """Trains an objective: AdamW, warm-up, gradient clipping, averaged weights, checkpoints, `metrics.jsonl`.

    Generic in the objective, which `fit` returns with averaged weights.

    Args:
        objective: the loss to minimize, moved to `config.device`; its network is trained in place.
        config: settings of the trainer.
        folder: the run's folder; None writes nothing.
        experiment: a serializable dataclass, the recipe, which the command line reads from the checkpoint.
        progress: `(items, total, label) -> items`, such as `bar`; reports nothing by default.
        watch: called with the averaged objective and the step every `config.watch_every` steps; may return the path of
            a picture, which trackers receive.
        held_out: held-out examples, whose loss under averaged weights is logged every `config.held_out_every` steps.
        trackers: trackers of your own, beside those of `config.trackers`.
        say: receives one line with an estimate of the whole run, after twenty steps; None for no estimate.

    Attributes:
        averages: the objective with averaged weights, by `config.ema` and `config.averages`.
        step: number of steps that were done.

    Raises:
        UsageError: for an objective that cannot be trained or saved, and in one of several processes.
    """

    def __init__(
        self,
        objective: Trained,
        config: Training,
        *,
        folder: Path | str | None = None,
        experiment: Any = None,
        progress: Progress = silent,
        watch: Callable[[Trained, int], Path | None] | None = None,
        held_out: HeldOut | None = None,
        trackers: Sequence[Tracker] = (),
        say: Callable[[str], Any] | None = None,
    ) -> None:
        refuse_untrainable(objective, config)
        self.config, self.experiment, self.progress, self.watch = config, experiment, progress, watch
        self.held_out, self.trackers, self.say = held_out, (*trackers_of(config.trackers), *trackers), say
        self.laws: tuple[Average, ...] = (cast(Average, config.ema), *config.averages)
        self.begun, self.logged = [0 for _ in self.laws], None
        self.device, self.step = config.chosen_device(), 0
        self.folder = None if folder is None else writable(folder)
        self.template = copy.deepcopy(objective) if config.parallel.sharded else objective
        if folder is not None:  # raise errors of saving now, not after an hour of training
            for part in (objective, config, experiment):
                serialize(part)
            weights(objective)
        self.objective = objective.to(self.device)
        take_from_main((*self.objective.parameters(), *self.objective.buffers()))  # without a seed they differ
        if config.channels_last:
            self.objective.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.averages = [copy.deepcopy(self.objective).eval().requires_grad_(False) for _ in self.laws]
        for module in (self.objective, *self.averages):
            config.parallel.divide(module, self.device)
        self.parameters = [p for p in self.objective.parameters() if p.requires_grad]
        if not self.parameters:
            raise UsageError("the objective has no parameter to train: set requires_grad=True for some")
        self.optimizer = optimizer(self.parameters, config)
        self.compute = TrainingStep(self.objective, self.optimizer, config, self.device)

    @property
    def average(self) -> Trained:
        """The objective with averaged weights, undivided: every process calls this together."""
        first = self.averages[0]
        return cast(Trained, assembled(first, self.template).eval() if self.config.parallel.sharded else first)

    def fit(self, batches: Iterable[dict[str, Tensor]], *, resume: bool = False) -> Trained:
        """Trains to `config.steps` and returns the averaged objective.

        Args:
            batches: endless dicts of tensors, `x0` and conditions by name. Where they have `state_dict` and
                `load_state_dict`, their position is part of the checkpoint, and a resumed run continues bit for bit.
            resume: whether to continue from the folder's newest checkpoint, if it has one. The model and the data must
                be the run's; settings of training and the choice of trained parameters may change, and a `Notice`
                lists the changes.

        Raises:
            UsageError: for a folder that already has a run, unless it is resumed; a run of another model or other
                data; a folder into which another process trains; and a full disk, with the last step that is saved.
            Interrupted: on Ctrl-C and on SIGTERM, after a checkpoint of the current step where there is time for it.
            FloatingPointError: where no gradient since the last line of the log was finite.
        """
        with locked(self.folder) if self.folder is not None and is_main() else nullcontext():
            self._open(batches, resume)
            return self._fit(batches)

    def _fit(self, batches: Iterable[dict[str, Tensor]]) -> Trained:
        config, compute, objective = self.config, self.compute, self.objective.train()
        log = self._log()
        stream, first_steps = self._stream(batches, log), self._estimate()
        updates = [averaging(average, objective) for average in self.averages]
        with closing(log), self._running() as (stopping, next_action):
            for step in self.progress(range(self.step, config.steps), config.steps - self.step, "training"):
                with log.waiting():
                    size, batch = next(stream)
                loss = compute.loss(batch, step, size)
                norm = compute.update(step)
                for law, update in zip(self.laws, updates, strict=True):
                    update(law.decay(step, size))
                self.step = step + 1
                log.add(loss, norm)
                first_steps.step(self.step, log.apart)
                with self._writing():
                    more: dict[str, float] = {}
                    if self._held_out_due():
                        with log.pausing():
                            more[HELD_OUT] = self._held_out_loss()
                    if more or self._due(config.log_every):
                        log.write(self.step, learning_rate(config, step), **more)
                    if self._due(config.snapshot_every) and self.folder is not None:
                        with log.pausing():
                            write_snapshot(self.folder, self.step, self.laws, self.begun, self.averages)
                    action = next_action()
                    if action != AT_ONCE and (self._due(config.save_every) or action != GO_ON):
                        with log.pausing(), stopping.saving():
                            self._save(batches, log, more.get(HELD_OUT))
                    if action != GO_ON:
                        raise Interrupted(self.step, self.folder, stopping.late)
                    if self.watch and config.watch_every and self.step % config.watch_every == 0:
                        with log.pausing():
                            picture = self.watch(self.average, self.step)
                        if picture is not None:
                            log.image(self.step, "samples", picture)
        return self.average

    def _due(self, every: int) -> bool:
        """Returns whether something is due that happens every so many steps and at the end; 0 for never."""
        return every > 0 and (self.step % every == 0 or self.step == self.config.steps)

    def _held_out_due(self) -> bool:
        """Returns whether the held-out loss is due: by its own setting, and at each checkpoint, to know the best."""
        every = self.config.held_out_every if self.held_out is not None else 0
        return self._due(every) or (every > 0 and self._due(self.config.save_every))

    def _log(self) -> Log:
        """Returns the log of the run, with its trackers."""
        trackers = None
        if self.folder is not None and is_main() and self.trackers:
            settings = flat(serialize(self.config), "training") | flat(serialize(self.experiment), "recipe")
            trackers = Trackers(self.trackers, self.folder, settings, self.step)
        patience = SEARCH * self.compute.scaler.is_enabled()
        log = Log(self.folder, self.step, self.device, self.config.clip, trackers, patience)
        log.load_state_dict(self.logged)
        return log

    def _estimate(self) -> Estimate:
        """Returns what times the first steps."""
        say = self.say if is_main() else None
        tensors = partial(state_of, self.objective, self.averages, self.optimizer)
        best = self.held_out is not None and self.config.held_out_every > 0
        return Estimate(say, self.config, self.step, self.device, tensors, best)

    def _held_out_loss(self) -> float:
        assert self.held_out is not None
        average: Objective[Any] = self.average if self.config.parallel.sharded else self.averages[0]
        cast_ = partial(self.compute.precision.cast, self.device)
        return self.held_out.loss(average.to(self.device), self.device, cast_, self.compute.micro_batch)

    @contextmanager
    def _running(self) -> Iterator[tuple[Interruption, Callable[[], int]]]:
        """Prepares the devices, and yields what listens to signals and what returns the action after a step.

        Global random numbers and settings are restored after the block.
        """
        forked = [self.device] if self.device.type == "cuda" else []
        again = recompute(self.objective) if self.config.recompute else []
        try:
            with (
                Interruption(self.config.deadline) as stopping,
                agreement(stopping) as agreed,
                torch.random.fork_rng(devices=forked),
                self.compute.precision.products(),
            ):
                try:
                    yield stopping, agreed
                except TooLate:
                    raise Interrupted(self.step, self.folder, stopping.late) from None
        finally:
            keep_activations(again)

    def _stream(self, batches: Iterable[dict[str, Tensor]], log: Log) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Yields the number of examples in each global batch, and the rows of this process on its device."""
        images = torch.channels_last if self.config.channels_last else torch.preserve_format
        config, step = self.config, self.step
        known = batches.batch if isinstance(batches, RandomAccess | Streamed) else None
        if isinstance(batches, RandomAccess | Streamed):
            refuse_uneven(batches.batch)
            read = feed(batches, own_rows(batches.batch), config.workers, pin=self.device.type == "cuda")
        else:
            read = iter(batches)
        stream, first = with_checked_labels(self.objective, batches, read), True
        while True:
            batch = {k: torch.as_tensor(v) for k, v in next_batch(stream, step).items()}
            size = known or len(batch["x0"])
            if known is None and world_size() > 1:
                refuse_uneven(size)
                batch = {k: v[own_rows(size).start : own_rows(size).stop] for k, v in batch.items()}
            batch = {k: v.to(self.device, non_blocking=True) for k, v in batch.items()}
            if batch["x0"].ndim == 4:
                batch["x0"] = batch["x0"].contiguous(memory_format=images) if config.channels_last else batch["x0"]
            if first:
                log.begin(self.template, batch, size, self.compute.precision.name)
                self.compute.prepare(batch, size)
                first = False
            yield size, batch
            step += 1

    def _open(self, batches: Any, resume: bool) -> None:
        if self.folder is None:
            return
        self._described(batches)  # as above: the state of the batches is part of a checkpoint, too
        home = self.folder / "checkpoints"
        if not list_checkpoints(home):
            if restarted() and is_main():
                warn(Notice("torchrun has restarted the processes before the first checkpoint"), stacklevel=3)
            return
        if not (resume or restarted()):
            refuse_other_launch(self.folder, {})
        newest, description, tensors, damage = newest_of_run(self.folder)
        if not resume:
            refuse_other_launch(self.folder, description)
        notes = refuse_other_model(self.folder, description, tensors, self.template)
        notes += restore_data(self.folder, description, batches)
        slots, more = optimizer_slots(newest, description, tensors, self.objective, self.parameters)
        load_weights(self.objective, tensors_in(tensors, "objective"), newest)
        noted, self.begun = restore_averages(newest, description, tensors, self.averages, self.laws)
        placed = {n: {k: laid_like(v, self.parameters[n]) for k, v in found.items()} for n, found in slots.items()}
        self.optimizer.load_state_dict({"state": placed, "param_groups": self.optimizer.state_dict()["param_groups"]})
        if description.get("scaler") and self.compute.scaler.is_enabled():
            self.compute.scaler.load_state_dict(description["scaler"])
        self.logged = description.get("log")
        self.step, notes = description["step"], [*notes, *more, *noted]
        drop_later(self.folder, self.step)
        if lines := other_settings(description, self.config, self.experiment):
            effect = (
                "used from now on" if self.step < self.config.steps else "without effect, because the run is finished"
            )
            notes.append(f"other settings ({first_few(lines)}): {effect}")
        if self.step > self.config.steps:
            notes.append(f"it has {self.step} steps, more than steps={self.config.steps}, and is not trained further")
        notes += log_notes(self.folder, description) if is_main() else []
        if restarted():
            notes.append("torchrun has restarted the processes")
        if is_main() and damage:
            kept = [path.name for path in set_aside(home, int(newest.name))]
            notes.append(f"{'; '.join(damage)} and kept as {', '.join(kept)}")
        if notes and is_main():
            warn(Notice(f"the run in {self.folder} continues at step {self.step}: {'; '.join(notes)}"), stacklevel=3)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Within it an error of the disk ends the run in one line with the last step that is saved."""
        try:
            yield
        except OSError as error:
            if self.folder is None:
                raise
            found = list_checkpoints(self.folder / "checkpoints")
            saved = f"it is saved up to step {int(found[-1].name)}" if found else "no step of it is saved"
            then = "continue it (--resume, resume=True)" if found else "start again"
            raise UsageError(
                f"the run in {self.folder} stopped after step {self.step}, because the disk cannot be written "
                f"({reason(error)}): {saved}; {remedy(error)}, and {then}"
            ) from error

    def _described(self, batches: Any, **more: Any) -> dict[str, Any]:
        """Returns the content of `checkpoint.json`, without its digests."""
        trained = set(self.parameters)
        return description_of(
            self.template,
            step=self.step,
            config=self.config,
            experiment=self.experiment,
            batches=batches,
            frozen=[name for name, p in parameters(self.objective).items() if p not in trained],
            averages=self.laws,
            begun=self.begun,
            scaler=self.compute.scaler.state_dict() if self.compute.scaler.is_enabled() else None,
            **more,
        )

    def _save(self, batches: Any, log: Log, held_out: float | None) -> None:
        """Writes a checkpoint; the last one of divided weights is put together to one file."""
        logged = log.state_dict() if self.folder is not None else None  # by all processes together
        if self.folder is None or not (is_main() or self.config.parallel.sharded):
            return
        tensors, config = state_of(self.objective, self.averages, self.optimizer), self.config
        description = self._described(batches, held_out=held_out, logged=logged)
        written = write(self.folder, description, tensors, keep=config.keep, every=config.keep_every)
        if config.parallel.sharded and self.step == config.steps:
            consolidate(written)
