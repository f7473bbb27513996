"""The base class of all denoisers: networks that estimate the clean x_0 from the noisy x_t."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Generic

from torch import Tensor, nn
from typing_extensions import TypeVar

from .corruption import Corruption
from .errors import UsageError
from .random import Source

C = TypeVar("C", bound=Corruption, default=Corruption, covariant=True)


class Denoiser(nn.Module, ABC, Generic[C]):
    """Estimates x_0 from x_t: `E[x_0 | x_t]` under Gaussian corruptions, `log p0` under categorical ones.

    Called as `denoiser(x_t, t, **cond)` with x_t `(B, ...)` and a time t in [0, 1], a scalar or `(B,)`; returns the
    mean, of the shape of x_t, or the log-probabilities, `(B, ..., K)` for K categories. `Denoiser[C]` holds a
    corruption of type C, so that a type checker knows the methods of `Denoiser[Schedule].corruption`.

    Attributes:
        corruption: the process that made x_t.
        conditions: names of the conditions that the denoiser takes, as its network lists them in its own attribute
            `conditions`; None if the network does not list them.
    """

    corruption: C
    conditions: tuple[str, ...] | None = None

    if TYPE_CHECKING:  # nn.Module declares that a call returns Any

        def __call__(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor: ...

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """Returns the estimate of x_0: a mean of the shape of x_t, or log-probabilities `(B, ..., K)`.

        Args:
            x_t: `(B, ...)`, real numbers, or tokens as int64.
            t: a scalar or `(B,)`, in [0, 1].
            cond: conditions by name, passed to the network unchanged.
        """

    def start(self, x: Tensor, t: Tensor, *, generator: Source = None, **cond: Any) -> Tensor:
        """Returns the state that sampling starts from at t, `(B, ...)`, given a draw x of the corruption's prior.

        t is a scalar, the first time of the sampler's grid. The base class returns x itself; Gaussian denoisers scale
        it to sigma_t, and categorical ones sample the tokens that the process keeps at t and the prior does not have.
        """
        return x


def accepted_conditions(denoiser: Denoiser, cond: dict[str, Any]) -> dict[str, Any]:
    """Returns those of the conditions `cond` that the denoiser takes; all if its network does not list its own."""
    if denoiser.conditions is None:
        return cond
    return {name: value for name, value in cond.items() if name in denoiser.conditions}


def refuse_other_denoiser(denoiser: Any, kind: type[Denoiser], user: str) -> None:
    """Raises unless `denoiser` is of the kind that a sampler, objective or bound works on.

    Args:
        denoiser: what was given as the denoiser.
        kind: `GaussianDenoiser`, `CategoricalDenoiser` or another class of denoisers.
        user: the name of the sampler, objective or bound.

    Raises:
        UsageError: for a denoiser of another kind, for an objective, and for a network that is not wrapped.
    """
    if isinstance(denoiser, kind):
        return
    if isinstance(getattr(denoiser, "denoiser", None), Denoiser) and not isinstance(denoiser, Denoiser):
        remedy = "give its denoiser, objective.denoiser"
    elif isinstance(denoiser, Denoiser):
        remedy = (
            "the parts for categorical denoisers are in unnoise.discrete, those for Gaussian ones in the other families"
        )
    else:
        remedy = "wrap a network first, as in Learned(network, schedule) or Categorical(network, transition)"
    raise UsageError(f"{user} works on a {kind.__name__}, not on {type(denoiser).__name__}: {remedy}")
