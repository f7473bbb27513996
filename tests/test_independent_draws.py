"""Dropout, training times, noise and the order of the data are drawn independently of each other."""

import itertools

import pytest
import torch
from torch import nn

from unnoise.continuous import DenoisingLoss, Learned, Tabulated, linear_betas
from unnoise.discrete import Absorbing, Categorical, D3PMLoss, reciprocal
from unnoise.shared.data import Batches
from unnoise.shared.objective import Loss, Objective, antithetic, independent
from unnoise.shared.quantization import Quantization
from unnoise.shared.random import Streams, derived_seed, uniform
from unnoise.shared.training import Trainer, Training

PURPOSES = ("dropout", "noise", "order", "dequantization")


def test_derived_seeds_differ_in_purpose_number_and_seed():
    seeds = [derived_seed(s, p, n) for s in range(5) for p in PURPOSES for n in [*range(200), 1_000_003, 2_000_006]]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert len({seed % 2**32 for seed in seeds}) >= len(seeds) - 2  # what PyTorch's CPU generator reads of them
    assert derived_seed(0, "noise", 7) == derived_seed(0, "noise", 7)


def correlation(a, b):
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).mean() / (a.std() * b.std()))


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(PURPOSES, 2)))
def test_draws_of_two_purposes_are_uncorrelated_at_every_place(one, other):
    """Over 4000 steps, of the first numbers of both, place by place and shifted by up to three."""
    draws = {}
    for purpose in (one, other):
        generator = torch.Generator()
        draws[purpose] = torch.stack(
            [torch.rand(8, generator=generator.manual_seed(derived_seed(0, purpose, n))) for n in range(4000)]
        )
    for i, j in itertools.product(range(8), range(8)):
        if abs(i - j) <= 3:
            assert abs(correlation(draws[one][:, i], draws[other][:, j])) < 5 / 4000**0.5


class Watched(Objective):
    """Notes each step's times and, from the network, which entries dropout dropped."""

    def __init__(self, objective, drop):
        super().__init__()
        self.objective, self.drop, self.times_seen, self.dropped = objective, drop, [], []
        self.times = objective.times
        drop.register_forward_hook(
            lambda module, given, out: self.dropped.append((out == 0).flatten()[:16]) if module.training else None
        )

    @property
    def denoiser(self):
        return self.objective.denoiser

    def at(self, x0, t, *, generator=None, **cond) -> Loss:
        return self.objective.at(x0, t, generator=generator, **cond)

    def forward(self, x0, *, generator=None, **cond) -> Loss:
        loss = self.objective(x0, generator=generator, **cond)
        self.times_seen.append(loss.t)
        return loss


class Dropping(nn.Module):
    def __init__(self, width, out):
        super().__init__()
        self.table, self.drop, self.leave = nn.Linear(width, 32), nn.Dropout(0.1), nn.Linear(32, out)

    def forward(self, x, t):
        if not x.is_floating_point():
            x = nn.functional.one_hot(x, 5).float()
        return self.leave(self.drop(nn.functional.softplus(self.table(x))))


@pytest.mark.parametrize("family", ["gaussian", "absorbing"])
def test_dropout_does_not_follow_the_times(family):
    """An entry is dropped with the chance p = 0.1 whatever the time of the example at its place."""
    if family == "gaussian":
        network, x0 = Dropping(2, 2), torch.zeros(16, 2)
        objective = DenoisingLoss.simple(Learned(network, Tabulated(linear_betas(1000))))
    else:
        network, x0 = Dropping(5, 4), torch.zeros(16, 3).long()
        objective = D3PMLoss(Categorical(network, Absorbing(4, reciprocal(100))))
    watched = Watched(objective, network.drop)
    Trainer(watched, Training(steps=400, warmup=5)).fit(itertools.repeat({"x0": x0}))
    dropped, t = torch.stack(watched.dropped[:400]).double(), torch.stack(watched.times_seen)
    for place in (slice(0, 1), slice(0, 16)):
        high, low = dropped[:, place][t[:, place] > 0.9], dropped[:, place][t[:, place] <= 0.9]
        for share in (high, low):
            assert abs(float(share.mean()) - 0.1) < 5 * (0.09 / share.numel()) ** 0.5


def test_the_order_of_an_epoch_does_not_follow_its_number_nor_the_noise():
    batches = iter(Batches(torch.arange(64)[:, None], 64, Quantization(64), Quantization.quantized))
    orders = torch.stack([next(batches)["x0"][:, 0] for _ in range(300)]).double()
    generator = torch.Generator()
    noise = torch.stack([independent(64, generator.manual_seed(derived_seed(0, "noise", n))) for n in range(300)])
    for place in range(0, 64, 7):
        assert abs(correlation(orders[:, place], noise[:, place])) < 5 / 300**0.5
        assert abs(correlation(orders[:-1, place], orders[1:, place])) < 5 / 299**0.5


@pytest.mark.parametrize("batch", [1, 2, 5, 8])
def test_antithetic_times_come_from_any_source(batch):
    """U and 1 - u, for streams of the batch's rows too."""
    for source in (torch.Generator().manual_seed(0), Streams(3, range(batch))):
        u = antithetic(batch, source)
        assert u.shape == (batch,)
        assert bool(((u >= 0) & (u < 1)).all())
        half = (batch + 1) // 2
        torch.testing.assert_close(u[half:], 1 - u[: batch - half])
    assert not torch.equal(uniform((8,), Streams(3, range(8))), uniform((8,), Streams(4, range(8))))
