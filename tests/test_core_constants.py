"""Constants, slacks and bounds of the core on both of their sides."""

import copy
import math
from dataclasses import dataclass

import pytest
import torch

from unnoise.discrete import GenericTransition, NoiseSchedule
from unnoise.sde import EDM, VE, VP, MaximumLikelihood, Straight
from unnoise.shared.errors import UsageError
from unnoise.shared.gaussian import AnalyticGaussian, ClassifierFree, Learned, Schedule, noise, velocity
from unnoise.shared.gaussian.denoiser import Estimate
from unnoise.shared.gaussian.inverse import Masked, PseudoInverse
from unnoise.shared.networks import MLP
from unnoise.shared.objective import Loss, Stratified, independent, uniform_parts
from unnoise.shared.serialization import serialize
from unnoise.shared.tensors import like
from unnoise.shared.training.checkpoint import OLD_DEQUANTIZED, in_current_names
from unnoise.shared.values import notation, same, state_of

D = torch.float64
ONE = torch.ones((), dtype=D)


# ---- schedules and predictions


@dataclass(frozen=True)
class Growing(Schedule):
    """`alpha = exp(-t)`, `sigma = t (1 + t)`: all but its values is the default."""

    def __call__(self, t):
        return torch.exp(-t), t * (1 + t)


@dataclass(frozen=True)
class Down(Schedule):
    """`alpha = 1 - t`, less a number that is reached at t = 1."""

    below: float

    def __call__(self, t):
        return 1 - t - self.below * t, torch.sqrt(t)


@dataclass(frozen=True)
class Flat(Schedule):
    """The SNR stays the same from t = 0.5 on, while signal and noise grow."""

    def __call__(self, t):
        angle = math.pi / 2 * t.clamp(max=0.5)
        return (1 + t) * torch.cos(angle), (1 + t) * torch.sin(angle)


@dataclass(frozen=True)
class Late(Schedule):
    """Without noise until t = 0.3."""

    def __call__(self, t):
        return torch.ones_like(t), (t - 0.3).clamp(min=0)


def test_the_log_snr_of_a_schedule_that_defines_its_values_alone():
    t = torch.tensor([0.02, 0.4, 1.0], dtype=D)
    torch.testing.assert_close(Growing().log_snr(t), -2 * t - 2 * (t + t**2).log(), rtol=1e-14, atol=1e-14)


def test_bisection_finds_small_times_to_the_rounding_of_float64():
    t = torch.tensor([1.1e-5, 2e-5, 1e-4, 0.3], dtype=D)
    torch.testing.assert_close(Growing().time(-2 * t - 2 * (t + t**2).log()), t, rtol=1e-12, atol=0)


def test_rounding_of_a_schedule_is_not_disorder():
    """alpha may be below 0 by rounding, and the SNR may stay the same; more than that is refused."""
    Learned(MLP(2), Down(1e-12), velocity)
    Learned(MLP(2), Flat(), velocity)
    with pytest.raises(UsageError, match=r"has alpha=-1e-06, sigma=1 at t=1: "):
        Learned(MLP(2), Down(1e-6), velocity)


def test_a_schedule_without_noise_at_some_time_is_refused():
    with pytest.raises(UsageError, match=r"Late\(\) has alpha=1, sigma=0 at t=0.0154: "):
        Learned(MLP(2), Late(), velocity)


def test_how_small_alpha_may_be_where_it_is_divided_by():
    """c_skip = 1 / alpha may be 1e5 at t = 1 and not 1e7; each of c_skip and c_out alone counts."""
    Learned(MLP(2), Straight(1 - 1e-5), noise)
    for predicts in (
        noise,
        lambda alpha, sigma: (1 / alpha, torch.ones_like(alpha)),
        lambda alpha, sigma: (torch.zeros_like(alpha), sigma / alpha),
    ):
        with pytest.raises(UsageError, match="ends at zero SNR"):
            Learned(MLP(2), Straight(1 - 1e-7), predicts)


# ---- guidance and posteriors


def data():
    return AnalyticGaussian(torch.tensor([0.5, -1.0], dtype=D), torch.tensor([[1.0, 0.3], [0.3, 2.0]], dtype=D), VP())


class AsNoise(AnalyticGaussian):
    """The same mean, by an output that is the noise: a = 1 / alpha, b = -sigma / alpha."""

    def estimate(self, x_t, t, **cond):
        a, b = noise(*self.corruption(t))
        return Estimate(a, b, (super().estimate(x_t, t).mean(x_t) - like(a, x_t) * x_t) / like(b, x_t))


@pytest.mark.parametrize("schedule", [VE(), EDM(), VP(beta_max=10.0)], ids=repr)
@pytest.mark.parametrize(("low", "high"), [(0.1, 0.3), (0.2, 0.7), (0.33, 0.61)])
def test_guidance_acts_above_its_low_and_up_to_its_high_on_another_schedule(schedule, low, high):
    """The ends are those times although the conversion of times rounds."""
    guided = ClassifierFree(data(), 1.0, null=0, low=low, high=high).on(schedule)
    assert guided.acts(torch.tensor([guided.low, guided.high], dtype=D)).tolist() == [False, True]


