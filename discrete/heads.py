"""Heads: functions that turn a network's output into logits of x_0.

`(out, x_t, transition) -> (..., categories)`: from the output and the noisy tokens x_t, int64 `(...)`, to `log p0` up
to a constant at each position. p0 is the posterior of x_0 or its leave-one-out posterior, as the reverse model reads
it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from ..shared.errors import UsageError
from ..shared.serialization import serializable
from ..shared.tensors import at_least_float32
from .transition import Transition

Head: TypeAlias = Callable[[Tensor, Tensor, Transition], Tensor]


@serializable("discrete.direct", formerly="unnoise.discrete.heads.direct")
def direct(out: Tensor, x_t: Tensor, transition: Transition) -> Tensor:
    """Returns the output `(..., K)` as logits, without that of an added mask token, since x_0 is never masked.

    Raises:
        UsageError: unless the output has one logit for each token at each position.
    """
    refuse_shape(out, x_t, transition)
    return out[..., : transition.categories]


@serializable("discrete.residual", formerly="unnoise.discrete.heads.residual")
def residual(out: Tensor, x_t: Tensor, transition: Transition) -> Tensor:
    """Returns the output plus one at x_t, as in D3PM's image runs (Austin et al. 2021, appendix B.2).

    1 is added to the logit of the token x_t of each position, and nothing where x_t is an added mask; errors as
    `direct`.
    """
    logits = direct(out, x_t, transition)
    known = x_t < transition.categories
    return logits.scatter_add(-1, x_t.clamp(max=transition.categories - 1)[..., None], known[..., None].to(logits))


@serializable("discrete.carried", formerly="unnoise.discrete.heads.carried")
def carried(out: Tensor, x_t: Tensor, transition: Transition) -> Tensor:
    """Returns logits under which an unmasked token is x_0 with probability 1: MDLM's SUBS.

    At such a position the logit is 0 at x_t and -inf elsewhere; at a mask it is the output (Sahoo et al. 2024, section
    3.2.3).

    Raises:
        UsageError: for a process in which an unmasked token may be noise.
    """
    refuse_head(carried, transition)
    logits = direct(out, x_t, transition)
    known = (x_t < transition.categories)[..., None]
    blank = logits.masked_fill(known, -torch.inf)
    at = x_t.clamp(max=transition.categories - 1)[..., None]
    return blank.scatter(-1, at, torch.where(known, torch.zeros_like(logits[..., :1]), blank.gather(-1, at)))


@serializable("discrete.logistic", formerly="unnoise.discrete.heads.logistic")
def logistic(out: Tensor, x_t: Tensor, transition: Transition) -> Tensor:
    r"""Returns a truncated logistic distribution on ordered categories, `log(sigmoid(z_k + h) - sigmoid(z_k - h))`.

    The output `(..., 2)` contains m and s: `mu = tanh(m + x_t)` with x_t scaled to [-1, 1], `z_k = (v_k - mu) exp(2 -
    s)` with the values v_k of the categories evenly over [-1, 1], and h is half of their spacing times the same inverse
    scale (Austin et al. 2021, appendix B.2, as in the published code).

    Raises:
        UsageError: for an output that is not two numbers at each position.
    """
    if out.shape[:-1] != x_t.shape or out.shape[-1] != 2:
        raise UsageError(
            f"the network returned {tuple(out.shape)} for x_t {tuple(x_t.shape)}, and the logistic head reads two "
            "numbers at each position, (*x_t.shape, 2): build the network with logits=2"
        )
    out, categories = at_least_float32(out), transition.categories
    center = torch.tanh(out[..., :1] + (2 * x_t.to(out.dtype) / (categories - 1) - 1)[..., None])
    inverse = torch.exp(2 - out[..., 1:])
    k = torch.linspace(-1, 1, categories, dtype=out.dtype, device=out.device)
    upper, lower = (k - center + 1 / (categories - 1)) * inverse, (k - center - 1 / (categories - 1)) * inverse
    # sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)), whose logarithm is a sum without cancellation.
    return (
        torch.nn.functional.logsigmoid(upper)
        + torch.nn.functional.logsigmoid(-lower)
        + torch.log(-torch.expm1(lower - upper))
    )


def at_masks(head: Head) -> Head:
    """Returns a head with the same logits at an added mask, without work at other positions where one is known.

    There `residual` and `carried` return the output as it is.
    """
    return direct if head is residual or head is carried else head


def refuse_shape(out: Tensor, x_t: Tensor, transition: Transition) -> None:
    """Raises an error for an output that is not one number for each token at each position.

    Raises:
        UsageError: with the shape that is read.
    """
    if out.shape[:-1] != x_t.shape or out.shape[-1] not in (transition.categories, transition.states):
        sizes = " or ".join(str(n) for n in dict.fromkeys((transition.categories, transition.states)))
        raise UsageError(
            f"the network returned {tuple(out.shape)} for x_t {tuple(x_t.shape)}: return one number for each token at "
            f"each position, (*x_t.shape, {sizes}), the vocabulary last{rearranged(out, x_t, transition)}"
        )


def rearranged(out: Tensor, x_t: Tensor, transition: Transition) -> str:
    """Returns how to move the vocabulary of an output to its last axis, or "" if it is not on another axis."""
    sizes = (transition.categories, transition.states)
    for axis in range(1, out.ndim - 1):
        if out.shape[axis] in sizes and (*out.shape[:axis], *out.shape[axis + 1 :]) == tuple(x_t.shape):
            return f": return out.movedim({axis}, -1)"
    if out.ndim == x_t.ndim and x_t.ndim > 2 and out.shape[2:] == x_t.shape[2:] and len(out) == len(x_t):
        for size in sizes:
            if out.shape[1] == x_t.shape[1] * size:
                return (
                    f": return out.unflatten(1, ({x_t.shape[1]}, {size})).movedim(2, -1), where the logits of a "
                    "channel are neighbors"
                )
    return ""


def refuse_head(head: Head, transition: Transition) -> None:
    """Raises an error for `carried` with a process in which an unmasked token may be noise.

    Raises:
        UsageError: with what to do.
    """
    if head is carried and not transition.unmasked_is_clean:
        raise UsageError(
            f"head=carried takes an unmasked token for x_0, and under this {type(transition).__name__} it may be "
            "noise: take head=direct or residual, or the process Absorbing(categories, schedule), whose mask is an "
            "added token"
        )
