"""Checks of a run that look at its log, its settings and its weights: what looks wrong, and what to try."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..shared.serialization import deserialize
from ..shared.training import Checkpoint, Training
from ..shared.training.averages import Average
from ..shared.training.folder import is_number, read_metrics
from ..shared.training.optim import learning_rate

YOUNG = 0.01
"""Share of the initial weights in the averaged ones from which on the average is too young."""
FEW = 8
"""Number of lines of the log, or of values in it, below which they are not judged."""


class Check(NamedTuple):
    """What one check has found.

    Attributes:
        figure: what was looked at, with its figure.
        wrong: what looks wrong, with the figure, and what to try; an empty text if nothing does.
    """

    figure: str
    wrong: str = ""


@dataclass(frozen=True)
class Run:
    """A run as the checks see it.

    Attributes:
        folder: its folder.
        lines: the lines of its log.
        checkpoint: its newest checkpoint.
        config: its settings of training; None for weights that were imported.
    """

    folder: Path
    lines: list[dict[str, Any]]
    checkpoint: Checkpoint
    config: Training | None

    @classmethod
    def of(cls, folder: Path, checkpoint: Checkpoint) -> Run:
        """Returns the run of a folder whose checkpoint is loaded."""
        stored = checkpoint.description["config"]
        config = None if stored is None else deserialize(stored)
        return cls(folder, read_metrics(folder / "metrics.jsonl"), checkpoint, config)

    def values(self, name: str) -> list[float]:
        """Returns a quantity of all lines of the log that have it."""
        return [float(line[name]) for line in self.lines if is_number(line.get(name)) and math.isfinite(line[name])]

    def late(self, name: str) -> list[float]:
        """Returns a quantity of the second half of the lines that have it."""
        values = self.values(name)
        return values[len(values) // 2 :]


def finite_weights(run: Run) -> Check:
    """Looks for weights that are NaN or infinite."""
    found = {
        name: value
        for name, value in run.checkpoint.tensors.items()
        if not name.startswith("optimizer.") and value.is_floating_point()
    }
    broken = [name for name, value in found.items() if not bool(torch.isfinite(value).all())]
    figure = f"{len(found) - len(broken)} of {len(found)} tensors of weights are finite"
    if not broken:
        return Check(figure)
    return Check(
        figure,
        f"{len(broken)} of {len(found)} tensors of weights have NaN or infinite numbers, such as {broken[0]}: delete "
        "this checkpoint and continue from an earlier one, with a lower --training.learning-rate",
    )


def age_of_average(run: Run) -> Check | None:
    """Looks at the share of the initial weights in the averaged ones."""
    if run.config is None or not isinstance(run.config.ema, Average):
        return None
    steps, batch = run.checkpoint.step, int((run.checkpoint.description["batches"] or {}).get("batch", 1))
    average, log_share = run.config.ema, 0.0
    for step in range(steps):
        decay = average.decay(step, batch)
        log_share += math.log(decay) if decay > 0 else -math.inf
        if log_share < -20:
            break
    share, last = math.exp(log_share), average.decay(max(steps - 1, 0), batch)
    half_life = math.log(2) / -math.log(last) if 0 < last < 1 else 0.0
    figure = f"averaged weights contain {share:.1%} of the initial ones, half-life {half_life:,.0f} steps"
    if share <= YOUNG:
        return Check(figure)
    shorter = 0.5 ** (20 / max(steps, 20))
    return Check(
        figure,
        f"the averaged weights are too young: they still contain {share:.0%} of the initial ones (half-life "
        f"{half_life:,.0f} steps, {steps:,} steps done): train longer, or with a shorter average, such as "
        f"--training.ema {shorter:.4g}; until then sample with --average raw",
    )


def peak_learning_rate(run: Run) -> Check | None:
    """Looks at whether the learning rate reaches its peak."""
    if run.config is None:
        return None
    config = run.config
    steps = {round(n * (config.steps - 1) / 1000) for n in range(1001)}
    steps |= {min(max(s, 0), config.steps - 1) for s in ((config.warmup or 0) - 1, config.steps - config.cooldown)}
    peak = max(learning_rate(config, step) for step in steps)
    figure = f"learning rate reaches {peak / config.learning_rate:.0%} of {config.learning_rate:g}"
    if peak >= 0.98 * config.learning_rate:
        return Check(figure)
    return Check(
        figure,
        f"the learning rate reaches only {peak:.3g} of {config.learning_rate:g}, because warm-up ({config.warmup}) and "
        f"cool-down ({config.cooldown}) take more than the {config.steps:,} steps: give smaller --training.warmup and "
        "--training.cooldown",
    )


def skipped_gradients(run: Run) -> Check | None:
    """Looks at the share of steps whose gradient was not finite."""
    skipped = run.values("skipped")
    if not skipped or not run.lines:
        return None
    steps = max(float(run.lines[-1]["step"]), 1.0)
    share = sum(skipped) / steps
    figure = f"{share:.1%} of the steps had a gradient that was not finite"
    if share <= 0.01:
        return Check(figure)
    return Check(
        figure,
        f"{share:.1%} of the steps ({sum(skipped):,.0f}) were skipped, because their gradient was not finite: give a "
        "lower --training.learning-rate, --training.precision float32, or look for bad examples (unnoise check-data)",
    )


def clipped_gradients(run: Run) -> Check | None:
    """Looks at the share of steps whose gradient was clipped."""
    norms = run.late("gradient_norm")
    if run.config is None or math.isinf(run.config.clip) or len(norms) < FEW:
        return None
    clip = run.config.clip
    shares = run.late("clipped") or [float(norm > clip) for norm in norms]
    share, norm = mean(shares), median(norms)
    figure = f"{share:.0%} of the later steps were clipped (norm {norm:.3g}, clip {clip:g})"
    if share <= 0.95:
        return Check(figure)
    return Check(
        figure,
        f"{share:.0%} of the later steps had their gradient clipped (median norm {norm:.3g}, clip {clip:g}), so that "
        f"only its direction counts: give --training.clip {2 * norm:.2g}, or a lower --training.learning-rate if the "
        "norm has grown",
    )


def trend_of_loss(run: Run) -> Check | None:
    """Looks at whether the loss falls."""
    losses = run.values("loss")
    if len(losses) < FEW:
        return None
    n = len(losses)
    first, middle, last = losses[: -(-n // 10)], losses[n // 4 : n // 2], losses[-(n // 4) :]
    figure = f"loss {mean(first):.4g} at first, {mean(middle):.4g} in the second quarter, {mean(last):.4g} in the last"
    noise = 3 * math.hypot(error(middle), error(last))
    if mean(last) > mean(middle) + max(noise, 0.05 * abs(mean(middle))):
        return Check(
            figure,
            f"the loss rises: {mean(middle):.4g} in the second quarter of the run, {mean(last):.4g} in the last: give "
            "a lower --training.learning-rate, or a longer --training.warmup",
        )
    if mean(last) > mean(first) - 0.05 * abs(mean(first)):
        return Check(
            figure,
            f"the loss hardly falls: {mean(first):.4g} at first, {mean(last):.4g} in the last quarter of the run: give "
            "a higher --training.learning-rate, and look at what the network gets (unnoise check-data)",
        )
    return Check(figure)


def spikes_at_small_times(run: Run) -> Check | None:
    """Looks for spikes of the loss at times up to 1/4 that the loss at other times does not have."""
    ratios = {}
    for name in ("loss_q1", "loss_q2", "loss_q3", "loss_q4"):
        values = [abs(v) for v in run.late(name)]
        if len(values) >= FEW and median(values) > 0:
            ratios[name] = max(values) / median(values)
    if "loss_q1" not in ratios or len(ratios) < 2:
        return None
    small, others = ratios["loss_q1"], max(v for name, v in ratios.items() if name != "loss_q1")
    figure = f"largest loss at t < 1/4 is {small:.2g} times its median, {others:.2g} times at other times"
    if small <= 5 or small <= 3 * others:
        return Check(figure)
    return Check(
        figure,
        f"the loss at small times (t < 1/4) spikes up to {small:.2g} times its median, at other times up to "
        f'{others:.2g} times: give a bounded weight such as --loss.weight "min-snr(gamma=5)", a schedule with a larger '
        "t_min, or a lower --training.learning-rate",
    )


def waiting_for_data(run: Run) -> Check | None:
    """Looks at the share of time in which the device waits for data."""
    waits = run.late("data_wait")
    if len(waits) < 2:
        return None
    figure = f"waiting for data {mean(waits):.0%} of the time"
    if mean(waits) <= 0.2:
        return Check(figure)
    workers = run.config.workers if run.config is not None else 0
    more = f"--training.workers {max(2 * workers, 4)} (now {workers})"
    return Check(figure, f"the device waits for data {mean(waits):.0%} of the time: give {more}, or data in memory")


def utilization(run: Run) -> Check | None:
    """Looks at the share of the device's speed that is used."""
    used = run.late("flop_utilization")
    if len(used) < 2:
        return None
    figure = f"{mean(used):.0%} of the device's peak speed"
    if mean(used) >= 0.1:
        return Check(figure)
    tried = [
        "--training.precision bfloat16" * (run.config is not None and run.config.precision in ("float32", "tf32")),
        "--training.compile" * (run.config is not None and not run.config.compile),
        "a larger --data.batch",
    ]
    return Check(
        figure,
        f"the device is mostly idle: training uses {mean(used):.1%} of its peak speed: give "
        f"{', '.join(t for t in tried if t)}",
    )