def test_the_shift_of_a_posterior_does_not_depend_on_what_the_network_predicts():
    x, y = torch.tensor([[0.3, -0.8], [1.2, 0.1]], dtype=D), torch.tensor([[0.7, 0.0]], dtype=D)
    mask = Masked(torch.tensor([1.0, 0.0], dtype=D))
    plain, as_noise = (
        PseudoInverse(kind(v.mean, v.covariance, v.corruption), mask, y, noise=0.1)(x, ONE * 0.4)
        for v in (data(),)
        for kind in (AnalyticGaussian, AsNoise)
    )
    assert float((plain - data()(x, ONE * 0.4)).abs().max()) > 0.05
    torch.testing.assert_close(as_noise, plain, rtol=1e-10, atol=1e-10)


# ---- times that are not uniform


@pytest.mark.parametrize("power", [1.5, 2.0, 3.0])
def test_logged_parts_are_means_over_uniform_times(power):
    times = Stratified(power)
    u = times(200_000, torch.Generator().manual_seed(0))
    parts = uniform_parts(Loss(u, {"line": u, "wave": torch.cos(3 * u)}, u), times, u).parts
    assert float(parts["line"].mean()) == pytest.approx(1 / 2, abs=1e-3)
    assert float(parts["wave"].mean()) == pytest.approx(math.sin(3) / 3, abs=1e-3)


@pytest.mark.parametrize("power", [0.9, 1.1, 2.0])
def test_a_bound_is_refused_on_times_that_are_not_uniform(power):
    with pytest.raises(UsageError, match=rf"times=Stratified\(power={power}\) are not uniform"):
        MaximumLikelihood(data(), Stratified(power))
    for times in (Stratified(), independent):
        MaximumLikelihood(data(), times)


# ---- a transition matrix of one's own


class Masks(GenericTransition):
    """Absorption in an added mask; a share of eps is left at t = 1."""

    def __init__(self, eps=0.0):
        super().__init__(3, None, 4)
        self.eps = eps

    def kept(self, s, t):
        return (1 - (1 - self.eps) * t) / (1 - (1 - self.eps) * s)

    def pushforward(self, p, s, t):
        kept, mask = like(self.kept(s, t), p), torch.tensor([0, 0, 0, 1]).to(p)
        return kept * p + (1 - kept) * p.sum(-1, keepdim=True) * mask

    def likelihood(self, x_t, s, t):
        hit = self.one_hot(x_t, D)
        kept = like(self.kept(s, t), hit)
        return kept * hit + (1 - kept) * (x_t == 3).double()[..., None]


@dataclass(frozen=True)
class Cycle(GenericTransition):
    """Moves to the next category at rate 1, by the Fourier transform; with parts that can be made wrong."""

    categories: int
    excess: float = 0.0
    wrong: str = ""

    def matrix(self, s, t):
        turn = torch.exp(-2j * math.pi * torch.arange(self.categories, dtype=D) / self.categories)
        shifts = torch.fft.ifft(torch.exp(-(t - s).double()[..., None] * (1 - turn))).real.clamp(min=0)
        k = torch.arange(self.categories)
        return shifts[..., (k - k[:, None]) % self.categories]

    def pushforward(self, p, s, t):
        moved = (p[..., None, :] @ self.of_shape(self.matrix(s, t).to(p), p)).squeeze(-2)
        if self.wrong == "negative":
            moved = moved + 0.5 * (p - p.roll(1, -1))
        return moved * (1 + self.excess)

    def likelihood(self, x_t, s, t):
        q = self.matrix(s, t)
        if self.wrong == "later" and bool((s > 0).all()):  # transposed where the signal is not clean
            q = q.mT
        return (self.of_shape(q, self.one_hot(x_t, D)) @ self.one_hot(x_t, D)[..., None]).squeeze(-1)

    def of_shape(self, q, p):
        return q if q.ndim == 2 else q.reshape(len(q), *[1] * (p.ndim - 2), *q.shape[1:])


def test_when_sampling_starts_from_one_token():
    """Where all else has less than 1e-6; what is left of the data there is 0 below 1e-12."""
    torch.testing.assert_close(Masks(1e-7).stationary(), torch.tensor([0, 0, 0, 1.0], dtype=D), rtol=0, atol=0)
    left = torch.tensor([1e-5 / 3] * 3 + [1 - 1e-5], dtype=D)
    torch.testing.assert_close(Masks(1e-5).stationary(), left, rtol=1e-9, atol=0)
    assert Masks().survival(ONE * 0.999) == pytest.approx(1e-3)
    assert Masks(1e-7).survival(ONE) == pytest.approx(1e-7)
    assert Masks(1e-13).survival(ONE) == 0


