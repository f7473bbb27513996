"""Denoisers that hold other denoisers and classifiers, put on another schedule by `on`."""

import pytest
import torch
from torch import nn

from unnoise.continuous import Clipped, Learned, Tabulated, Thresholded, clean, linear_betas, noise
from unnoise.sde import EDM, VE, VP, DenoisingLoss, Straight
from unnoise.shared.errors import UsageError
from unnoise.shared.gaussian.denoiser import DenoiserWrapper, Estimate, GaussianDenoiser
from unnoise.shared.gaussian.guidance import ClassifierFree, ClassifierGradient, ClassifierGuided, NoisyClassifier
from unnoise.shared.gaussian.inverse import Masked, MomentMatching, PseudoInverse
from unnoise.shared.gaussian.inverse.posterior import Posterior
from unnoise.shared.networks import MLP

T, LABEL = torch.tensor(0.4, dtype=torch.float64), torch.tensor([0, 1, 1])
ZERO = torch.zeros((), dtype=torch.float64)


class Logits(nn.Module):
    """A classifier of two classes."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x, time):
        return self.layer(x)


class Mean(GaussianDenoiser):
    """The mean of two denoisers."""

    def __init__(self, first, second):
        super().__init__()
        self.first, self.second, self.corruption = first, second, first.corruption

    def estimate(self, x_t, t, **cond):
        return Estimate.of_mean((self.first(x_t, t) + self.second(x_t, t)) / 2)


class Listed(GaussianDenoiser):
    """The mean of denoisers in a list and in a dictionary, on the schedule of the first."""

    def __init__(self, *denoisers):
        super().__init__()
        self.some, self.others = nn.ModuleList(denoisers[:1]), nn.ModuleDict({"second": denoisers[1]})

    @property
    def corruption(self):
        return self.some[0].corruption

    def estimate(self, x_t, t, **cond):
        return Estimate.of_mean((self.some[0](x_t, t) + self.others["second"](x_t, t)) / 2)


class Between(DenoiserWrapper):
    """A share of a wrapped denoiser and of another one."""

    def __init__(self, denoiser, other):
        super().__init__(denoiser)
        self.other = other

    def estimate(self, x_t, t, **cond):
        return Estimate.of_mean(0.25 * self.denoiser(x_t, t) + 0.75 * self.other(x_t, t))


class Halved(ClassifierGuided):
    """Classifier guidance with a constructor of its own."""

    def __init__(self, denoiser, *, classifier, share):
        super().__init__(denoiser, classifier, 0.5)
        self.share = share


class Plain(Posterior):
    """A posterior with a constructor of its own: one step along the gradient of the squared residual."""

    def __init__(self, denoiser, *, y, step):
        super().__init__(denoiser, KEEP_FIRST, y, 0.1)
        self.step = step

    def shift(self, residual, covariance, alpha, sigma):
        return self.step * covariance(self.operator.adjoint(residual))


class Scaled(PseudoInverse):
    """A subclass with a constructor of its own."""

    def __init__(self, denoiser, *, y, factor):
        super().__init__(denoiser, KEEP_FIRST, y, 0.1)
        self.factor = factor

    def shift(self, residual, covariance, alpha, sigma):
        return self.factor * super().shift(residual, covariance, alpha, sigma)


KEEP_FIRST, Y = Masked(torch.tensor([True, False])), torch.tensor([[0.5, 0.0]])


def network(seed=0):
    """A network whose output is not 0 before training."""
    torch.manual_seed(seed)
    mlp = MLP(2, width=16, depth=1)
    for p in mlp.parameters():
        nn.init.normal_(p, std=0.3)
    return mlp


def learned(seed=0):
    return Learned(network(seed), VP())


def classifier():
    torch.manual_seed(7)
    return NoisyClassifier(Logits(), VP())


MAKE = {
    "mean of two": lambda: Mean(learned(), learned(1)),
    "denoisers in containers": lambda: Listed(learned(), learned(1)),
    "wrapper of two": lambda: Between(learned(), learned(1)),
    "wrapper of a mean of wrappers": lambda: Clipped(Mean(Thresholded(learned()), Clipped(learned(1)))),
    "classifier guidance": lambda: ClassifierGuided(learned(), classifier(), 2.0),
    "own classifier guidance": lambda: Halved(learned(), classifier=classifier(), share=3),
    "clipped classifier guidance": lambda: Clipped(Halved(learned(), classifier=classifier(), share=3)),
    "pseudo-inverse": lambda: PseudoInverse(learned(), KEEP_FIRST, Y, 0.1, 0.7),
    "moment matching": lambda: MomentMatching(learned(), KEEP_FIRST, Y, 0.1, 2),
    "own pseudo-inverse": lambda: Scaled(learned(), y=Y, factor=2.0),
    "own posterior": lambda: Plain(learned(), y=Y, step=0.3),
}


def schedules_in(denoiser):
    return [m.corruption for m in denoiser.modules() if hasattr(m, "corruption")]


def called(denoiser, x, t=T):
    return denoiser(x, t, **({"label": LABEL} if "label" in (denoiser.conditions or ()) else {}))


@pytest.mark.parametrize("name", MAKE)
def test_all_denoisers_inside_are_put_on_the_schedule(name, generator):
    """At equal log-SNR the network's input is the same, so that the estimates of a denoiser are those of its copy."""
    home = MAKE[name]().eval()
    before, numbers = schedules_in(home), dict(home.named_parameters())
    there = VE()
    moved = home.on(there)
    assert type(moved) is type(home)
    assert all(schedule == there for schedule in schedules_in(moved))
    assert len(schedules_in(moved)) == len(before)
    assert schedules_in(home) == before  # the original does not change
    assert all(p is numbers[k] for k, p in moved.named_parameters())  # weights are shared
    assert not any(m.training for m in moved.modules())
    assert all(schedule == VP() for schedule in schedules_in(moved.on(VP())))

    x, t = torch.randn(3, 2, generator=generator), home.corruption.time(there.log_snr(T))
    x_there = x * torch.hypot(*there(T)).float()
    alpha, sigma = home.corruption(t)
    x_home = x * torch.hypot(alpha, sigma).float()
    kept = {k: v for k, v in vars(home).items() if isinstance(v, int | float)}
    assert kept == {k: v for k, v in vars(moved.eval()).items() if isinstance(v, int | float)}
    torch.testing.assert_close(called(moved, x_there), called(home, x_home, t), atol=2e-5, rtol=2e-4)


