"""The denoising loss, of which the losses of DDPM, score matching, EDM and flow matching are choices of the weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from ..errors import UsageError
from ..objective import Draw, Loss, Objective, independent
from ..random import Source
from ..serialization import earlier, serializable
from ..tensors import at_least_float32, per_example
from .denoiser import GaussianDenoiser
from .prediction import Preconditioned
from .weights import MinSNR, OutputError, Weight, likelihood_weight, refuse_blind, snr, velocity_weight


@serializable(
    "gaussian.DenoisingLoss", formerly=("unnoise.continuous.objectives.Simple", "unnoise.sde.objectives.ScoreMatching")
)
class DenoisingLoss(Objective[GaussianDenoiser]):
    r"""`E w(t) ||E[x_0 | x_t] - x_0||^2`, mean over dimensions, t drawn from the schedule's training times.

    A denoiser that is trained with any weight runs under the samplers of all papers. `simple` and the other
    constructors are the losses of the papers, with their equations.

    Args:
        denoiser: on the schedule to train with.
        weight: w, of the squared error of x_0: `snr` for the error of the noise, others in `gaussian.weights`, or a
            function `(schedule, t) -> (B,)` of your own.
        times: how the times of a batch are drawn.

    Raises:
        UsageError: for a weight that is 0 at t = 1, which sampling starts from, and for a network whose variance output
            would stay untrained.
    """

    def __init__(self, denoiser: GaussianDenoiser, weight: Weight = snr, times: Draw = independent) -> None:
        super().__init__()
        refuse_untrained_output(denoiser)
        refuse_blind(weight, denoiser.corruption)
        self.denoiser, self.weight, self.times = denoiser, weight, times

    @classmethod
    def simple(cls, denoiser: GaussianDenoiser, times: Draw = independent) -> Self:
        """`E ||epsilon - epsilon_theta(x_t, t)||^2` (Ho et al. 2020, eq. 14), whatever the network predicts."""
        return cls(denoiser, snr, times)

    @classmethod
    def min_snr(cls, denoiser: GaussianDenoiser, gamma: float = 5.0, times: Draw = independent) -> Self:
        """`E min(SNR, gamma) ||E[x_0 | x_t] - x_0||^2` (Hang et al. 2023, section 3.4)."""
        return cls(denoiser, MinSNR(gamma), times)

    @classmethod
    def score_matching(cls, denoiser: GaussianDenoiser, times: Draw = independent) -> Self:
        """`E sigma_t^2 ||score - grad log q(x_t | x_0)||^2` (Song et al. 2021, eq. 7): the loss `simple`, by Tweedie's
        formula.

        On `NoiseLevels` this is the loss of NCSN (Song & Ermon 2019, eq. 6), whose code sums over dimensions and
        halves.
        """
        return cls(denoiser, snr, times)

    @classmethod
    def likelihood_weighted(cls, denoiser: GaussianDenoiser, times: Draw = independent) -> Self:
        """`E g(t)^2 ||score - grad log q(x_t | x_0)||^2` (Song et al. 2021b, theorem 1).

        Half of it bounds the negative log-likelihood.
        """
        return cls(denoiser, likelihood_weight, times)

    @classmethod
    def edm(cls, denoiser: GaussianDenoiser, sigma_data: float | None = None, times: Draw = independent) -> Self:
        """`E (sigma^2 + s^2) / (sigma s)^2 ||D(x_0 + sigma epsilon) - x_0||^2` (Karras et al. 2022, eqs. 2 and 3; the
        code sums).

        s is `sigma_data`, the denoiser's own if None, and sigma stands for `sigma_t / alpha_t`; the noise levels of
        training are those of the schedule, log-normal for `sde.EDM`.
        """
        sigma_data = getattr(denoiser, "sigma_data", None) if sigma_data is None else sigma_data
        if sigma_data is None:
            raise UsageError("sigma_data=None: give the standard deviation of the data, such as 0.5")
        return cls(denoiser, OutputError(Preconditioned(sigma_data)), times)

    @classmethod
    def flow_matching(cls, denoiser: GaussianDenoiser, times: Draw = independent) -> Self:
        """`E ||v_theta(x_t, t) - (alpha_t' x_0 + sigma_t' epsilon)||^2` (Lipman et al. 2023, eqs. 9 and 14).

        On `sde.Straight` the target is `epsilon - x_0` (Liu et al. 2023, eq. 1, with time reversed), and a network that
        `predicts=straight` is v_theta itself.
        """
        return cls(denoiser, velocity_weight, times)

    def at(self, x0: Tensor, t: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        schedule = self.denoiser.corruption
        x_t = schedule.corrupt(x0, t, generator=generator)
        error = at_least_float32(self.denoiser(x_t, t, **cond) - x0)
        loss = self.weight(schedule, t).to(error.dtype) * per_example(error**2, torch.mean)
        return Loss(loss, {"mse": loss.detach()}, t)


def refuse_untrained_output(denoiser: GaussianDenoiser) -> None:
    """Refuses a network whose variance output no term of the loss trains, for samplers would read noise from it.

    Raises:
        UsageError: with what to do.
    """
    if denoiser.has_variance_output:
        raise UsageError(
            "the network's variance output would stay untrained: build it with outputs=1, or take continuous.Hybrid or "
            "continuous.Variational with learned_range"
        )


def _weighed(arguments: dict[str, Any], weight: dict[str, Any]) -> dict[str, Any]:
    kept = {name: arguments[name] for name in ("denoiser", "times")}
    return {"class": "gaussian.DenoisingLoss", "arguments": kept | {"weight": weight}}


earlier(
    "unnoise.sde.objectives.FlowMatching",
    lambda arguments: _weighed(arguments, {"function": "gaussian.velocity_weight"}),
)
earlier(
    "unnoise.sde.objectives.EDMLoss",
    lambda arguments: _weighed(
        arguments,
        {
            "class": "gaussian.OutputError",
            "arguments": {
                "predicts": {"class": "gaussian.Preconditioned", "arguments": {"sigma_data": arguments["sigma_data"]}},
            },
        },
    ),
)
