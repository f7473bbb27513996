"""Guidance: a guided denoiser is a denoiser, so every sampler of every Gaussian family takes it.

Two scales are in use for classifier-free guidance: Ho & Salimans's w, 0 without guidance, and s = 1 + w of GLIDE and
most code since, 1 without. Here it is w throughout. For classifier guidance the scale is that of the gradient, 0
without guidance and 1 for Bayes' rule.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from ..calling import ask, refuse_signature
from ..denoiser import Denoiser, on_every_row, taken
from ..errors import UsageError
from ..gradients import gradients
from ..objective import Draw, Loss, Objective, independent
from ..random import Source, uniform
from ..serialization import serializable
from ..tensors import at_least_float32, exact, is_integer, like, moment, refuse_unreal
from ..time_inputs import TimeInput, thousandths
from .denoiser import DenoiserWrapper, Estimate, GaussianDenoiser, ends_of_time_input, home_time, placed
from .schedule import Schedule, refuse_zero_snr

EDGE = 1e-6  # of log-SNR
NO_NULL = "the network does not say what stands for no {condition}: give it a method null(condition), or give null=..., the same in both"


@serializable("gaussian.ClassifierFree", formerly="unnoise.shared.guidance.ClassifierFree")
class ClassifierFree(DenoiserWrapper):
    r"""`(1 + w) E[x_0 | x_t, c] - w E[x_0 | x_t]` (Ho & Salimans 2022, eq. 6, of x_0 in place of the noise: the same
    combination).

    What the network says of the reverse variance is that of the conditional half, unguided, as in GLIDE. Two
    evaluations where guidance acts, one elsewhere.

    Args:
        denoiser: a conditional one, trained with `ConditionDropout`.
        w: strength; the "guidance scale" s of other code is 1 + w.
        condition: the condition to strengthen; all others go to both halves.
        null: what stands for no condition, for one example, as in training; None leaves the condition out, which for
            this package's networks is their own null.
        low, high: guidance acts for low < t <= high (Kynkaanniemi et al. 2024 leave out the noisiest and the cleanest
            levels). The interval is one of log-SNR, and stays it on other schedules; ends at a level of a grid are met
            up to 1e-6 of log-SNR.
        rescale: phi, the share by which the guided x_0 is brought back to the standard deviation of the conditional
            one, for each example (Lin et al. 2023, section 3.4, there for the network's own output; 0.7).

    Raises:
        UsageError: where the denoiser's network says that it does not take the condition, or does not say what stands
            for none.
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
        refuse_without(denoiser, condition)
        networks = [m.network for m in denoiser.modules() if isinstance(getattr(m, "network", None), nn.Module)]
        asked = [
            n for n in networks if condition in getattr(n, "conditions", (condition,))
        ]  # a classifier's takes none
        if null is None and not all(hasattr(network, "null") for network in asked):
            raise UsageError(NO_NULL.format(condition=condition))
        for network in asked if null is None else ():
            network.null(condition)  # refuses where nothing stands for none
        if not (null is None or isinstance(null, int | Tensor)):
            raise UsageError(
                f"null={null!r}: give what stands for no {condition} for one example, a number or a tensor, as in training"
            )
        if not 0 <= low < high <= 1 or not 0 <= rescale <= 1:
            raise UsageError(
                f"low={low}, high={high}, rescale={rescale}: give 0 <= low < high <= 1, and a share from 0 to 1"
            )
        self.w, self.condition, self.null, self.rescale = w, condition, null, rescale
        ends = denoiser.corruption.log_snr(torch.tensor([high, low], dtype=torch.float64)).tolist()
        within = low >= denoiser.corruption.t_min * (1 - EDGE)  # below, a table's log-SNR is that of its first row
        self.noisiest, self.cleanest = ends[0] if high < 1 else -math.inf, ends[1] if within else math.inf

    @property
    def low(self) -> float:
        """Guidance acts above this time of the present schedule."""
        return 0.0 if self.cleanest == math.inf else self._time(self.cleanest)

    @property
    def high(self) -> float:
        """Guidance acts up to this time of the present schedule."""
        return 1.0 if self.noisiest == -math.inf else self._time(self.noisiest)

    def acts(self, t: Tensor) -> Tensor:
        """Whether guidance acts at t, bool, of the shape of t."""
        log_snr = self.corruption.log_snr(exact(t))
        return (log_snr < self.cleanest - EDGE) & (log_snr >= self.noisiest - EDGE)

    def estimate(self, x_t: Tensor, t: Tensor, **cond: Any) -> Estimate:
        if self.condition not in cond:
            raise UsageError(
                f"guidance needs the condition: give {self.condition}=..., or sample the denoiser without guidance"
            )
        conditional = self.denoiser.estimate(x_t, t, **cond)
        acts = self.acts(t)
        if t.ndim == 0 and t.device.type == "cpu" and (self.w == 0 or not acts):
            return conditional
        unconditional = self.denoiser.estimate(x_t, t, **self._without(cond, x_t))
        # Both halves have the same a and b, and (1 + w) - w = 1 of x_t.
        out = conditional.out + like(acts.to(x_t.dtype) * self.w, x_t) * (conditional.out - unconditional.out)
        guided = conditional._replace(out=out)
        return self._rescaled(guided, conditional, x_t) if self.rescale else guided

    def _without(self, cond: dict[str, Any], x_t: Tensor) -> dict[str, Any]:
        """The conditions with the null in place of the one that is strengthened."""
        others = {name: value for name, value in cond.items() if name != self.condition}
        if self.null is not None:
            null = (
                torch.full_like(cond[self.condition][0], self.null)
                if isinstance(self.null, int)
                else self.null.to(x_t.device)
            )
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
    """A network that says `log p(label | x_t)`, `(B, K)`: a denoiser of the label.

    Args:
        network: `(x_t scaled to unit variance, time input (B,)) -> logits (B, K)`, such as `Encoder`; fed as `Learned`
            feeds its own.
        schedule: the home schedule, that of training.
        time_input: the number that the network is fed for a time of the training schedule.
    """

    def __init__(self, network: nn.Module, schedule: Schedule, time_input: TimeInput = thousandths) -> None:
        super().__init__()
        refuse_signature(network)
        self.network, self.schedule, self.time_input, self.corruption = network, schedule, time_input, schedule
        self.conditions = ()

    def forward(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        t = exact(moment(t))
        alpha, sigma = self.corruption(t)
        scaled = like((alpha**2 + sigma**2).rsqrt(), x_t) * refuse_unreal(x_t, "x_t")
        out = ask(self, scaled, on_every_row(self.time_input(self.schedule, home_time(self, t)), x_t), {})
        if out.ndim != 2 or len(out) != len(x_t):
            raise UsageError(
                f"the classifier gave {tuple(out.shape)} for {len(x_t)} examples: give a logit for each class, ({len(x_t)}, K)"
            )
        return at_least_float32(out).log_softmax(-1)

    def time_inputs(self) -> Tensor:
        """What the network is fed for the least noisy and for the noisiest time, `(2,)`."""
        return ends_of_time_input(self)

    def on(self, schedule: Schedule) -> Self:
        """Returns the same classifier, weights shared, for signals that `schedule` has corrupted."""
        return placed(self, schedule)


@serializable("gaussian.Recognition", formerly="unnoise.shared.guidance.Recognition")
class Recognition(Objective[NoisyClassifier]):
    """`-log p(label | x_t)`, t uniform (Dhariwal & Nichol 2021, section 4): trains a `NoisyClassifier`.

    Args:
        denoiser: the classifier.
        times: how the times of a batch are drawn.
    """

    def __init__(self, denoiser: NoisyClassifier, times: Draw = independent) -> None:
        super().__init__()
        self.denoiser, self.times = denoiser, times

    def at(self, x0: Tensor, t: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        if "label" not in cond:
            raise UsageError(
                "a classifier is trained on labels: give batches with label, such as conditions=('label',)"
            )
        log_p = self.denoiser(self.denoiser.corruption.corrupt(x0, t, generator=generator), t)
        label = classes(cond["label"], log_p)
        loss = F.nll_loss(log_p, label, reduction="none")
        return Loss(loss, {"accuracy": (log_p.argmax(-1) == label).float()}, t)


def classes(label: Tensor, log_p: Tensor) -> Tensor:
    """A class for each row of log_p `(B, K)`, int64.

    Raises:
        UsageError: for other types and shapes, and on a CPU for classes that the classifier does not have.
    """
    what = f"{label.dtype} {tuple(label.shape)}" if isinstance(label, Tensor) else repr(label)
    if not isinstance(label, Tensor) or label.shape != (len(log_p),) or not is_integer(label):
        raise UsageError(
            f"label={what}: give integers ({len(log_p)},), one class for each example, from 0 to {log_p.shape[1] - 1}"
        )
    if label.device.type == "cpu" and len(label) and not 0 <= int(label.min()) <= int(label.max()) < log_p.shape[1]:
        raise UsageError(
            f"label is {int(label.min())} to {int(label.max())}, and the classifier has classes 0 to {log_p.shape[1] - 1}"
        )
    return label.long()


class ClassifierGradient:
    """`scale grad log p(label | x_t)`, of the shape of x_t: `(x_t, t, label=...)`.

    Args:
        classifier: `(x_t, t) -> log p(label | x_t)`, `(B, K)`, with `on(schedule)`.
        scale: 1 for Bayes' rule; 1 to 10 in Dhariwal & Nichol (2021).
    """

    def __init__(self, classifier: NoisyClassifier, scale: float = 1.0) -> None:
        self.classifier, self.scale = classifier, scale

    def __call__(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """The gradient of the chosen class, of each example by itself."""
        if "label" not in cond:
            raise UsageError("classifier guidance needs the class: give label=..., one for each sample")
        with gradients(x_t, t, cond["label"]) as (x, t, label):
            whole = x.requires_grad  # a likelihood differentiates the score, and with it this gradient
            x = x if whole else x.detach().requires_grad_()
            log_p = self.classifier(x, t)
            chosen = log_p.gather(1, classes(label, log_p)[:, None]).sum()
            return self.scale * torch.autograd.grad(chosen, x, create_graph=whole)[0].to(x_t)

    def on(self, schedule: Schedule) -> ClassifierGradient:
        """The same gradient for signals that `schedule` has corrupted."""
        return ClassifierGradient(self.classifier.on(schedule), self.scale)


@serializable("gaussian.ClassifierGuided", formerly="unnoise.shared.guidance.ClassifierGuided")
class ClassifierGuided(DenoiserWrapper):
    r"""`E[x_0 | x_t] + (sigma_t^2 / alpha_t) gradient`: the score plus the gradient (Dhariwal & Nichol 2021, algorithm
    2, the DDIM form).

    With scale 1 and a perfect classifier this is the conditional denoiser, by Bayes' rule. The ancestral form, which
    moves the mean by variance x gradient, is `Ancestral(denoiser, gradient=...)`; they agree as steps become small. The
    label reaches the denoiser too if it takes one.

    Args:
        denoiser: unconditional or conditional; clip it before it is guided, as published.
        classifier: is read on the denoiser's schedule.
        scale: of the gradient.
    """

    def __init__(self, denoiser: GaussianDenoiser, classifier: NoisyClassifier, scale: float = 1.0) -> None:
        super().__init__(denoiser)
        refuse_zero_snr(denoiser.corruption)
        self.classifier, self.scale = classifier.on(denoiser.corruption), scale
        self.gradient = ClassifierGradient(self.classifier, scale)

    @property
    def conditions(self) -> tuple[str, ...]:
        """The inner denoiser's conditions, and the label."""
        return tuple(dict.fromkeys(("label", *(self.denoiser.conditions or ()))))

    def estimate(self, x_t: Tensor, t: Tensor, **cond: Any) -> Estimate:
        alpha, sigma = self.corruption(exact(t))
        inner = self.denoiser.estimate(x_t, t, **taken(self.denoiser, cond))
        return inner._replace(out=inner.out + like(sigma**2 / (alpha * inner.b), x_t) * self.gradient(x_t, t, **cond))

    def on(self, schedule: Schedule) -> Self:
        return type(self)(self.denoiser.on(schedule), self.classifier, self.scale)


@serializable("gaussian.ConditionDropout", formerly="unnoise.shared.guidance.ConditionDropout")
class ConditionDropout(Objective[GaussianDenoiser]):
    """An objective whose condition is replaced by the null for a share p of the examples (Ho & Salimans 2022, algorithm
    1).

    Args:
        objective: of a `Learned`.
        p: the share; 0.1 or 0.2.
        condition: which.
        null: what stands for no condition; None for the network's own, `network.null(condition)`, which sampling
            without it uses too.

    Raises:
        UsageError: where the denoiser's network says that it does not take the condition, or has no null for it.
    """

    def __init__(self, objective: Objective, p: float = 0.1, condition: str = "label", null: int | None = None) -> None:
        super().__init__()
        refuse_without(objective.denoiser, condition)
        if null is None and not hasattr(getattr(objective.denoiser, "network", None), "null"):
            raise UsageError(NO_NULL.format(condition=condition))
        if null is None:
            objective.denoiser.network.null(condition)  # refuses where nothing stands for none
        if not 0 <= p < 1:
            raise UsageError(
                f"p={p}: give the share of examples that lose their condition, from 0 to below 1, such as 0.1"
            )
        self.objective, self.null, self.p, self.condition, self.times = objective, null, p, condition, objective.times
        self.draws_times = objective.draws_times

    @property
    def denoiser(self) -> GaussianDenoiser:
        """That of the objective."""
        return self.objective.denoiser

    def at(self, x0: Tensor, t: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        return self.objective.at(x0, t, generator=generator, **self._dropped(cond, generator))

    def forward(self, x0: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        return self.objective(x0, generator=generator, **self._dropped(cond, generator))

    def _dropped(self, cond: dict[str, Any], generator: Source) -> dict[str, Any]:
        if self.condition not in cond:
            raise UsageError(
                f"{self.condition} is to be dropped for some examples, and the batch has none: give it with the data"
            )
        value = cond[self.condition]
        drop = uniform((len(value),), generator, device=value.device) < self.p
        null = self.denoiser.network.null(self.condition) if self.null is None else torch.full_like(value[0], self.null)
        return cond | {self.condition: torch.where(like(drop, value), null.to(value.dtype), value)}


def refuse_without(denoiser: Denoiser, condition: str) -> None:
    """Refuses a denoiser whose network says that it does not take the condition."""
    if denoiser.conditions is not None and condition not in denoiser.conditions:
        has = ", ".join(denoiser.conditions) or "none"
        raise UsageError(
            f"guidance by {condition} needs a denoiser that takes it, and this one takes {has}: "
            "build its network with the condition (classes=... for labels), or guide it with a classifier"
        )
