"""Sources of noise."""

import torch
from scipy import stats

from unnoise.shared.random import Streams, categorical, normal, rademacher_like, uniform


def test_streams_depend_on_seed_index_and_call_alone():
    a = Streams(3, range(8))
    first, second = normal((8, 5), a), normal((8, 5), a)
    b = Streams(3, [6, 2])
    assert torch.equal(normal((2, 5), b), first[[6, 2]])
    assert torch.equal(normal((2, 5), b), second[[6, 2]])
    assert not torch.equal(first, second)
    assert not torch.equal(first, normal((8, 5), Streams(4, range(8))))


def test_streams_are_uniform_normal_and_uncorrelated():
    source = Streams(0, range(400))
    for dtype in (torch.float32, torch.float64):
        u = uniform((400, 250), source, dtype=dtype)
        assert u.min() > 0
        assert u.max() < 1
        assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-3
        z = normal((400, 250), source, dtype=dtype)
        assert torch.isfinite(z).all()
        assert stats.kstest(z.flatten().double().numpy(), "norm").pvalue > 1e-3
        rows, columns = torch.corrcoef(z), torch.corrcoef(z.T)
        for matrix in (rows, columns):
            off = matrix[~torch.eye(len(matrix), dtype=bool)]
            assert off.abs().max() < 0.35
            assert abs(float(off.mean())) < 0.005
    assert abs(float(rademacher_like(torch.empty(400, 250), source).mean())) < 0.01


def test_draws_have_the_dtype_that_is_asked():
    for source in (Streams(0, range(3)), torch.Generator()):
        assert normal((3, 2), source, dtype=torch.bfloat16).dtype == torch.bfloat16
        assert uniform((3, 2), source, dtype=torch.float64).dtype == torch.float64


def test_categorical_law_and_zero_classes(generator):
    p = torch.tensor([0.0, 0.2, 0.0, 0.5, 0.3, 0.0])
    for source in (generator, Streams(1, range(40_000))):
        x = categorical(3 * p.expand(40_000, -1), source)
        counts = torch.bincount(x, minlength=6)
        assert counts[[0, 2, 5]].sum() == 0
        assert stats.chisquare(counts[[1, 3, 4]].numpy(), (p[[1, 3, 4]] * 40_000).numpy()).pvalue > 1e-3
