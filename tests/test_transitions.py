"""Every transition against matrices written out from the papers; schedules and heads against their formulas."""

import math

import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from unnoise.discrete import (
    Absorbing,
    BandDiagonal,
    Dense,
    DiscretizedGaussian,
    GaussianTarget,
    LogLinearNoise,
    Marginal,
    Mixture,
    NearestNeighbor,
    Product,
    TabulatedNoise,
    Uniform,
    carried,
    cosine,
    direct,
    linear,
    logistic,
    nearest,
    reciprocal,
    residual,
    sinkhorn,
)
from unnoise.discrete.transition.base import CLEAN
from unnoise.discrete.transition.generic import log_clean
from unnoise.shared.random import quantile

D = torch.float64


def at(n, steps):
    return torch.as_tensor(n, dtype=D) / steps


def expm(a):
    return torch.from_numpy(scipy.linalg.expm(a.numpy()))


def seeded(seed, *shape):
    return torch.rand(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def to_token(size, m):
    """The jump to one token, from any."""
    return torch.eye(size, dtype=D)[m].expand(size, -1)


def with_a_mask(q):
    """The same moves, and a last token that stays."""
    return F.pad(q, (0, 1, 0, 1)) + torch.diag(torch.eye(len(q) + 1, dtype=D)[-1])


def filled(q):
    """The diagonal that makes rows sum to one."""
    q = q - torch.diag(q.diagonal())
    return q + torch.diag(1 - q.sum(1))


def gaussian_step(size, beta):
    """Austin et al. (2021), appendix A.2.3: the normalizer runs over all offsets -(K-1)..K-1."""
    norm = sum(math.exp(-4 * n**2 / ((size - 1) ** 2 * beta)) for n in range(-(size - 1), size))
    return filled(by_pair(size, lambda i, j: math.exp(-4 * (i - j) ** 2 / ((size - 1) ** 2 * beta)) / norm))


def band_step(size, beta, band):
    return filled(by_pair(size, lambda i, j: beta / size * (abs(i - j) <= band)))


def by_pair(size, entry):
    return torch.tensor([[entry(i, j) for j in range(size)] for i in range(size)], dtype=D)


def walk(neighbors):
    """`R = (G + G^T) / 2k - diag` (Austin et al. 2021, A.2.5), entry by entry.

    A pair that is near both ways counts twice.
    """
    size, k = neighbors.shape
    r = torch.zeros(size, size, dtype=D)
    for i, row in enumerate(neighbors.tolist()):
        for j in row:
            r[i, j] += 0.5 / k
            r[j, i] += 0.5 / k
    return r - torch.diag(r.sum(1))


def toward_the_middle(size, reach, width):
    """Campbell et al. (2022), appendix E: inward rates by distance, outward ones by detailed balance."""
    r = torch.zeros(size, size, dtype=D)
    pi = [math.exp(-((i + 1 - size / 2) ** 2) / (2 * width**2)) for i in range(size)]
    for i in range(size):
        for j in range(size):
            if (i < size // 2 and i < j < size - i) or (i > size // 2 and size - 1 - i < j < i):
                r[i, j] = math.exp(-((abs(i - j) - 1) ** 2) / reach**2)
                r[j, i] = r[i, j] * pi[i] / pi[j]
    return r - torch.diag(r.sum(1))


def neighbors_of(size):
    """Each token's next one and one at random: connected."""
    return torch.stack(
        [(torch.arange(size) + 1) % size, (torch.arange(size) + 2 + torch.arange(size) % max(1, size - 3)) % size], 1
    )


def table(kind, size, steps):
    """A transition on betas at random, and its matrices `(T, K, K)`, each from its definition."""
    b, c = (0.02 + 0.9 * seeded(seed, steps) ** 2 for seed in (1, 2))
    last = torch.cat([b[:-1], torch.ones(1, dtype=D)])  # which only resampling can have
    eye, even, near = torch.eye(size, dtype=D), torch.full((size, size), 1 / size, dtype=D), neighbors_of(size)
    mask, bigger = to_token(size + 1, size), torch.eye(size + 1, dtype=D)
    rates, target, own = (
        walk(near),
        toward_the_middle(size, 1.7, 3.0),
        torch.rand(steps, size, size, dtype=D, generator=torch.Generator().manual_seed(5)),
    )
    own = own / own.sum(-1, keepdim=True)

    def mixed(moves, to):
        return [(1 - x) * q + x * to for x, q in zip(b, moves, strict=True)]

    walks = [expm(y * rates) for y in c]
    gaussians, bands = (
        [gaussian_step(size, float(y)) for y in c],
        [band_step(size, float(y), size // 2 or 1) for y in c],
    )
    make = {
        "uniform": lambda: (Uniform(size, last), [(1 - x) * eye + x * even for x in last]),
        "mask": lambda: (Absorbing(size, last), [(1 - x) * bigger + x * mask for x in last]),
        "mask of the data": lambda: (
            Absorbing(size, last, mask=size // 2),
            [(1 - x) * eye + x * to_token(size, size // 2) for x in last],
        ),
        "gaussian": lambda: (DiscretizedGaussian(size, c), gaussians),
        "band": lambda: (BandDiagonal(size, last), [band_step(size, float(x), 1) for x in last]),
        "wide band": lambda: (
            BandDiagonal(size, last, size // 2 or 1),
            [band_step(size, float(x), size // 2 or 1) for x in last],
        ),
        "every category": lambda: (BandDiagonal(size, last, size - 1), [band_step(size, float(x), size) for x in last]),
        "neighbors": lambda: (NearestNeighbor(near, TabulatedNoise(c)), walks),
        "target": lambda: (
            GaussianTarget(size, TabulatedNoise(c), reach=1.7, width=3.0),
            [expm(y * target) for y in c],
        ),
        "dense": lambda: (Dense(own), list(own)),
        "uniform+neighbors": lambda: (
            Mixture(NearestNeighbor(near, TabulatedNoise(c)), Uniform(size, b)),
            mixed(walks, even),
        ),
        "mask+neighbors": lambda: (
            Mixture(NearestNeighbor(near, TabulatedNoise(c)), Absorbing(size, b)),
            mixed([with_a_mask(q) for q in walks], mask),
        ),
        "mask+gaussian": lambda: (
            Mixture(DiscretizedGaussian(size, c), Absorbing(size, b)),
            mixed([with_a_mask(q) for q in gaussians], mask),
        ),
        "uniform+band": lambda: (Mixture(BandDiagonal(size, c, size // 2 or 1), Uniform(size, b)), mixed(bands, even)),
        "uniform+gaussian": lambda: (Mixture(DiscretizedGaussian(size, c), Uniform(size, b)), mixed(gaussians, even)),
    }
    transition, matrices = make[kind]()
    return transition, torch.stack(matrices)


KINDS = (
    *(
        "uniform",
        "mask",
        "mask of the data",
        "gaussian",
        "band",
        "wide band",
        "every category",
        "neighbors",
        "target",
        "dense",
    ),
    *("uniform+neighbors", "mask+neighbors", "mask+gaussian", "uniform+band", "uniform+gaussian"),
)
ANY = st.tuples(st.integers(2, 9), st.integers(1, 9))


def close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def product(matrices, i, j):
    q = torch.eye(matrices.shape[-1], dtype=D)
    for n in range(i, j):
        q = q @ matrices[n]
    return q


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None)
@given(sizes=ANY, data=st.data())
def test_every_structure_is_its_matrices(kind, sizes, data):
    size, steps = max(sizes[0], 3) if "neighbors" in kind else sizes[0], sizes[1]
    transition, matrices = table(kind, size, steps)
    j = data.draw(st.integers(1, steps))
    i = data.draw(st.integers(0, j - 1))
    s, t, q, before = at(i, steps), at(j, steps), product(matrices, i, j), product(matrices, 0, i)
    states = torch.arange(transition.states)
    close(transition.likelihood(states, s, t), q.T)
    p = seeded(j, 3, 2, transition.states)
    close(transition.pushforward(p, s, t), p @ q)
    # Posteriors where p0 may be that of some data: elsewhere divisions by what is all rounding differ.
    x, prior = torch.randint(0, transition.states, (3, 2), generator=torch.Generator().manual_seed(i)), p.clone()
    prior[..., transition.categories :] = 0
    prior[(before @ q)[:, x].movedim(0, -1) < 1e-4] = 0
    joint = prior[..., None] * before * q[:, x].movedim(0, -1)[..., None, :]  # (3, 2, x_0, x_s)
    p0 = joint.sum(-1)
    real = p0.sum(-1) > 1e-9
    p0, joint, x = p0[real], joint[real], x[real]
    expected = joint.sum(1) / joint.sum((1, 2))[:, None]
    close(transition.posterior(x, p0 / p0.sum(-1, keepdim=True), t, s), expected)
    # The product model does not divide, so any p0 will do, and on a point it is the posterior; from the first row to
    # x_0 it is p0 itself.
    distribution = q.T[x] * (prior[real] @ before)
    distribution = prior[real] if j == 1 and not transition.unmasked_is_clean else distribution
    close(Product()(transition, x, prior[real], t, s), distribution / distribution.sum(-1, keepdim=True))
    close(
        transition.ratio(x, p0, t) / p0.sum(-1, keepdim=True),
        (prior[real] @ before @ q) / (p0.sum(-1, keepdim=True)),
        1e-9,
    )
    dense = Dense(matrices, categories=transition.categories)
    close(dense.likelihood(states, s, t), q.T)
    close(dense.pushforward(p, s, t), p @ q)


@pytest.mark.parametrize("kind", KINDS)
def test_times_of_a_batch_are_single_times(kind):
    transition, _ = table(kind, 5, 8)
    n = torch.tensor([1, 4, 8])
    x, p = (
        torch.randint(0, 5, (3, 2, 2), generator=torch.Generator().manual_seed(0)),
        seeded(1, 3, 2, 2, transition.states),
    )
    for t, s in ((at(n, 8), at(n - 1, 8)), (at(n, 8), torch.zeros(3, dtype=D))):
        for b in range(3):
            one = slice(b, b + 1)
            close(transition.likelihood(x, s, t)[one], transition.likelihood(x[one], s[b], t[b]))
            close(transition.pushforward(p, s, t)[one], transition.pushforward(p[one], s[b], t[b]))
            close(transition.posterior(x, p, t, s)[one], transition.posterior(x[one], p[one], t[b], s[b]))
            close(Marginal()(transition, x, p, t, s)[one], Marginal()(transition, x[one], p[one], t[b], s[b]))
            close(transition.ratio(x, p, t)[one], transition.ratio(x[one], p[one], t[b]))
            close(transition.pushforward(p, CLEAN, t)[one], transition.pushforward(p[one], CLEAN, t[b]))
            close(transition.likelihood(x, CLEAN, t)[one], transition.likelihood(x[one], CLEAN, t[b]))


@pytest.mark.parametrize("categories", [7, 16, 17, 33])
def test_even_and_odd_halves_leave_no_negative_probabilities(categories):
    """Where both halves nearly agree their difference is rounding, of either sign: a KL of it would be no number."""
    transition = DiscretizedGaussian(categories, torch.linspace(1e-4, 0.02, 30, dtype=D))
    x0, x_t = torch.cartesian_prod(torch.arange(categories), torch.arange(categories)).T
    logits = seeded(0, categories**2, categories)
    for n in range(2, 31):
        assert (transition.pushforward(torch.eye(categories, dtype=D), CLEAN, at(n, 30)) >= 0).all()
        for reverse in (Product(), Marginal()):
            assert torch.isfinite(
                transition.divergence(reverse, logits, x0, x_t, at(n, 30), at(n - 1, 30)).divergence
            ).all()


def test_sampling_starts_from_the_average_over_the_data():
    """Of x_T averaged over the data's tokens alone, unless it is given."""
    matrices = seeded(3, 2, 4, 4).softmax(-1)
    close(Dense(matrices, categories=3).stationary(), (matrices[0] @ matrices[1])[:3].mean(0))
    last = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=D)
    close(Dense(matrices, last).stationary(), last)


def test_times_that_training_and_sampling_visit():
    process, u = Uniform(3, LogLinearNoise(t_min=0.1)), torch.tensor([0.0, 0.5, 0.999], dtype=D)
    close(process.training_time(u), 0.1 + 0.9 * u)
    close(process.grid(4), torch.tensor([1, 0.7, 0.4, 0.1, 0], dtype=D))
    close(Uniform(3, cosine(4)).training_time(u), torch.tensor([0.25, 0.75, 1], dtype=D))


def test_what_is_out_of_reach_counts_for_nothing():
    """A band's probabilities are rounding, not zero, beyond its reach: a p0 with weight there must not use them."""
    transition = BandDiagonal(16, cosine(10))
    x, t, s = torch.tensor([0]), at(3, 10), at(2, 10)  # from 0..3 alone
    p0 = torch.ones(1, 16, dtype=D)
    expected = transition.posterior(x, F.pad(torch.ones(1, 4, dtype=D), (0, 12)), t, s)
    close(transition.posterior(x, p0, t, s), expected)
    close(transition.posterior(x, p0.float(), t, s), expected.float(), 1e-6)


def test_schedules_of_the_papers():
    close(reciprocal(4), torch.tensor([1 / 4, 1 / 3, 1 / 2, 1], dtype=D))
    close(torch.cumprod(1 - reciprocal(4), 0), torch.tensor([3 / 4, 2 / 4, 1 / 4, 0], dtype=D))
    close(linear(3, 0.1, 0.5), torch.tensor([0.1, 0.3, 0.5], dtype=D))
    kept = torch.cumprod(1 - cosine(1000), 0)
    for n in (1, 500, 998):
        f = math.cos((n / 1000 + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)
        assert float(kept[n - 1]) == pytest.approx(f, rel=1e-10)
    assert float(cosine(1000)[-1]) == 0.999
    table = TabulatedNoise(torch.tensor([0.5, 1.0, 2.0]))
    close(table.total(at(torch.arange(4), 3)), torch.tensor([0.0, 0.5, 1.5, 3.5], dtype=D))
    close(table.time(torch.tensor([0.0, 0.5, 1.4, 1.6, 9.0])), torch.tensor([0, 1, 2, 3, 3], dtype=D) / 3)


def test_nearest_neighbors_and_sinkhorn():
    angle = torch.tensor([0.0, 0.1, 0.25, 3.0, 3.3], dtype=D)
    embeddings = torch.stack([angle.cos(), angle.sin()], 1) * torch.tensor([1.0, 5.0, 0.1, 2.0, 1.0], dtype=D)[:, None]
    assert nearest(embeddings, 2).tolist() == [[1, 2], [0, 2], [1, 0], [4, 2], [3, 0]]
    weights = sinkhorn(seeded(0, 5, 5))
    for axis in (0, 1):
        close(weights.sum(axis), torch.ones(5, dtype=D))


def test_quantiles_and_clean_distributions():
    p = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0], dtype=D)
    assert quantile(p.expand(4, -1), torch.tensor([1e-9, 0.5, 0.5 + 1e-9, 1.0], dtype=D)).tolist() == [1, 1, 3, 3]
    distribution = log_clean(Absorbing(4, reciprocal(3)), torch.zeros(2, 4)).exp()
    close(distribution, torch.tensor([[0.25] * 4 + [0.0]] * 2))


def test_heads():
    """Logits of x_0 from an output, each by its formula."""
    out, x_t = (
        torch.randn(2, 3, 6, dtype=D, generator=torch.Generator().manual_seed(0)),
        torch.tensor([[0, 5, 2], [5, 4, 1]]),
    )
    transition = Absorbing(5, reciprocal(4))
    close(direct(out, x_t, transition), out[..., :5])
    close(residual(out, x_t, transition), out[..., :5] + torch.eye(6, dtype=D)[x_t][..., :5])
    known = carried(out, x_t, transition).softmax(-1)
    expected = torch.where((x_t == 5)[..., None], out[..., :5].softmax(-1), torch.eye(6, dtype=D)[x_t][..., :5])
    close(known, expected)
    pixels, two = Uniform(256, reciprocal(4)), torch.randn(2, 3, 2, dtype=D, generator=torch.Generator().manual_seed(0))
    x_t = torch.tensor([[0, 255, 100], [128, 3, 200]])
    center, scale = torch.tanh(two[..., :1] + (x_t.double() / 127.5 - 1)[..., None]), torch.exp(two[..., 1:] - 2)
    edge = torch.linspace(-1 - 1 / 255, 1 + 1 / 255, 257, dtype=D)
    mass = torch.sigmoid((edge - center) / scale).diff()
    close(logistic(two, x_t, pixels).softmax(-1), mass / mass.sum(-1, keepdim=True), 1e-9)
    far = logistic(torch.tensor([[[9.0, -9.0]]]), torch.tensor([[255]]), pixels)
    assert torch.isfinite(far).all()  # where a difference of sigmoids has no digits
