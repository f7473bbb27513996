"""Divergences of chains by matrices, with their backward pass by hand."""

import pytest
import torch

from unnoise.discrete import (
    Dense,
    DiscretizedGaussian,
    Marginal,
    NearestNeighbor,
    Product,
    cosine,
    fused,
    linear,
    nearest,
)
from unnoise.discrete.transition import nearest_neighbor
from unnoise.discrete.transition.generic import generic_divergence

T = 20
CHAINS = {
    "gaussian": lambda: DiscretizedGaussian(6, linear(T, 0.2, 1.0)),
    "gaussian-odd": lambda: DiscretizedGaussian(5, linear(T, 0.2, 1.0)),
    "dense": lambda: Dense(
        torch.rand(T, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).softmax(-1)
    ),
}


@pytest.mark.parametrize("reverse", [Product(), Marginal()], ids=str)
@pytest.mark.parametrize("kind", CHAINS)
@pytest.mark.parametrize(("length", "block"), [(7, 12), (4, 2**19)], ids=["rows of one", "several examples"])
def test_one_pass_is_the_definition_and_so_is_its_gradient(kind, reverse, length, block, monkeypatch, generator):
    """In blocks of rows of one example, and of examples that are shorter than K, each with the matrices of its step."""
    monkeypatch.setattr(fused, "ON_CPU", block)
    chain = CHAINS[kind]()
    n = torch.tensor([1, 2, 10, T])
    t, s = n.double() / T, (n - 1).double() / T
    logits = torch.randn(4, length, chain.categories, dtype=torch.float64, generator=generator, requires_grad=True)
    x0 = torch.randint(0, chain.categories, (4, length), generator=generator)
    x_t = chain.corrupt(x0, t, generator=generator)
    weight = torch.randn(2, 4, length, dtype=torch.float64, generator=generator)
    found = []
    for terms in (
        chain.divergence(reverse, logits, x0, x_t, t, s),
        generic_divergence(chain, reverse, logits, x0, x_t, t, s),
    ):
        both = (terms.divergence * weight[0] + terms.cross_entropy * weight[1]).sum()
        found.append(
            (
                *terms,
                torch.autograd.grad(both, logits, retain_graph=True)[0],
                torch.autograd.grad(terms[0].sum(), logits)[0],
            )
        )
    for closed, plain in zip(*found, strict=True):
        torch.testing.assert_close(closed, plain, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("reverse", [Product(), Marginal()], ids=str)
@pytest.mark.parametrize("n", [1, 2, 3, 10, 100])
def test_float32_stays_finite_where_chances_vanish(reverse, n, generator):
    """17 categories that hardly move at first: most probabilities are below the smallest float32."""
    chain = DiscretizedGaussian(17, linear(100, 1e-3, 0.2))
    t, s = torch.full((16,), n / 100, dtype=torch.float64), torch.full((16,), (n - 1) / 100, dtype=torch.float64)
    logits = (8 * torch.randn(16, 64, 17, generator=generator)).requires_grad_()
    x0 = torch.randint(0, 17, (16, 64), generator=generator)
    x_t = chain.corrupt(x0, t, generator=generator)
    kl = chain.divergence(reverse, logits, x0, x_t, t, s).divergence
    exact = chain.divergence(reverse, logits.detach().double(), x0, x_t, t, s).divergence
    assert torch.autograd.grad(kl.sum(), logits)[0].isfinite().all()
    torch.testing.assert_close(kl.double(), exact, rtol=1e-4, atol=1e-5)


def test_large_graphs_have_the_losses_and_gradients_of_small_ones(monkeypatch, generator):
    """Chebyshev's polynomials, for tens of thousands of tokens, against eigenvectors."""
    near = nearest(torch.randn(40, 4, generator=generator), 4)
    small = NearestNeighbor(near, cosine(20))
    monkeypatch.setattr(nearest_neighbor, "BY_EIGENVECTORS", 0)
    large = NearestNeighbor(near, cosine(20))
    logits = torch.randn(3, 5, 40, generator=generator, dtype=torch.float64, requires_grad=True)
    x0, t = torch.randint(0, 40, (3, 5), generator=generator), torch.tensor([2, 10, 19]).double() / 20
    x_t, found = small.corrupt(x0, t, generator=generator), []
    for transition in (small, large):
        kl = transition.divergence(Product(), logits, x0, x_t, t, t - 1 / 20).divergence
        found.append((kl, torch.autograd.grad(kl.sum(), logits)[0]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
