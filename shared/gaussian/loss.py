"""The denoising loss: with the right weight, that of DDPM, score matching, EDM or flow matching."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from typing_extensions import Self

from ..denoiser import refuse_other_denoiser
from ..errors import UsageError
from ..objective import Loss, Objective, TimeSampling, independent
from ..random import Source
from ..serialization import earlier, serializable
from ..tensors import like
from .denoiser import GaussianDenoiser
from .prediction import Preconditioned
from .weights import MinSNR, OutputError, Weight, likelihood_weight, refuse_zero_weight, snr, velocity_weight


@serializable("gaussian.DenoisingLoss", formerly="unnoise.continuous.objectives.Simple")
class DenoisingLoss(Objective[GaussianDenoiser]):
    r"""The weighted squared error of x_0, `E w(t) ||D(x_t, t) - x_0||^2`, as a mean over dimensions.

    D is the denoiser, `x_t = alpha_t x_0 + sigma_t epsilon`, and t is sampled from the schedule's training times.
    Called with x0 `(B, ...)` and conditions by name; returns a `Loss`, with one time and one draw of epsilon for each
    example, whose part `mse` is the weighted error. The constructors `simple`, `edm`, ... give the losses of the papers
    with their equations. Any sampler can be used with a denoiser that was trained with any weight.

    Args:
        denoiser: the denoiser, on the schedule to train with.
        weight: w, the weight of the squared error of x_0: `snr` for the error of the noise, others are in
            `gaussian.weights`; or a function `(schedule, t) -> weight`, of the shape of t.
        times: samples the times of a batch.

    Raises:
        UsageError: for a weight that is 0 at t = 1, where sampling starts, and for a network with a variance output,
            which this loss would not train.
    """

    def __init__(self, denoiser: GaussianDenoiser, *, weight: Weight = snr, times: TimeSampling = independent) -> None:
        super().__init__()
        refuse_untrained_output(denoiser)
        refuse_zero_weight(weight, denoiser.corruption)
        self.denoiser, self.weight, self.times = denoiser, weight, times

    @classmethod
    def simple(cls, denoiser: GaussianDenoiser, times: TimeSampling = independent) -> Self:
        """Returns the loss of DDPM, `E ||epsilon - epsilon_theta(x_t, t)||^2` (Ho et al. 2020, eq. 14).

        epsilon_theta is the noise that follows from the denoiser's estimate, whatever its network predicts.
        """
        return cls(denoiser, weight=snr, times=times)

    @classmethod
    def min_snr(cls, denoiser: GaussianDenoiser, gamma: float = 5.0, times: TimeSampling = independent) -> Self:
        """Returns the min-SNR loss, `E min(SNR, gamma) ||D(x_t, t) - x_0||^2` (Hang et al. 2023, section 3.4).

        SNR is `alpha_t^2 / sigma_t^2`.
        """
        return cls(denoiser, weight=MinSNR(gamma), times=times)

    @classmethod
    def score_matching(cls, denoiser: GaussianDenoiser, times: TimeSampling = independent) -> Self:
        """Returns the denoising score matching loss, `E sigma_t^2 ||s_theta(x_t, t) - grad log q(x_t | x_0)||^2`.

        s_theta is the score that follows from the denoiser's estimate. Song et al. 2021, eq. 7. By Tweedie's formula it
        is the loss `simple`. On `NoiseLevels` it is the loss of NCSN (Song & Ermon 2019, eqs. 5 and 6), which is a sum
        over dimensions and has a factor 1/2.
        """
        return cls(denoiser, weight=snr, times=times)

    @classmethod
    def likelihood_weighted(cls, denoiser: GaussianDenoiser, times: TimeSampling = independent) -> Self:
        """Returns the likelihood-weighted loss, `E g(t)^2 ||s_theta(x_t, t) - grad log q(x_t | x_0)||^2`.

        s_theta is the score that follows from the denoiser's estimate, and g the diffusion coefficient of the SDE
        `dx = f x dt + g dw`, `g^2 = d sigma_t^2 / dt - 2 sigma_t^2 d log alpha_t / dt`. Song et al. 2021b, corollary 1.
        Half of it, summed over dimensions, bounds the negative log-likelihood up to a term that does not depend on the
        denoiser.
        """
        return cls(denoiser, weight=likelihood_weight, times=times)

    @classmethod
    def edm(
        cls, denoiser: GaussianDenoiser, sigma_data: float | None = None, times: TimeSampling = independent
    ) -> Self:
        """Returns the loss of EDM, `E (sigma^2 + s^2) / (sigma s)^2 ||D(x_0 + sigma epsilon; sigma) - x_0||^2`.

        Karras et al. 2022, eq. 8 and table 1; their code sums over dimensions. sigma is `sigma_t / alpha_t`, with the
        training times of the schedule, which are log-normal noise levels for `sde.EDM`.

        Args:
            denoiser: D, on the schedule to train with.
            sigma_data: s, the standard deviation of the data; None for the denoiser's own.
            times: samples the times of a batch.

        Raises:
            UsageError: for sigma_data=None and a denoiser that does not define one.
        """
        sigma_data = getattr(denoiser, "sigma_data", None) if sigma_data is None else sigma_data
        if sigma_data is None:
            raise UsageError(
                "sigma_data=None, and the denoiser does not define one: give the standard deviation of the data, such "
                "as 0.5"
            )
        return cls(denoiser, weight=OutputError(Preconditioned(sigma_data)), times=times)

    @classmethod
    def flow_matching(cls, denoiser: GaussianDenoiser, times: TimeSampling = independent) -> Self:
        """Returns the flow matching loss, `E ||v_theta(x_t, t) - (alpha_t' x_0 + sigma_t' epsilon)||^2`.

        alpha_t' and sigma_t' are derivatives in t. Lipman et al. 2023, eqs. 9 and 14; v_theta is the velocity that
        follows from the denoiser's estimate. On `sde.Straight` the target is `epsilon - x_0` (Liu et al. 2023, eq. 1,
        with time reversed), and v_theta is the output of a network with `predicts=straight`.
        """
        return cls(denoiser, weight=velocity_weight, times=times)

    def at(self, x0: Tensor, t: Tensor, *, generator: Source = None, **cond: Any) -> Loss:
        schedule = self.denoiser.corruption
        x_t = schedule.corrupt(x0, t, generator=generator)
        error = (self.denoiser(x_t, t, **cond) - x0).to(x_t.dtype)
        mse = (error**2).flatten(1).mean(1)
        loss = like(self.weight(schedule, t), mse) * mse
        return Loss(loss, {"mse": loss.detach()}, t)


def refuse_untrained_output(denoiser: GaussianDenoiser) -> None:
    """Raises for a denoiser with a variance output, which the loss would not train although samplers may use it.

    Raises:
        UsageError: for such a denoiser, and for one that is not Gaussian.
    """
    refuse_other_denoiser(denoiser, GaussianDenoiser, "this loss")
    if denoiser.has_variance_output:
        raise UsageError(
            "this loss does not train the network's variance output: build the network with outputs=1, or give "
            "continuous.Hybrid or continuous.Variational with learned_range"
        )


def _with_weight(arguments: dict[str, Any], weight: dict[str, Any]) -> dict[str, Any]:
    """Returns the description of a denoising loss from that of a loss of earlier versions."""
    kept = {name: arguments[name] for name in ("denoiser", "times")}
    return {"class": "gaussian.DenoisingLoss", "arguments": kept | {"weight": weight}}


def _of_the_score(arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns the description from that of `ScoreMatching`, whose weight was of the error of the score."""
    name = arguments["weight"].get("function") or arguments["weight"].get("class")
    if name not in ("unnoise.sde.objectives.sigma_squared", "unnoise.sde.objectives.g_squared"):
        raise UsageError(
            f"the checkpoint's ScoreMatching has the weight {name} of the error of the score, but weights are of the "
            "error of x_0 now: train with DenoisingLoss(denoiser, weight=w), w that weight times alpha^2 / sigma^4"
        )
    return _with_weight(arguments, arguments["weight"])


earlier("unnoise.sde.objectives.ScoreMatching", _of_the_score)
earlier(
    "unnoise.sde.objectives.FlowMatching",
    lambda arguments: _with_weight(arguments, {"function": "gaussian.velocity_weight"}),
)
earlier(
    "unnoise.sde.objectives.EDMLoss",
    lambda arguments: _with_weight(
        arguments,
        {
            "class": "gaussian.OutputError",
            "arguments": {
                "predicts": {"class": "gaussian.Preconditioned", "arguments": {"sigma_data": arguments["sigma_data"]}},
            },
        },
    ),
)
