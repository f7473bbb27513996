"""Sources of noise."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from unnoise.experiments.cli import main
from unnoise.experiments.studies.demo import Demo
from unnoise.shared.data import Batches, sparse_chain
from unnoise.shared.errors import UsageError
from unnoise.shared.networks.classifier import train_classifier
from unnoise.shared.quantization import Quantization
from unnoise.shared.random import Streams, categorical, derived_seed, normal, rademacher_like, uniform, whole_seed
from unnoise.shared.training import Training


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


def test_categorical_distribution_and_zero_classes(generator):
    p = torch.tensor([0.0, 0.2, 0.0, 0.5, 0.3, 0.0])
    for source in (generator, Streams(1, range(40_000))):
        x = categorical(3 * p.expand(40_000, -1), source)
        counts = torch.bincount(x, minlength=6)
        assert counts[[0, 2, 5]].sum() == 0
        assert stats.chisquare(counts[[1, 3, 4]].numpy(), (p[[1, 3, 4]] * 40_000).numpy()).pvalue > 1e-3


NO_SEEDS = {str(v): v for v in (2**64, -(2**63) - 1, 10**40, 0.5, 3.0, float("nan"), None, True, "7", [1])}
NO_SEEDS |= {
    "digits": 10**5000,
    "two": torch.zeros(2, dtype=torch.int64),
    "many": torch.zeros(9, 99),
    "bool": np.bool_(True),
}
TAKE_SEEDS = {
    "derived_seed": lambda seed: derived_seed(seed, "noise", 3),
    "Streams": lambda seed: Streams(seed, range(2)),
    "Batches": lambda seed: Batches(torch.zeros(4, 2, dtype=torch.uint8), 2, Quantization(2), seed=seed),
    "Training": lambda seed: Training(seed=seed),
    "Demo": lambda seed: Demo(seed=seed).recipes(),
    "sparse_chain": lambda seed: sparse_chain(5, seed=seed),
    "train_classifier": lambda seed: train_classifier(
        torch.zeros(2, 1, 8, 8), torch.tensor([0, 1]), 2, steps=1, batch=2, seed=seed
    ),
}


@pytest.mark.parametrize("take", TAKE_SEEDS)
@pytest.mark.parametrize("seed", NO_SEEDS)
def test_what_is_no_seed_is_refused_in_one_line(take, seed):
    with pytest.raises(UsageError, match="seed=.*: give a whole number") as caught:
        TAKE_SEEDS[take](NO_SEEDS[seed])
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("take", TAKE_SEEDS)
def test_whole_numbers_of_any_kind_are_seeds(take):
    for seed in (7, np.int64(7), np.uint8(7), torch.tensor(7)):
        TAKE_SEEDS[take](seed)
    assert (
        TAKE_SEEDS["derived_seed"](np.int64(7))
        == TAKE_SEEDS["derived_seed"](torch.tensor(7))
        == TAKE_SEEDS["derived_seed"](7)
    )
    assert type(Training(seed=np.int64(7)).seed) is int
    assert Batches(torch.zeros(4, 2), 2, Quantization(2), seed=np.int64(7)).state_dict()["seed"] == 7


@given(st.integers(-(2**63), 2**64 - 1), st.integers(-(2**63), 2**64 - 1))
def test_every_seed_of_64_bits_has_its_own_noise(a, b):
    """A negative one is that of itself + 2^64, as with torch's generator; no others draw the same."""
    one, other = (normal((2, 8), Streams(seed, [0, 2**62])) for seed in (a, b))
    assert torch.isfinite(one).all()
    assert torch.equal(one, other) == ((a - b) % 2**64 == 0)
    assert 0 <= derived_seed(a, "noise") < 2**63
    assert (derived_seed(a, "noise") == derived_seed(b, "noise")) == (a == b)
    torch.Generator().manual_seed(whole_seed(a))
    if a < 0:
        assert torch.equal(one, normal((2, 8), Streams(a + 2**64, [0, 2**62])))


@pytest.mark.parametrize(
    "indices", [[0.5, 1.5], torch.tensor(3), torch.zeros(2, 2, dtype=torch.int64), [True, False], [2**70], "ab", None]
)
def test_what_is_no_row_of_indices_is_refused(indices):
    with pytest.raises(UsageError, match="indices=.*: give one whole number for each sample"):
        Streams(0, indices)


def test_indices_of_any_whole_type(generator):
    expected = normal((3, 2), Streams(0, range(3)))
    for indices in (
        [0, 1, 2],
        np.arange(3),
        torch.arange(3, dtype=torch.uint8),
        torch.arange(3, dtype=torch.int32),
        (0, 1, 2),
    ):
        assert torch.equal(normal((3, 2), Streams(0, indices)), expected)
    assert normal((0, 2), Streams(0, [])).shape == (0, 2)


RUN = Path(__file__).parent / "fixtures" / "checkpoints" / "ddpm"


@pytest.mark.parametrize(
    "command", [("sample", str(RUN)), ("evaluate", str(RUN)), ("demo", "--smoke"), ("train", "ddpm-smoke")]
)
def test_the_command_line_refuses_a_seed_before_anything_else(capsys, tmp_path, monkeypatch, command):
    """And a demo that stands there is not moved away for it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "demo.json").write_text("{}")
    option = "--training.seed" if command[0] == "train" else "--seed"
    assert main([*command, option, str(2**64)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("unnoise: ")
    assert f"seed={2**64}: give a whole number" in err
    assert err.count("\n") == 1
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["demo"]