def test_the_mode_of_training_is_kept():
    for make in MAKE.values():
        guided = make().train()
        guided.denoiser.eval() if hasattr(guided, "denoiser") else None
        modes = [m.training for m in guided.modules()]
        assert [m.training for m in guided.on(VE()).modules()] == modes


def test_the_gradient_of_a_guided_copy_is_that_of_its_classifier():
    guided = MAKE["own classifier guidance"]()
    moved = guided.on(VE())
    assert moved.gradient.classifier is moved.classifier
    assert guided.gradient.classifier is guided.classifier
    assert guided.classifier.corruption == VP()
    assert moved.share == 3

    class Doubled(ClassifierGradient):
        def __call__(self, x_t, t, **cond):
            return 2 * super().__call__(x_t, t, **cond)

    gradient = Doubled(classifier(), 3.0).on(VE())
    assert (type(gradient), gradient.scale, gradient.classifier.corruption) == (Doubled, 3.0, VE())


@pytest.mark.parametrize("name", [name for name in MAKE if "guidance" in name or "posterior" in name or "inv" in name])
def test_division_by_alpha_at_zero_snr_is_refused(name):
    guided = MAKE[name]()
    inner = guided.denoiser if isinstance(guided, Clipped) else guided
    inner.denoiser = Learned(network(), VP(), predicts=clean)
    with pytest.raises(UsageError, match="zero SNR, so this would divide by alpha"):
        guided.on(Straight())


@pytest.mark.parametrize("predicts", [noise, clean])
def test_estimates_are_finite_without_noise(predicts, generator):
    """At t = 0 the estimate is x_t itself if the network predicts noise, and no guidance moves it."""
    schedule = Tabulated(linear_betas(100))
    inner = Learned(network(), schedule, predicts)
    x, t = torch.randn(3, 2, generator=generator), torch.tensor([0.0, 0.5, 0.0], dtype=torch.float64)
    guided = {
        "classifier": ClassifierGuided(inner, NoisyClassifier(Logits(), schedule), 2.0),
        "pseudo-inverse": PseudoInverse(inner, KEEP_FIRST, Y),
        "moment matching": MomentMatching(inner, KEEP_FIRST, Y),
    }
    assert schedule(ZERO)[1] == 0
    for denoiser in guided.values():
        cond = {"label": LABEL} if isinstance(denoiser, ClassifierGuided) else {}
        for time, still in ((ZERO, slice(None)), (t, [0, 2])):
            x = x.detach().requires_grad_()
            out = denoiser(x, time, **cond)
            assert torch.equal(out[still], inner(x, time)[still])
            assert torch.isfinite(out).all()
            assert torch.isfinite(torch.autograd.grad(out.sum(), x)[0]).all()
        # `MomentMatching` does not move along a direction in which the Jacobian is not positive.
        assert isinstance(denoiser, MomentMatching) or not torch.equal(out[1], inner(x, t)[1])


def test_sigma_data_is_found_through_wrappers():
    denoiser = Clipped(Thresholded(Learned(network(), EDM(), sigma_data=0.25)))
    assert denoiser.sigma_data == 0.25
    assert DenoisingLoss.edm(denoiser).weight == DenoisingLoss.edm(denoiser, 0.25).weight
    with pytest.raises(UsageError, match="sigma_data=None"):
        DenoisingLoss.edm(Clipped(Mean(learned(), learned())))


def test_networks_without_the_condition_need_no_null():
    class Labelled(nn.Module):
        conditions = None

        def forward(self, x, time, label=None):
            return x

    with pytest.raises(UsageError, match=r"give it a method null\(name\)"):
        ClassifierFree(Learned(Labelled(), VP()), 1.0)
    guided = ClassifierGuided(Learned(MLP(2, classes=2), VP()), classifier())
    assert ClassifierFree(guided, 1.0).w == 1.0