@pytest.mark.parametrize("left", [1e-5, 1e-7, 1e-9])
def test_rates_that_grow_as_the_end_is_near(left):
    """With masks they are 1 / (1 - t)."""
    found = Masks().inflow(torch.tensor([3]), torch.tensor(1 - left, dtype=D))[0, :3]
    torch.testing.assert_close(found, torch.full((3,), 1 / left, dtype=D), rtol=1e-5, atol=0)


def test_a_jump_at_the_end_is_infinite_only_where_it_is():
    assert Masks().inflow(torch.tensor([3]), ONE).tolist() == [[math.inf] * 3 + [0.0]]


@pytest.mark.parametrize("t", [1e-4, 0.4, 1.0])
def test_rounding_does_not_become_a_rate(t):
    """Short steps magnify the rounding of a Fourier transform; each category is reached from one other."""
    found = Cycle(64).inflow(torch.arange(64), torch.tensor(t, dtype=D))
    torch.testing.assert_close(found, torch.eye(64, dtype=D).roll(-1, -1), rtol=0, atol=1e-5)
    assert int((found > 0).sum()) == 64


def test_how_far_a_matrix_may_be_off():
    """By the rounding of float32; numbers below 0 and mistakes at later times only are found too."""
    Cycle(5).check()
    Cycle(5, 1e-5).check()
    with pytest.raises(UsageError, match="to numbers of sum 1.001 .*must be distributions"):
        Cycle(5, 1e-3).check()
    with pytest.raises(UsageError, match="to numbers of sum 1 and least -0.*must be distributions"):
        Cycle(5, wrong="negative").check()
    with pytest.raises(UsageError, match="Cycle.likelihood differs from pushforward"):
        Cycle(5, wrong="later").check()


# ---- equality by value


@dataclass(frozen=True)
class Levels(Schedule):
    """A schedule of a user's, with a tensor."""

    sigmas: torch.Tensor

    def __call__(self, t):
        return torch.ones_like(t), t * self.sigmas.sum()


@dataclass(frozen=True)
class Events(NoiseSchedule):
    """A noise schedule of a user's, with a tensor."""

    rates: torch.Tensor

    def total(self, t):
        return t * self.rates.sum()

    def rate(self, t):
        return self.rates.sum().expand_as(t)

    def time(self, total):
        return total / self.rates.sum()


class Forgetful:
    """It keeps one of its two arguments."""

    __repr__ = notation

    def __init__(self, a, b):
        self.a, self.sum = a, a + b


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.ones(2), torch.ones(2, dtype=D)),
        (torch.ones(2), torch.ones(1, 2)),
        ({"a": 1}, {"a": 1, "b": 2}),
        ([1], [1, 2]),
        ((1, 2), [1, 2]),
        (1, True),
        (Forgetful(1, 2), Forgetful(1, 3)),
    ],
)
def test_values_that_differ_in_one_thing(a, b):
    assert not same(a, b)
    assert not same(b, a)
    assert same(a, a)


def test_what_does_not_keep_its_arguments_is_known_by_its_attributes():
    assert state_of(Forgetful(1, 2)) == {"a": 1, "sum": 3}
    assert repr(Forgetful(1, 2)) == "Forgetful(a=1, sum=3)"


def test_dataclasses_with_tensors_are_compared_by_their_entries():
    for kind in (Levels, Events):
        assert kind(torch.arange(4.0)) == kind(torch.arange(4.0))
        assert kind(torch.arange(4.0)) != kind(torch.arange(4.0) + 1)


def test_four_numbers_are_written_out_and_defaults_are_not():
    assert repr(Levels(torch.arange(4.0))) == "Levels(sigmas=[0.0, 1.0, 2.0, 3.0])"
    assert repr(Levels(torch.arange(5.0))) == "Levels(sigmas=tensor of shape (5,))"
    assert repr(VP(beta_max=20)) == "VP()"
    assert repr(VP(beta_max=float("2e1"))) == "VP()"


# ---- checkpoints


def test_a_denoiser_on_an_equal_schedule_is_saved():
    denoiser = Learned(MLP(2), VP())
    other = copy.copy(denoiser)
    other.corruption = VP()
    assert other.corruption is not other.schedule
    assert serialize(other) == serialize(denoiser)


@pytest.mark.parametrize("inside", ["", "objective."])
def test_weights_of_the_old_dequantizer_have_its_name_of_today(inside):
    """Also inside of another objective, and only there: a network's layer of that name keeps it."""
    old, new = f"{inside}dequantiser.flow.weight", f"{inside}dequantizer.flow.weight"
    layer = "denoiser.network.dequantiser.weight"
    groups = ("objective.{}", "average.{}", "optimizer.{}.exp_avg")
    description = {"objective": {"class": OLD_DEQUANTIZED, "arguments": {}}, "scale": None, "frozen": [old, layer]}
    tensors = {group.format(name): torch.zeros(1) for group in groups for name in (old, layer)}
    description, tensors = in_current_names(description, tensors)
    assert description["frozen"] == [new, layer]
    assert list(tensors) == [group.format(name) for group in groups for name in (new, layer)]
    assert description.keys() == {"objective", "quantization", "frozen"}
