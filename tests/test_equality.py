"""Processes that are equal where the values they were made of are equal."""

import copy
from dataclasses import dataclass

import pytest
import torch

from unnoise import continuous, discrete, sde
from unnoise.continuous import DDIM, Learned, Tabulated, cosine_betas, linear_betas
from unnoise.shared.errors import UsageError
from unnoise.shared.gaussian import Schedule
from unnoise.shared.networks import MLP
from unnoise.shared.sampler import PredictorCorrector


def noise_levels(changed=False):
    """A thousand noise levels, too many to be written out; one in the middle may differ."""
    sigmas = torch.logspace(-2, 1, 1000, dtype=torch.float64)
    if changed:
        sigmas[500] *= 1.0001
    return sde.NoiseLevels(sigmas)


class Still(torch.nn.Module):
    """A network that gives its input."""

    def forward(self, x, time):
        return x


class Own(sde.VP):
    """A schedule of a user's, whose attributes have other names than its arguments."""

    def __init__(self, low):
        super().__init__(low, 20.0)
        self._low = low


PROCESSES = {
    "table": (lambda: Tabulated(linear_betas(100)), lambda: Tabulated(linear_betas(101))),
    "table of other betas": (lambda: Tabulated(linear_betas(1000)), lambda: Tabulated(cosine_betas(1000))),
    "cosine": (lambda: continuous.Cosine(), lambda: continuous.Cosine(0.01)),
    "vp": (lambda: sde.VP(), lambda: sde.VP(0.2)),
    "vp and sub-vp": (lambda: sde.VP(), lambda: sde.SubVP()),
    "ve": (lambda: sde.VE(0.01, 50.0), lambda: sde.VE(0.01, 50.5)),
    "one sigma of a thousand": (noise_levels, lambda: noise_levels(changed=True)),
    "a user's": (lambda: Own(0.2), lambda: Own(0.3)),
    "absorbing": (
        lambda: discrete.Absorbing(5, discrete.LogLinearNoise()),
        lambda: discrete.Absorbing(5, discrete.LogLinearNoise(0.01)),
    ),
    "absorbing tables": (
        lambda: discrete.Absorbing(5, discrete.linear(50)),
        lambda: discrete.Absorbing(5, discrete.linear(51)),
    ),
    "states": (
        lambda: discrete.Uniform(5, discrete.LogLinearNoise()),
        lambda: discrete.Uniform(6, discrete.LogLinearNoise()),
    ),
    "dense": (
        lambda: discrete.Dense(torch.full((3, 2, 2), 0.5)),
        lambda: discrete.Dense(torch.tensor([[[0.5, 0.5], [0.5, 0.5]]] * 2 + [[[0.4, 0.6], [0.5, 0.5]]])),
    ),
}


@pytest.mark.parametrize("name", PROCESSES)
def test_processes_of_equal_values_are_equal(name):
    make, other = PROCESSES[name]
    assert make() == make()
    assert hash(make()) == hash(make())
    assert make() != other()
    assert make() != "another thing"
    assert copy.deepcopy(make()) == make()


def test_predictor_and_corrector_of_equal_tables_fit():
    a, b = (Learned(Still(), Tabulated(linear_betas(100))) for _ in range(2))
    corrector = sde.AnnealedLangevin(b)
    PredictorCorrector(DDIM(a), corrector)
    with pytest.raises(UsageError, match="different schedules"):
        PredictorCorrector(DDIM(Learned(Still(), Tabulated(linear_betas(101)))), corrector)
    with pytest.raises(UsageError, match="different schedules"):  # which differ in one number that no print shows
        PredictorCorrector(
            sde.ReverseDiffusion(sde.Learned(Still(), noise_levels())),
            sde.AnnealedLangevin(sde.Learned(Still(), noise_levels(True))),
        )


def test_predictor_and_corrector_of_two_reverse_models_do_not_fit():
    chain = discrete.Uniform(3, discrete.LogLinearNoise())
    product, marginal = (
        discrete.Categorical(Still(), chain, reverse=r) for r in (discrete.Product(), discrete.Marginal())
    )
    PredictorCorrector(discrete.TauLeaping(product), discrete.RateCorrector(product))
    with pytest.raises(UsageError, match="Product.*Marginal.*one denoiser"):
        PredictorCorrector(discrete.TauLeaping(product), discrete.RateCorrector(marginal))


def test_a_denoiser_on_an_equal_schedule_is_at_home():
    """Its times then are those of training, not ones that went through the log-SNR and back."""
    denoiser = Learned(Still(), Tabulated(linear_betas(100)))
    moved = denoiser.on(Tabulated(linear_betas(100)))
    assert moved.corruption is denoiser.schedule


@pytest.mark.parametrize(
    ("process", "expected"),
    [
        (sde.VP(), "VP()"),
        (sde.VP(beta_max=10.0), "VP(beta_max=10.0)"),
        (Tabulated(linear_betas(100)), "Tabulated(betas=tensor of shape (100,))"),
        (
            discrete.Absorbing(5, discrete.LogLinearNoise()),
            "Absorbing(categories=5, schedule=LogLinearNoise())",
        ),
    ],
)
def test_processes_say_what_they_were_made_of(process, expected):
    assert repr(process) == expected


@dataclass(frozen=True, slots=True)
class Slotted(Schedule):
    power: float = 1.0

    def __call__(self, t):
        return 1 - 0.9 * t**self.power, 0.9 * t**self.power


def test_values_in_slots_are_compared_and_numbers_by_their_value():
    assert Slotted(1.0) == Slotted(1) != Slotted(2.0)
    assert sde.VP(beta_max=20) == sde.VP() != sde.VP(beta_max=21)
    denoiser = continuous.Learned(MLP(2), Slotted(1.0))
    assert denoiser.on(Slotted(3.0)).corruption.power == 3.0
    assert denoiser.on(sde.VP()).on(Slotted(1)).corruption is denoiser.schedule


def test_own_equality_is_inherited():
    class Named(sde.VP):
        def __eq__(self, other):
            return isinstance(other, Named)

        def __repr__(self):
            return "named"

    class Further(Named):
        pass

    assert Further(beta_max=3.0) == Further(beta_max=4.0)
    assert repr(Further()) == "named"
