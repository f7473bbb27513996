"""The one training loop, for every family."""

from __future__ import annotations

import copy
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any
from warnings import warn

import torch
from torch import Tensor, nn

from ..errors import Notice, UsageError, shown
from ..objective import Objective
from ..progress import Progress, silent
from ..random import derived_seed
from ..serialization import serialize
from .checkpoint import description_of, fill, grouped, numbered, read, save, weights
from .classes import checked
from .config import Training
from .folder import Metrics, locked, refuse_several, said, writable
from .optim import clip_gradients, learning_rate, optimizer, update_average
from .precision import uses_bfloat16
from .resume import optimizer_slots, other_settings, place_data, refuse_other_model, several


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM during training, after the checkpoint of a whole step.

    Attributes:
        step: the steps done.
        folder: where they are saved; None if nothing is.
    """

    def __init__(self, step: int, folder: Path | None) -> None:
        super().__init__(f"stopped after step {step}")
        self.step, self.folder = step, folder


class Trainer:
    """Fits an objective: AdamW, warm-up, gradient clipping, averaged weights, checkpoints, `metrics.jsonl`.

    Args:
        objective: what to minimise; it is trained in place.
        config: how.
        folder: the run's folder; None writes nothing.
        experiment: a described dataclass to save beside the weights, for the command line.
        progress: how to report progress.
        watch: called with the averaged objective and the step every `config.watch_every` steps.

    Raises:
        UsageError: for what cannot be trained, or not be saved; and in one of several processes.
    """

    def __init__(
        self,
        objective: Objective,
        config: Training,
        *,
        folder: Path | str | None = None,
        experiment: Any = None,
        progress: Progress = silent,
        watch: Callable[[Objective, int], None] | None = None,
    ) -> None:
        if not isinstance(config, Training):
            raise UsageError(f"config={shown(config)}: give Training(steps=...)")
        if not hasattr(objective, "denoiser"):
            kind = type(objective).__name__
            raise UsageError(
                f"{kind} is not an objective: give one of a denoiser, such as Simple(Learned(network, schedule))"
            )
        if any(p.is_meta for p in objective.parameters()):
            raise UsageError(
                "the objective has no weights yet, for they lie on the device meta: give it some, to_empty(device=...)"
            )
        if not hasattr(objective.denoiser, "corruption"):
            raise UsageError(
                f"{type(objective.denoiser).__name__} is a network: make it a denoiser first, Learned(network, schedule)"
            )
        refuse_several()
        refuse_wrapped(objective)
        self.config, self.experiment, self.progress, self.watch = config, experiment, progress, watch
        self.device = config.chosen_device()
        self.folder = None if folder is None else writable(folder)
        if folder is not None:  # what cannot be saved must not show after an hour of training
            for part in (objective, config, experiment):
                serialize(part)
            weights(objective)
        self.objective = objective.to(self.device)
        self.average = copy.deepcopy(self.objective).eval().requires_grad_(False)
        self.parameters = [p for p in self.objective.parameters() if p.requires_grad]
        if not self.parameters:
            raise UsageError("no parameter of the objective is trained: each has requires_grad=False, or there is none")
        self.optimizer = optimizer(self.parameters, config)
        self.step = 0

    def fit(self, batches: Iterable[dict[str, Tensor]], *, resume: bool = False) -> Objective:
        """Trains to `config.steps` and returns the averaged objective.

        Args:
            batches: endless dicts of tensors, `x0` and conditions by name. Where it has `state_dict` and
                `load_state_dict`, its position is part of the checkpoint, and a resumed run continues bit for bit.
            resume: go on from the folder's newest checkpoint, if it has one. The model and the data must be the run's;
                settings of training and which parameters are trained may change, and a `Notice` says what did.

        Raises:
            UsageError: for a folder that holds a run already, unless it is resumed; a run of another model or other
                data; a folder into which another process trains; and a disk that is full, with what is saved.
            Interrupted: on Ctrl-C, after a checkpoint of the last whole step.
            FloatingPointError: when every gradient since the last log line was not finite.
        """
        with nullcontext() if self.folder is None else locked(self.folder):
            self._open(batches, resume)
            return self._fit(batches)

    def _fit(self, batches: Iterable[dict[str, Tensor]]) -> Objective:
        config, objective, stream, log = (
            self.config,
            self.objective.train(),
            checked(self.objective, batches),
            Log(self.folder, self.step),
        )
        noise, forked = torch.Generator(self.device), [self.device] if self.device.type == "cuda" else []
        with interruption() as interrupted, torch.random.fork_rng(devices=forked):
            for step in self.progress(range(self.step, config.steps), config.steps - self.step, "training"):
                batch = {
                    name: torch.as_tensor(value).to(self.device, non_blocking=True)
                    for name, value in drawn(stream, step).items()
                }
                # Dropout and noise are functions of the step, so a resumed run draws the same.
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
        # As above: what the batches say of themselves is part of a checkpoint, too.
        description_of(self.objective, optimizer=None, step=0, config=None, experiment=None, batches=batches)
        found = numbered(self.folder / "checkpoints")
        if not found:
            return
        if not resume:
            raise UsageError(
                f"{self.folder} holds a run already: go on with it (--resume, resume=True), or choose another folder"
            )
        description, tensors = read(found[-1])
        told = refuse_other_model(self.folder, description, tensors, self.objective)
        told += place_data(self.folder, description, batches)
        slots, more = optimizer_slots(found[-1], description, tensors, self.objective, self.parameters)
        fill(self.objective, grouped(tensors, "objective"), found[-1])
        fill(self.average, grouped(tensors, "average"), found[-1])
        self.optimizer.load_state_dict({"state": slots, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.step, told = description["step"], told + more
        if lines := other_settings(description, self.config, self.experiment):
            goes_on = (
                "they hold from here on" if self.step < self.config.steps else "it is finished, and stays as it is"
            )
            told.append(f"other settings ({several(lines)}): {goes_on}")
        if self.step > self.config.steps:
            told.append(f"it has {self.step} steps, more than steps={self.config.steps}, and nothing is trained")
        if told:
            warn(Notice(f"the run in {self.folder} goes on at step {self.step}: {'; '.join(told)}"), stacklevel=3)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Within it a disk that is full, or gone, ends the run in one line that says what is saved."""
        try:
            yield
        except OSError as error:
            if self.folder is None:
                raise
            found = numbered(self.folder / "checkpoints")
            saved = f"it is saved up to step {int(found[-1].name)}" if found else "nothing of it is saved"
            then = "go on with it (--resume, resume=True)" if found else "start again"
            raise UsageError(
                f"the run in {self.folder} stopped after step {self.step}, for it cannot be written ({said(error)}): {saved}; make room, "
                f"and {then}"
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
    """Averages the loss on the device between lines, so that no step waits for it."""

    def __init__(self, folder: Path | None, step: int) -> None:
        self.metrics = None if folder is None else Metrics(folder, step)
        self.rows: list[dict[str, Tensor]] = []
        self.start = time.perf_counter() - (self.metrics.seconds if self.metrics else 0)

    def add(self, total: Tensor, parts: dict[str, Tensor], norm: Tensor) -> None:
        """Notes one step."""
        self.rows.append(
            {"loss": total.detach().mean()} | {k: v.detach().mean() for k, v in parts.items()} | {"gradient_norm": norm}
        )

    def write(self, step: int, rate: float) -> None:
        """Writes the means since the last line; steps whose gradient was not finite are counted instead."""
        finite = [r for r in self.rows if bool(torch.isfinite(r["gradient_norm"]) & torch.isfinite(r["loss"]))]
        if not finite:
            raise FloatingPointError(
                f"no gradient of the last {len(self.rows)} steps was finite: lower the learning rate, or look at the data"
            )
        means = {k: float(torch.stack([r[k] for r in finite]).mean()) for k in finite[0]}
        if self.metrics is not None:
            seconds = round(time.perf_counter() - self.start, 3)
            self.metrics.write(
                step=step, **means, learning_rate=rate, skipped=len(self.rows) - len(finite), seconds=seconds
            )
        self.rows = []


def refuse_wrapped(module: nn.Module) -> None:
    """Refuses modules that spread a network over several devices.

    Raises:
        UsageError: with what to do.
    """
    for part in module.modules():
        if (name := type(part).__name__) in ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel"):
            raise UsageError(
                f"the network is wrapped in {name}, and training runs on one device: give the network itself, its .module"
            )


@contextmanager
def interruption() -> Iterator[Callable[[], bool]]:
    """Within the block, Ctrl-C and SIGTERM are noted instead of striking in the middle of a step."""
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


def drawn(stream: Iterator[Any], step: int) -> dict[str, Tensor]:
    """The next batch.

    Raises:
        UsageError: where there is none, or it is no dict that holds x0.
    """
    batch = next(stream, None)
    if batch is None:
        raise UsageError(
            f"the batches ended at step {step}: give an endless iterable, such as Batches(...), or as many as steps"
        )
    if not isinstance(batch, Mapping) or "x0" not in batch:
        held = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
        such = '({"x0": x, "label": label} for x, label in loader)'
        raise UsageError(
            f'a batch is {held}: give dicts of tensors with "x0" and the conditions by name, such as {such}'
        )
    return batch
