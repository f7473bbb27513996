"""The training loop of every family."""

from __future__ import annotations

import copy
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any, Generic
from warnings import warn

import torch
from torch import Tensor, nn
from typing_extensions import TypeVar

from ..errors import Notice, UsageError, shown
from ..objective import Objective
from ..progress import Progress, silent
from ..random import derived_seed
from ..serialization import serialize
from .checkpoint import description_of, list_checkpoints, load_weights, read, save, tensors_in, weights
from .class_labels import with_checked_labels
from .config import Training
from .folder import Metrics, locked, reason, refuse_several, writable
from .optim import clip_gradients, learning_rate, optimizer, update_average
from .precision import uses_bfloat16
from .resume import first_few, optimizer_slots, other_settings, refuse_other_model, restore_data


class Interrupted(KeyboardInterrupt):
    """Raised on Ctrl-C or SIGTERM during training, after the current step and its checkpoint.

    Attributes:
        step: number of steps that were done.
        folder: the folder of the checkpoint; None if nothing is saved.
    """

    def __init__(self, step: int, folder: Path | None) -> None:
        super().__init__(f"stopped after step {step}")
        self.step, self.folder = step, folder


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
        watch: called with the averaged objective and the step every `config.watch_every` steps.

    Attributes:
        average: the objective with averaged weights, which `fit` returns: in evaluation mode, frozen.
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
        watch: Callable[[Trained, int], None] | None = None,
    ) -> None:
        if not isinstance(config, Training):
            raise UsageError(f"config={shown(config)}: give Training(steps=...)")
        if not hasattr(objective, "denoiser"):
            kind = type(objective).__name__
            raise UsageError(
                f"{kind} is not an objective: give one of a denoiser, such as DenoisingLoss.simple(Learned(network, "
                "schedule))"
            )
        if any(p.is_meta for p in objective.parameters()):
            raise UsageError(
                "the objective lies on the device meta, which holds no weights: allocate them with "
                "to_empty(device=...) and initialize them"
            )
        if not hasattr(objective.denoiser, "corruption"):
            raise UsageError(
                f"{type(objective.denoiser).__name__} is a network, not a denoiser: give Learned(network, schedule)"
            )
        refuse_several()
        refuse_wrapped(objective)
        self.config, self.experiment, self.progress, self.watch = config, experiment, progress, watch
        self.device = config.chosen_device()
        self.folder = None if folder is None else writable(folder)
        if folder is not None:  # raise errors of saving now, not after an hour of training
            for part in (objective, config, experiment):
                serialize(part)
            weights(objective)
        self.objective = objective.to(self.device)
        self.average = copy.deepcopy(self.objective).eval().requires_grad_(False)
        self.parameters = [p for p in self.objective.parameters() if p.requires_grad]
        if not self.parameters:
            raise UsageError("the objective has no parameter to train: set requires_grad=True for some")
        self.optimizer = optimizer(self.parameters, config)
        self.step = 0

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
            Interrupted: on Ctrl-C, after a checkpoint of the current step.
            FloatingPointError: where no gradient since the last line of the log was finite.
        """
        with nullcontext() if self.folder is None else locked(self.folder):
            self._open(batches, resume)
            return self._fit(batches)

    def _fit(self, batches: Iterable[dict[str, Tensor]]) -> Trained:
        config, objective, stream, log = (
            self.config,
            self.objective.train(),
            with_checked_labels(self.objective, batches),
            Log(self.folder, self.step),
        )
        noise, forked = torch.Generator(self.device), [self.device] if self.device.type == "cuda" else []
        with interruption() as interrupted, torch.random.fork_rng(devices=forked):
            for step in self.progress(range(self.step, config.steps), config.steps - self.step, "training"):
                batch = {
                    name: torch.as_tensor(value).to(self.device, non_blocking=True)
                    for name, value in next_batch(stream, step).items()
                }
                # Dropout and noise are functions of the step, so that a resumed run draws the same.
                torch.manual_seed(derived_seed(config.seed, "dropout", step))
                noise.manual_seed(derived_seed(config.seed, "noise", step))
                with torch.autocast(
                    self.device.type, torch.bfloat16, enabled=uses_bfloat16(config.bfloat16, self.device)
                ):
                    loss = objective(**batch, generator=noise)
                loss.total.mean().backward()
                norm = clip_gradients(self.parameters, config.clip)
                for group in self.optimizer.param_groups:
                    group["lr"] = learning_rate(config, step)
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
                update_average(self.average, objective, config.ema, step)
                self.step = step + 1
                log.add(loss.total, loss.parts, norm)
                with self._writing():
                    if self.step % config.log_every == 0 or self.step == config.steps:
                        log.write(self.step, learning_rate(config, step))
                    stop = interrupted()
                    if self.step % config.save_every == 0 or self.step == config.steps or stop:
                        self._save(batches)
                    if stop:
                        raise Interrupted(self.step, self.folder)
                    if self.watch and config.watch_every and self.step % config.watch_every == 0:
                        self.watch(self.average, self.step)
        return self.average

    def _open(self, batches: Any, resume: bool) -> None:
        if self.folder is None:
            return
        # As above: the state of the batches is part of a checkpoint, too.
        description_of(self.objective, optimizer=None, step=0, config=None, experiment=None, batches=batches)
        found = list_checkpoints(self.folder / "checkpoints")
        if not found:
            return
        if not resume:
            raise UsageError(
                f"{self.folder} already has a run: continue it (--resume, resume=True), or choose another folder"
            )
        description, tensors = read(found[-1])
        notes = refuse_other_model(self.folder, description, tensors, self.objective)
        notes += restore_data(self.folder, description, batches)
        slots, more = optimizer_slots(found[-1], description, tensors, self.objective, self.parameters)
        load_weights(self.objective, tensors_in(tensors, "objective"), found[-1])
        load_weights(self.average, tensors_in(tensors, "average"), found[-1])
        self.optimizer.load_state_dict({"state": slots, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.step, notes = description["step"], notes + more
        if lines := other_settings(description, self.config, self.experiment):
            effect = (
                "used from now on" if self.step < self.config.steps else "without effect, because the run is finished"
            )
            notes.append(f"other settings ({first_few(lines)}): {effect}")
        if self.step > self.config.steps:
            notes.append(f"it has {self.step} steps, more than steps={self.config.steps}, and is not trained further")
        if notes:
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
                f"({reason(error)}): {saved}; free disk space, and {then}"
            ) from error

    def _save(self, batches: Any) -> None:
        if self.folder is not None:
            save(
                self.folder,
                objective=self.objective,
                average=self.average,
                optimizer=self.optimizer,
                step=self.step,
                config=self.config,
                experiment=self.experiment,
                batches=batches,
            )


class Log:
    """Averages the loss between lines of the log on the device, so that no step waits for it.

    Args:
        folder: the run's folder, to whose `metrics.jsonl` lines are appended; None writes nothing.
        step: number of steps that were done before.
    """

    def __init__(self, folder: Path | None, step: int) -> None:
        self.metrics = None if folder is None else Metrics(folder, step)
        self.rows: list[dict[str, Tensor]] = []
        self.start = time.perf_counter() - (self.metrics.seconds if self.metrics else 0)

    def add(self, total: Tensor, parts: dict[str, Tensor], norm: Tensor) -> None:
        """Adds one step: the loss and its parts of each example, `(B,)`, and the norm of the gradient, a scalar."""
        self.rows.append(
            {"loss": total.detach().mean()} | {k: v.detach().mean() for k, v in parts.items()} | {"gradient_norm": norm}
        )

    def write(self, step: int, rate: float) -> None:
        """Writes the means since the last line; steps whose loss or gradient was not finite are only counted.

        Raises:
            FloatingPointError: where no gradient since the last line was finite.
        """
        finite = [r for r in self.rows if bool(torch.isfinite(r["gradient_norm"]) & torch.isfinite(r["loss"]))]
        if not finite:
            raise FloatingPointError(
                f"no gradient of the last {len(self.rows)} steps was finite: lower the learning rate, or check the data"
            )
        means = {k: float(torch.stack([r[k] for r in finite]).mean()) for k in finite[0]}
        if self.metrics is not None:
            seconds = round(time.perf_counter() - self.start, 3)
            self.metrics.write(
                step=step, **means, learning_rate=rate, skipped=len(self.rows) - len(finite), seconds=seconds
            )
        self.rows = []


def refuse_wrapped(module: nn.Module) -> None:
    """Refuses modules that distribute a network over several devices.

    Raises:
        UsageError: with the remedy.
    """
    for part in module.modules():
        if (name := type(part).__name__) in ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel"):
            raise UsageError(
                f"the network is wrapped in {name}, and training runs on one device: give the network itself, which is "
                "its .module"
            )


@contextmanager
def interruption() -> Iterator[Callable[[], bool]]:
    """Within the block, Ctrl-C and SIGTERM only make the yielded function return True, so that a step is completed."""
    received: list[int] = []
    if current_thread() is not main_thread():
        yield lambda: False
        return
    before = {
        s: signal.signal(s, lambda number, frame: received.append(number)) for s in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def next_batch(stream: Iterator[Any], step: int) -> Mapping[str, Tensor]:
    """Returns the next batch of the stream, for step `step`.

    Raises:
        UsageError: if the stream has ended, or the batch is not a dict with x0.
    """
    batch = next(stream, None)
    if batch is None:
        raise UsageError(
            f"the batches ended at step {step}: give an endless iterable, such as Batches(...), or as many as steps"
        )
    if not isinstance(batch, Mapping) or "x0" not in batch:
        found = (
            f"a dict of {', '.join(sorted(map(str, batch)))}" if isinstance(batch, Mapping) else type(batch).__name__
        )
        such = '({"x0": x, "label": label} for x, label in loader)'
        raise UsageError(
            f'a batch is {found}: give dicts of tensors with "x0" and the conditions by name, such as {such}'
        )
    return batch