def held_out_trend(run: Run) -> Check | None:
    """Looks at whether the loss on held-out examples rises while that on the training set falls."""
    points = [
        (line["step"], float(line["held_out_loss"]), float(line["loss"]))
        for line in run.lines
        if is_number(line.get("held_out_loss")) and is_number(line.get("loss"))
    ]
    if len(points) < 4:
        return None
    best = min(range(len(points)), key=lambda n: points[n][1])
    step, lowest, _ = points[best]
    last = mean([held_out for _, held_out, _ in points[-2:]])
    figure = f"held-out loss {lowest:.4g} at best (step {step:,}), {last:.4g} at the end"
    before = [line["loss"] for line in run.lines if is_number(line.get("loss")) and line["step"] <= step][-5:]
    after = run.values("loss")[-5:]
    later = len(points) - 1 - best
    if later < 2 or last <= lowest + 0.02 * abs(lowest) or mean(after) >= mean(before):
        return Check(figure)
    return Check(
        figure,
        f"the model overfits: held-out loss rose from {lowest:.4g} at step {step:,} to {last:.4g}, while the training "
        f"loss fell from {mean(before):.4g} to {mean(after):.4g}: sample from a checkpoint near step {step:,}, and "
        "train with dropout, augmentation or more data",
    )


CHECKS: tuple[Callable[[Run], Check | None], ...] = (
    finite_weights,
    age_of_average,
    peak_learning_rate,
    skipped_gradients,
    clipped_gradients,
    trend_of_loss,
    spikes_at_small_times,
    held_out_trend,
    waiting_for_data,
    utilization,
)
"""The checks that need the run's folder alone."""


def report(name: str, checks: Sequence[Check], notes: Sequence[str] = ()) -> str:
    """Returns the report on the checks of a run: a line for each thing that looks wrong, or the figures if none does.

    Args:
        name: the run.
        checks: what the checks have found.
        notes: what was not looked at, and why.
    """
    wrong = [check.wrong for check in checks if check.wrong]
    if wrong:
        head = f"{name}: {len(wrong)} of {len(checks)} checks found something"
        lines = [f"- {text}" for text in wrong]
    else:
        head = f"{name}: nothing looks wrong in {len(checks)} checks"
        lines = [f"- {check.figure}" for check in checks]
    return "\n".join([head, *lines, *(f"not looked at: {note}" for note in notes)])


def mean(values: Sequence[float]) -> float:
    """Returns the mean of numbers."""
    return sum(values) / len(values)


def median(values: Sequence[float]) -> float:
    """Returns the middle one of numbers in increasing order."""
    return sorted(values)[len(values) // 2]


def error(values: Sequence[float]) -> float:
    """Returns the standard error of the mean of numbers; 0 for a single one."""
    if len(values) < 2:
        return 0.0
    center = mean(values)
    return math.sqrt(sum((v - center) ** 2 for v in values) / (len(values) - 1) / len(values))
