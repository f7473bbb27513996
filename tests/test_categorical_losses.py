"""Losses over a vocabulary by hand: their values, derivatives and memory, and what heads and tables leave out."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from unnoise.discrete import (
    Absorbing,
    Categorical,
    ContinuousBound,
    D3PMLoss,
    GeometricNoise,
    LogLinearNoise,
    Marginal,
    Product,
    Uniform,
    carried,
    cosine,
    direct,
    fused,
    heads,
    reciprocal,
    residual,
)

D = torch.float64


@pytest.fixture(autouse=True)
def by_hand(monkeypatch):
    monkeypatch.setattr(fused, "SMALL", 0)
    monkeypatch.setattr(fused, "ON_CPU", 40)  # several blocks


class Given(nn.Module):
    """A network whose output is a parameter."""

    conditions = ()

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x, time):
        return self.logits


def rows(generator, dtype=D, count=23, size=7):
    logits = 3 * torch.randn(count, size, generator=generator, dtype=D)
    logits[0] *= 1e3  # probabilities that underflow
    logits[1, 2] = -torch.inf
    x0 = torch.randint(0, size, (count,), generator=generator)
    return logits.to(dtype).requires_grad_(), x0, torch.rand(count, generator=generator) < 0.6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_cross_entropies_of_rows_that_count(dtype, generator):
    logits, x0, some = rows(generator, dtype)
    weight = torch.randn(len(x0), generator=generator, dtype=D)
    for counts in (None, some, torch.zeros_like(some)):
        found = fused.cross_entropy(logits, x0, counts)
        plain = F.cross_entropy(logits.double(), x0, reduction="none")
        plain = plain if counts is None else torch.where(counts, plain, 0.0)
        assert found.dtype == (dtype if dtype == D else torch.float32)
        torch.testing.assert_close(found.double(), plain, rtol=1e-6 if dtype != D else 1e-14, atol=1e-6)
        for _ in range(2):  # the second backward pass computes the derivative again
            ours, theirs = (torch.autograd.grad(v, logits, weight.to(v), retain_graph=True)[0] for v in (found, plain))
            torch.testing.assert_close(
                ours,
                theirs,
                rtol=2e-2 if dtype == torch.bfloat16 else 1e-5,
                atol=1e-2 if dtype == torch.bfloat16 else 1e-6,
            )


def test_logits_that_do_not_count_are_not_read(generator):
    logits, x0, some = rows(generator)
    broken = torch.where(some[:, None], logits.detach(), torch.nan).requires_grad_()
    ours, theirs = (torch.autograd.grad(fused.cross_entropy(v, x0, some)[some].sum(), v)[0] for v in (broken, logits))
    torch.testing.assert_close(ours, torch.where(some[:, None], theirs, 0.0), rtol=0, atol=0)


def test_cross_entropies_have_further_derivatives(generator):
    logits, x0, some = rows(generator)
    smooth = (logits.detach()[2:6] / 3).requires_grad_()
    x0, some = x0[2:6], some[2:6]

    def loss(v):
        return fused.cross_entropy(v, x0, some).square().sum()

    assert torch.autograd.gradgradcheck(loss, smooth)
    gradient = torch.autograd.grad(loss(smooth), smooth)[0]
    torch.testing.assert_close(torch.func.grad(loss)(smooth), gradient)
    along = torch.func.jvp(loss, (smooth.detach(),), (gradient,))[1]
    torch.testing.assert_close(along, gradient.square().sum())


class Allocations(TorchDispatchMode):
    """Adds up the memory of all tensors that operations make, of at least a number of bytes."""

    def __init__(self, least):
        super().__init__()
        self.least, self.bytes = least, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {
            a.untyped_storage().data_ptr() for a in (*args, *(kwargs or {}).values()) if isinstance(a, torch.Tensor)
        }
        out = func(*args, **(kwargs or {}))
        for v in out if isinstance(out, tuple | list) else (out,):
            if isinstance(v, torch.Tensor) and v.untyped_storage().data_ptr() not in known:
                self.bytes += v.untyped_storage().nbytes() if v.untyped_storage().nbytes() >= self.least else 0
        return out


LOSSES = {
    "uniform": lambda net, k: D3PMLoss(Categorical(net, Uniform(k, cosine(20)))),
    "uniform-rate": lambda net, k: ContinuousBound(Categorical(net, Uniform(k, GeometricNoise())), ce=0.01),
    "absorbing": lambda net, k: D3PMLoss(Categorical(net, Absorbing(k, reciprocal(20)), head=residual), ce=0.01),
    "mdlm": lambda net, k: ContinuousBound(Categorical(net, Absorbing(k, LogLinearNoise()), head=carried)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", LOSSES)
def test_a_loss_needs_no_more_memory_than_logits_and_gradient(kind, dtype, generator, monkeypatch):
    k, shape = 1001, (3, 20)
    monkeypatch.setattr(fused, "ON_CPU", 4 * k)
    network = Given(torch.randn(*shape, k, generator=generator).to(dtype))
    objective = LOSSES[kind](network, k)
    x0 = torch.randint(0, k, shape, generator=generator)
    size = network.logits.numel() * network.logits.element_size()
    with Allocations(size // 4) as found:
        objective(x0, generator=generator).total.mean().backward()
    assert found.bytes == size  # the gradient


@pytest.mark.parametrize("head", [carried, residual], ids=lambda head: head.__name__)
@pytest.mark.parametrize("schedule", [reciprocal(20), LogLinearNoise()], ids=["chain", "continuous"])
def test_losses_under_absorption_read_masks_alone(head, schedule, generator):
    """What a head says at other positions has no effect; where an eps smooths the chain, it has."""
    transition = Absorbing(5, schedule)
    x0 = torch.randint(0, 5, (4, 6), generator=generator)
    t = torch.tensor([0.2, 0.4, 0.75, 1.0], dtype=D)
    x_t = transition.corrupt(x0, t, generator=generator)
    network, found = Given(torch.randn(4, 6, 5, generator=generator, dtype=D)), []
    for own in (head, lambda *args: head(*args)):
        denoiser = Categorical(network, transition, head=own)
        terms = (
            denoiser.path_rate(x0, x_t, t) if transition.steps is None else denoiser.divergence(x0, x_t, t, t - 0.05)
        )
        nats = denoiser.cross_entropy(x0, x_t, t)
        gradient = torch.autograd.grad(terms.divergence.sum() + nats.square().sum(), network.logits)[0]
        found.append((*terms, nats, gradient))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert torch.equal((found[0][-1] != 0).any(-1), x_t == 5)
    torch.testing.assert_close(denoiser.logits(x_t, t), head(network.logits, x_t, transition))
    if transition.steps:
        smoothed = [Categorical(network, transition, Product(1e-3), head=h) for h in (residual, direct)]
        one, other = (d.divergence(x0, x_t, t, t - 0.05).divergence for d in smoothed)
        assert not torch.allclose(one[x_t < 5], other[x_t < 5], rtol=1e-6, atol=0)


def test_constants_of_a_table_are_those_of_its_steps(generator):
    """They are computed once for all steps, and anew for another reverse model and for other strides."""
    n = torch.tensor([1, 2, 7, 20])
    t = n.double() / 20
    logits, x0 = torch.randn(4, 3, 5, generator=generator, dtype=D), torch.randint(0, 5, (4, 3), generator=generator)
    transition = Uniform(5, cosine(20))
    x_t = transition.corrupt(x0, t, generator=generator)
    for reverse in (Product(), Marginal(), Product()):
        for s in (t - 0.05, t / 2, torch.zeros_like(t)):
            each = [Uniform(5, cosine(20))._constants(reverse, a[None], b[None]) for a, b in zip(t, s, strict=True)]
            expected = fused.uniform_divergence(logits, x_t, x0, torch.cat(each, 1), torch.arange(4)[:, None])
            for found, plain in zip(transition.divergence(reverse, logits, x0, x_t, t, s), expected, strict=True):
                torch.testing.assert_close(found, plain, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("n", [2, 40, 900])
def test_products_of_factors_stay_finite(n, generator):
    """All factors of a position are multiplied where their product cannot overflow, as late in the chain, else a few.

    Even logits have the largest product.
    """
    transition, x0 = Uniform(27, reciprocal(1000)), torch.randint(0, 27, (2, 8), generator=generator)
    t = torch.tensor(n / 1000, dtype=D)
    x_t, found = torch.randint(0, 27, (2, 8), generator=generator), []
    for dtype in (torch.float32, D):
        logits = torch.zeros(2, 8, 27, dtype=dtype, requires_grad=True)
        nats = transition.divergence(Product(), logits, x0, x_t, t, transition.before(t)).divergence
        found.append((nats.double(), torch.autograd.grad(nats.sum(), logits)[0].double()))
    for ours, exact in zip(*found, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-6)


def test_a_weight_of_zero_leaves_out_infinite_nats():
    nats = torch.tensor([[2.0, torch.inf], [3.0, torch.inf]])
    for weight, expected in (
        ([[0.5], [0.0]], [[1.0, torch.inf], [0.0, 0.0]]),
        ([[1.0], [2.0]], [[2.0, torch.inf], [6.0, torch.inf]]),
    ):
        assert torch.equal(fused.weighted(torch.tensor(weight, dtype=D), nats), torch.tensor(expected))


def test_tokens_of_any_memory_layout(generator):
    """Tokens that are not contiguous, such as images in the layout "channels last"."""
    transition, t = Uniform(5, reciprocal(20)), torch.tensor([0.3, 0.6], dtype=D)
    logits = torch.randn(2, 3, 4, 5, dtype=D, generator=generator)
    x0, x_t = torch.randint(0, 5, (2, 2, 4, 3), generator=generator).transpose(2, 3)
    losses = (
        transition.divergence(Product(), logits, *tokens, t, transition.before(t)).divergence
        for tokens in ((x0, x_t), (x0.contiguous(), x_t.contiguous()))
    )
    torch.testing.assert_close(*losses)


def test_which_losses_are_of_masks_alone():
    """Only under an added mask and without eps; a head that is not known to leave masks alone stays."""
    noise = LogLinearNoise()
    assert Absorbing(5, noise).loss_is_of_masks(Product())
    assert not Absorbing(5, noise).loss_is_of_masks(Product(eps=1e-3))
    assert not Absorbing(5, noise, mask=2).loss_is_of_masks(Product())
    assert not Uniform(5, noise).loss_is_of_masks(Product())
    assert heads.at_masks(heads.logistic) is heads.logistic
    assert heads.at_masks(heads.carried) is heads.direct
