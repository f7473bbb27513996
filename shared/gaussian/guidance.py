"""Guidance by a condition or a classifier. A guided denoiser is a denoiser, so every Gaussian sampler can use it.

The strength of classifier-free guidance is given in two ways: w of Ho & Salimans, 0 without guidance, and s = 1 + w of
GLIDE and most later code, 1 without guidance. Here it is always w. The scale of classifier guidance is that of the
gradient, 0 without guidance and 1 for Bayes' rule.
"""

from __future__ import annotations

import copy
import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from ..calling import call_network, one_per_example, refuse_signature
from ..denoiser import Denoiser, accepted_conditions
from ..errors import UsageError
from ..gradients import gradients
from ..null_conditions import HasNull, refuse_missing_condition, refuse_networks_without_null, refuse_without_null
from ..objective import D, Loss, Objective, ObjectiveWrapper, TimeSampling, independent
from ..random import Source, uniform
from ..serialization import serializable
from ..tensors import at_least_float32, checked_time, exact, is_integer, like, refuse_non_float
from ..time_inputs import TimeInput, thousandths
from .change_of_schedule import equal_snr_time, on_schedule, range_of_time_input
from .denoiser import DenoiserWrapper, Estimate, GaussianDenoiser
from .schedule import Schedule, refuse_disorder, refuse_zero_snr

EDGE = 1e-6
"""Tolerance of log-SNR at the ends of a guidance interval."""


@serializable("gaussian.ClassifierFree", formerly="unnoise.shared.guidance.ClassifierFree")
class ClassifierFree(DenoiserWrapper):
    r"""Classifier-free guidance, `(1 + w) E[x_0 | x_t, c] - w E[x_0 | x_t]`.

    c is the condition. Ho & Salimans 2022, eq. 6, there for the noise, whose combination is the same. The variance
    output is that of the conditional estimate, as in GLIDE. A call takes two network evaluations where guidance acts,
    and one elsewhere.

    Args:
        denoiser: a conditional denoiser, trained with `ConditionDropout`.
        w: the strength, 0 without guidance; the "guidance scale" s of other code is 1 + w.
        condition: the name of the condition to strengthen; all others are used in both estimates.
        null: what stands for no condition, for one example, as in training: a number or a tensor. None leaves the
            condition out, and the networks of this package then use their own null.
        low, high: guidance acts for low < t <= high, with 0 <= low < high <= 1; Kynkaanniemi et al. 2024 guide neither
            the noisiest nor the cleanest times. On another schedule the interval of log-SNR stays the same. The ends
            are exact up to 1e-6 of log-SNR.
        rescale: phi in [0, 1], how far the guided x_0 is scaled to the standard deviation of the conditional one, for
            each example (Lin et al. 2023, section 3.4, who rescale the network's output, by 0.7).

    Raises:
        UsageError: if the denoiser's network does not take the condition, or does not define its null, and for low,
            high and rescale outside of their ranges. When called, if the condition is missing.
    """

    def __init__(
        self,
        denoiser: GaussianDenoiser,
        w: float,
        *,
        condition: str = "label",
        null: Tensor | int | None = None,
        low: float = 0.0,
        high: float = 1.0,
        rescale: float = 0.0,
    ) -> None:
        super().__init__(denoiser)
        refuse_missing_condition(denoiser, condition)
        if null is None:
            refuse_networks_without_null(denoiser, condition)
        elif not isinstance(null, int | Tensor):
            raise UsageError(
                f"null={null!r}: give what stands for no {condition} for one example, a number or a tensor, as in "
                "training"
            )
        if not 0 <= low < high <= 1 or not 0 <= rescale <= 1:
            raise UsageError(
                f"low={low}, high={high}, rescale={rescale}: give 0 <= low < high <= 1, and rescale from 0 to 1"
            )
        self.w, self.condition, self.null, self.rescale = w, condition, null, rescale
        ends = denoiser.corruption.log_snr(torch.tensor([high, low], dtype=torch.float64)).tolist()
        within = low >= denoiser.corruption.t_min * (1 - EDGE)  # before it, the log-SNR of a table is that of row 1
        self.noisiest, self.cleanest = ends[0] if high < 1 else -math.inf, ends[1] if within else math.inf

    @property
    def low(self) -> float:
        """The time of the present schedule above which guidance acts."""
        return 0.0 if self.cleanest == math.inf else self._time(self.cleanest)

    @property
    def high(self) -> float:
        """The time of the present schedule up to which guidance acts."""
        return 1.0 if self.noisiest == -math.inf else self._time(self.noisiest)

    def acts(self, t: Tensor) -> Tensor:
        """Returns whether guidance acts at t, bool, of the shape of t."""
        log_snr = self.corruption.log_snr(exact(t))
        return (log_snr < self.cleanest - EDGE) & (log_snr >= self.noisiest - EDGE)

    def estimate(self, x_t: Tensor, t: Tensor, **cond: Any) -> Estimate:
        if self.condition not in cond:
            raise UsageError(
                f"guidance needs the condition {self.condition}: give {self.condition}=..., "
                "or use the denoiser without guidance"
            )
        conditional = self.denoiser.estimate(x_t, t, **cond)
        acts = self.acts(t)
        if t.ndim == 0 and t.device.type == "cpu" and (self.w == 0 or not acts):
            return conditional
        unconditional = self.denoiser.estimate(x_t, t, **self._without(cond, x_t))
        # Both estimates have the same a and b, and those of the combination are (1 + w) a - w a = a, and b.
        out = conditional.out + like(acts.to(x_t.dtype) * self.w, x_t) * (conditional.out - unconditional.out)
        guided = conditional._replace(out=out)
        return self._rescaled(guided, conditional, x_t) if self.rescale else guided

    def _without(self, cond: dict[str, Any], x_t: Tensor) -> dict[str, Any]:
        """Returns the conditions with the null in place of the one that is strengthened."""
        others = {name: value for name, value in cond.items() if name != self.condition}
        if self.null is not None:
            if isinstance(self.null, int):
                null = torch.full_like(cond[self.condition][0], self.null)
            else:
                null = self.null.to(x_t.device)
            others[self.condition] = null.expand(len(x_t), *null.shape)
        return others

    def _rescaled(self, guided: Estimate, conditional: Estimate, x_t: Tensor) -> Estimate:
        mean = guided.mean(x_t)
        wanted, has = (x.flatten(1).std(1, correction=0) for x in (conditional.mean(x_t), mean))
        share = like(wanted / has.clamp(min=torch.finfo(has.dtype).tiny), x_t)
        return Estimate.of_mean(mean * (self.rescale * share + 1 - self.rescale), guided.variance_output)

    def _time(self, log_snr: float) -> float:
        return float(self.corruption.time(torch.tensor(log_snr, dtype=torch.float64)))


@serializable(
    "gaussian.NoisyClassifier", formerly="unnoise.shared.guidance.NoisyClassifier", renamed={"label": "time_input"}
)
class NoisyClassifier(Denoiser[Schedule]):
    """A classifier of noisy data: a network for `log p(label | x_t)`, `(B, K)`.

    Called with x_t `(B, ...)` and a time t, a scalar or `(B,)`; returns normalized log-probabilities of the K classes,
    float32 or better. Under a schedule other than that of training, the network is evaluated at the training time of
    equal log-SNR. Conditions are ignored.

    Args:
        network: `(x_t scaled to unit variance, time input (B,)) -> logits (B, K)`, such as `Encoder`; its inputs have
            the same dtypes as those of the network in `Learned`.
        schedule: the schedule of training.
        time_input: `(schedule, t) -> time input`, for times of the training schedule; 1000 t by default.

    Raises:
        UsageError: when called, if the network does not return `(B, K)`.
    """

    def __init__(self, network: nn.Module, schedule: Schedule, time_input: TimeInput[Schedule] = thousandths) -> None:
        super().__init__()
        refuse_disorder(schedule)
        refuse_signature(network)
        self.network, self.schedule, self.time_input, self.corruption = network, schedule, time_input, schedule
        self.conditions = ()

    def forward(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        t = exact(checked_time(t))
        alpha, sigma = self.corruption(t)
        scaled = like((alpha**2 + sigma**2).rsqrt(), x_t) * refuse_non_float(x_t, "x_t")
        out = call_network(
            self, scaled, one_per_example(self.time_input(self.schedule, equal_snr_time(self, t)), x_t), {}
        )
        if out.ndim != 2 or len(out) != len(x_t):
            raise UsageError(
                f"the classifier returned shape {tuple(out.shape)} for {len(x_t)} examples: make it return a logit for "
                f"each class, ({len(x_t)}, K)"
            )
        return at_least_float32(out).log_softmax(-1)

    def time_input_range(self) -> Tensor:
        """Returns the time inputs at t_min, the smallest training time, and at t = 1, `(2,)`."""
        return range_of_time_input(self)

    def on(self, schedule: Schedule) -> Self:
        """Returns the classifier with the same weights, for signals corrupted by `schedule`."""
        return on_schedule(self, schedule)


@serializable("gaussian.ClassifierLoss", formerly=("unnoise.shared.guidance.Recognition", "gaussian.Recognition"))
class ClassifierLoss(Objective[NoisyClassifier]):
    """The training loss of a `NoisyClassifier`, `-log p(label | x_t)`, t uniform (Dhariwal & Nichol 2021, section 4).

    Called with x0 `(B, ...)` and `label`, integers `(B,)`; returns a `Loss` in nats, with one time and one draw of x_t
    for each example. Its part `accuracy` is 1 where the most probable class is the label, else 0.

    Args:
        denoiser: the classifier.
        times: samples the times of a batch.

    Raises:
        UsageError: when called without label, or with labels that are not classes.
    """

    def __init__(self, denoiser: NoisyClassifier, times: TimeSampling = independent) -> None:
        super().__init__()
        self.denoiser, self.times = denoiser, times

    def at(self, x0: Tensor, t: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        if "label" not in cond:
            raise UsageError(
                "the batch has no label, which a classifier is trained on: give label=..., one class for each example"
            )
        log_p = self.denoiser(self.denoiser.corruption.corrupt(x0, t, generator=generator), t)
        label = classes(cond["label"], log_p)
        loss = F.nll_loss(log_p, label, reduction="none")
        return Loss(loss, {"accuracy": (log_p.argmax(-1) == label).float()}, t)


def classes(label: Tensor, log_p: Tensor) -> Tensor:
    """Returns class labels as int64 `(B,)`, checked against log_p, log-probabilities `(B, K)` of the K classes.

    Raises:
        UsageError: for other types and shapes, and on a CPU for labels outside of 0 to K - 1.
    """
    what = f"{label.dtype} {tuple(label.shape)}" if isinstance(label, Tensor) else repr(label)
    if not isinstance(label, Tensor) or label.shape != (len(log_p),) or not is_integer(label):
        raise UsageError(
            f"label={what}: give integers ({len(log_p)},), one class for each example, from 0 to {log_p.shape[1] - 1}"
        )
    if label.device.type == "cpu" and len(label) and not 0 <= int(label.min()) <= int(label.max()) < log_p.shape[1]:
        raise UsageError(
            f"label is {int(label.min())} to {int(label.max())}, but the classifier has classes 0 to "
            f"{log_p.shape[1] - 1}: give labels of these"
        )
    return label.long()


class ClassifierGradient:
    """The gradient `scale grad log p(label | x_t)` of a classifier, with respect to x_t.

    Called as `(x_t, t, label=...)`, with x_t `(B, ...)`, t a scalar or `(B,)`, and labels as integers `(B,)`; other
    conditions are ignored.

    Args:
        classifier: `(x_t, t) -> log p(label | x_t)`, `(B, K)`, with `on(schedule)`.
        scale: factor of the gradient; 1 for Bayes' rule, 1 to 10 in Dhariwal & Nichol (2021).
    """

    def __init__(self, classifier: NoisyClassifier, scale: float = 1.0) -> None:
        self.classifier, self.scale = classifier, scale

    def __call__(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """Returns `scale` times the gradient of each example's log-probability of its label, of the shape of x_t."""
        if "label" not in cond:
            raise UsageError("classifier guidance needs class labels: give label=..., one for each sample")
        with gradients(x_t, t, cond["label"]) as (x, t, label):
            differentiable = x.requires_grad  # a likelihood differentiates the score, and so this gradient
            x = x if differentiable else x.detach().requires_grad_()
            log_p = self.classifier(x, t)
            chosen = log_p.gather(1, classes(label, log_p)[:, None]).sum()
            return self.scale * torch.autograd.grad(chosen, x, create_graph=differentiable)[0].to(x_t)

    def on(self, schedule: Schedule) -> ClassifierGradient:
        """Returns the gradient for signals corrupted by `schedule`."""
        other = copy.copy(self)
        other.classifier = self.classifier.on(schedule)
        return other


@serializable("gaussian.ClassifierGuided", formerly="unnoise.shared.guidance.ClassifierGuided")
class ClassifierGuided(DenoiserWrapper):
    r"""Classifier guidance, `E[x_0 | x_t] + (sigma_t^2 / alpha_t) scale grad log p(label | x_t)`.

    The gradient in x_t, scaled, is thereby added to the score. It takes the condition `label`, integers `(B,)`.
    Dhariwal & Nichol 2021, algorithm 2, the DDIM form. With scale 1 and a perfect classifier it is the conditional
    denoiser, by Bayes' rule. The ancestral form, which adds variance times gradient to the mean of the reverse step, is
    `Ancestral(denoiser, gradient=...)`; the two agree in the limit of small steps. The label is passed to the denoiser
    too if it takes one.

    Args:
        denoiser: unconditional or conditional; to clip as published, give `Clipped(denoiser)`.
        classifier: a classifier of noisy data; it is put on the denoiser's schedule.
        scale: factor of the gradient; 1 for Bayes' rule, 1 to 10 in Dhariwal & Nichol (2021).

    Raises:
        UsageError: for a schedule that ends at zero SNR, where alpha_t = 0; when called, if the label is missing.
    """

    def __init__(self, denoiser: GaussianDenoiser, classifier: NoisyClassifier, scale: float = 1.0) -> None:
        super().__init__(denoiser)
        refuse_zero_snr(denoiser.corruption)
        self.classifier, self.scale = classifier.on(denoiser.corruption), scale
        self.gradient = ClassifierGradient(self.classifier, scale)

    @property
    def conditions(self) -> tuple[str, ...]:
        """The label and the conditions of the inner denoiser."""
        return tuple(dict.fromkeys(("label", *(self.denoiser.conditions or ()))))

    def estimate(self, x_t: Tensor, t: Tensor, **cond: Any) -> Estimate:
        alpha, sigma = self.corruption(exact(t))
        inner = self.denoiser.estimate(x_t, t, **accepted_conditions(self.denoiser, cond))
        scale = torch.where(sigma > 0, sigma**2 / (alpha * inner.b), 0.0)  # at sigma = 0, b may be 0 too
        return inner._replace(out=inner.out + like(scale, x_t) * self.gradient(x_t, t, **cond))

    def on(self, schedule: Schedule) -> Self:
        refuse_zero_snr(schedule)
        other = super().on(schedule)
        other.gradient = self.gradient.on(schedule)
        other.classifier = other.gradient.classifier
        return other


@serializable("gaussian.ConditionDropout", formerly="unnoise.shared.guidance.ConditionDropout")
class ConditionDropout(ObjectiveWrapper[D]):
    """An objective that drops the condition of a share p of the examples, as classifier-free guidance needs.

    Ho & Salimans 2022, algorithm 1. For each example independently, the condition is replaced by the null with
    probability p. Called with x0 and conditions by name; returns the `Loss` of the inner objective.

    Args:
        objective: the inner objective, of a denoiser with a network, such as `Learned`.
        p: the expected share of examples that lose their condition, in [0, 1); 0.1 or 0.2 in the paper.
        condition: the name of the condition.
        null: the number that stands for no condition; None for the network's own, `network.null(condition)`, which it
            also uses when the condition is left out in sampling.

    Raises:
        UsageError: if the denoiser's network does not take the condition, or does not define its null.
    """

    def __init__(
        self, objective: Objective[D], p: float = 0.1, condition: str = "label", null: int | None = None
    ) -> None:
        super().__init__(objective)
        refuse_missing_condition(objective.denoiser, condition)
        if null is None:
            refuse_without_null(getattr(objective.denoiser, "network", None), condition)
        if not 0 <= p < 1:
            raise UsageError(
                f"p={p}: give the share of examples that lose their condition, from 0 to below 1, such as 0.1"
            )
        self.null, self.p, self.condition = null, p, condition

    def at(self, x0: Tensor, t: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        return self.objective.at(x0, t, generator=generator, **self._dropped(cond, generator))

    def forward(self, x0: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        return self.objective(x0, generator=generator, **self._dropped(cond, generator))

    def _dropped(self, cond: dict[str, Any], generator: Source) -> dict[str, Any]:
        if self.condition not in cond:
            raise UsageError(
                f"the batch has no {self.condition}, which is dropped for some examples: give {self.condition}=..."
            )
        value = cond[self.condition]
        drop = uniform((len(value),), generator, device=value.device) < self.p
        if self.null is None:
            null = cast(HasNull, self.denoiser.network).null(self.condition)
        else:
            null = torch.full_like(value[0], self.null)
        return cond | {self.condition: torch.where(like(drop, value), null.to(value.dtype), value)}
