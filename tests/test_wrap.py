"""Networks of others: models and schedulers of diffusers in memory, and networks that are called with integer times."""

import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from pretrained_helpers import refused
from torch import nn

import unnoise
from unnoise.continuous import (
    DDIM,
    Ancestral,
    Clipped,
    DenoisingLoss,
    Learned,
    Tabulated,
    clean,
    large,
    learned_range,
    linear_betas,
    noise,
    small,
    straight,
    strided,
    trailing,
    velocity,
)
from unnoise.discrete import Categorical, Uniform, linear
from unnoise.experiments import pretrained
from unnoise.sde import VP, ProbabilityFlow, Straight
from unnoise.shared.errors import UsageError
from unnoise.shared.gaussian.guidance import ClassifierFree
from unnoise.shared.networks import UNet
from unnoise.shared.networks.adapters import IntegerTime, TensorOutput
from unnoise.shared.serialization import deserialize, serialize
from unnoise.shared.time_inputs import LastIndex, step_index, thousandths
from unnoise.shared.training import Trainer, Training

T, SHAPE = 100, (1, 8, 8)
PREDICTIONS = {"epsilon": noise, "sample": clean, "v_prediction": velocity}


def library():
    return pytest.importorskip("diffusers")


def woken(network, std=0.1):
    """The network with other weights: fresh ones hardly depend on the time."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(std * torch.randn(p.shape, generator=generator))
    return network.eval()


def unet(**changed):
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    sizes = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (16, 32)}
    return woken(library().UNet2DModel(**blocks, **sizes | {"layers_per_block": 1, "norm_num_groups": 8} | changed))


def conditional():
    return woken(
        library().UNet2DConditionModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            block_out_channels=(16,),
            layers_per_block=1,
            norm_num_groups=8,
            cross_attention_dim=12,
            attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
        )
    )


def ddim(**settings):
    return library().DDIMScheduler(
        **{"num_train_timesteps": T, "beta_end": 0.2, "clip_sample": False, "timestep_spacing": "trailing"} | settings
    )


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def state(batch=3):
    return torch.randn(batch, *SHAPE, generator=seeded())


@torch.no_grad()
def theirs(network, scheduler, x, steps, **step):
    """Samples by the library's own loop."""
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        out = network(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(getattr(out, "sample", out), t, x, **step).prev_sample
    return x


def times(scheduler):
    """The grid of the steps that a scheduler visits."""
    return torch.cat([(scheduler.timesteps.double() + 1) / T, torch.zeros(1, dtype=torch.float64)])


class Recorder(nn.Module):
    """A network that remembers the times that it is called with, and returns an output that depends on them."""

    def __init__(self, out=lambda x: x):
        super().__init__()
        self.scale, self.out, self.seen = nn.Parameter(torch.tensor(0.3)), out, []

    def forward(self, x, t):
        self.seen.append(t)
        return self.out(self.scale * x * torch.sin(t.float() + 1).reshape(-1, *[1] * (x.ndim - 1)))


@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_ddim_is_that_of_the_library(prediction, spacing, betas):
    network = unet()
    scheduler = ddim(prediction_type=prediction, timestep_spacing=spacing, beta_schedule=betas)
    denoiser, x = pretrained.wrap(network, scheduler), state()
    expected = theirs(network, scheduler, x, 10)
    grid = trailing(10, T) if spacing == "trailing" else strided(10, T)
    assert torch.allclose(times(scheduler), grid)
    assert denoiser.predicts is PREDICTIONS[prediction]
    assert denoiser.shape == SHAPE
    assert denoiser.clip == math.inf
    torch.testing.assert_close(DDIM(denoiser)(x, steps=grid) / expected.std(), expected / expected.std(), **CLOSE)


CLOSE = {"rtol": 0.0, "atol": 1e-4}


def test_clipping_is_recorded_and_the_same():
    network, scheduler = unet(), ddim(clip_sample=True, clip_sample_range=0.5)
    denoiser, x = pretrained.wrap(network, scheduler), state()
    expected = theirs(network, scheduler, x, 10, use_clipped_model_output=True)
    ours = DDIM(Clipped(denoiser, -denoiser.clip, denoiser.clip))(x, steps=trailing(10, T))
    assert denoiser.clip == 0.5
    torch.testing.assert_close(ours, expected, **CLOSE)
    for settings, clip in (({"thresholding": True}, 1.0), ({"clip_sample": False}, math.inf)):
        assert pretrained.wrap(network, ddim(**settings)).clip == clip
    assert pretrained.wrap(network, library().PNDMScheduler()).clip is None


@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
@pytest.mark.parametrize("kind", ["DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler"])
def test_zero_terminal_snr(kind, prediction):
    """Also of solvers, which put 2^-24 in place of 0 at the end of their table."""
    settings = {"num_train_timesteps": T, "beta_end": 0.2, "rescale_betas_zero_snr": True}
    scheduler = getattr(library(), kind)(prediction_type=prediction, **settings)
    network, reference = unet(), ddim(prediction_type=prediction, rescale_betas_zero_snr=True)
    denoiser, x = pretrained.wrap(network, scheduler), state()
    assert denoiser.corruption(torch.ones(()))[0] == 0
    expected = theirs(network, reference, x, 10)
    torch.testing.assert_close(DDIM(denoiser)(x, steps=trailing(10, T)), expected, **CLOSE)
    refused(lambda: pretrained.wrap(network, ddim(rescale_betas_zero_snr=True)), "DDIMScheduler: the schedule ends at")


@torch.no_grad()
def test_ancestral_steps_have_the_distribution_of_ddpm():
    """Mean and variance of single steps, by the library's own step without and with noise."""
    network = unet()
    for name, variance in (("fixed_small", small), ("fixed_large", large)):
        scheduler = library().DDPMScheduler(T, beta_end=0.2, clip_sample=False, variance_type=name)
        denoiser, x = pretrained.wrap(network, scheduler), state()
        assert denoiser.variance is variance
        for n in (2, 50, T):
            t = torch.tensor(n / T, dtype=torch.float64)
            mean, ours = Ancestral(denoiser, denoiser.variance).distribution(x, t, t - 1 / T)
            out = network(x, n - 1).sample
            z = torch.randn(x.shape, generator=seeded(1))
            expected = scheduler.step(out, n - 1, x, generator=seeded(1)).prev_sample
            torch.testing.assert_close(mean + ours.sqrt() * z, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_learned_variance():
    network, settings = unet(out_channels=2), {"beta_end": 0.2, "clip_sample": False, "variance_type": "learned_range"}
    scheduler = library().DDPMScheduler(T, **settings)
    denoiser, x = pretrained.wrap(network, scheduler), state()
    assert denoiser.has_variance_output
    assert not hasattr(denoiser, "variance")
    t = torch.tensor(0.5, dtype=torch.float64)
    out = network(x, 49).sample
    expected = scheduler.step(out, 49, x, generator=seeded(1)).prev_sample
    mean, variance = Ancestral(denoiser, learned_range).distribution(x, t, t - 1 / T)
    z = torch.randn(x.shape, generator=seeded(1))
    torch.testing.assert_close(mean + variance.sqrt() * z, expected, rtol=1e-4, atol=1e-4)
    words = "UNet2DModel has in_channels=1 and out_channels=2, but the DDIMScheduler has variance_type=None"
    refused(lambda: pretrained.wrap(network, ddim()), words)
    refused(lambda: pretrained.wrap(unet(), scheduler), "out_channels=1, but the DDPMScheduler has variance_type='lea")
    refused(lambda: pretrained.wrap(unet(in_channels=3), ddim()), "in_channels=3 and out_channels=1, but x_t has")


@pytest.mark.parametrize("steps", [1, 10])
@pytest.mark.parametrize("kind", ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "UniPC"])
@pytest.mark.parametrize("rows", [1000, 250])
def test_flow_matching_is_the_straight_path(kind, steps, rows):
    """Euler steps of the library with its shift, and DDIM here on its sigmas."""
    euler = library().FlowMatchEulerDiscreteScheduler(num_train_timesteps=rows, shift=3.0)
    solver = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "num_train_timesteps": rows}
    own = {"UniPC": lambda: library().UniPCMultistepScheduler(**solver)}
    scheduler = own.get(kind, lambda: getattr(library(), kind)(num_train_timesteps=rows, shift=3.0))()
    network, x = unet(), state()
    denoiser = pretrained.wrap(network, scheduler)
    assert denoiser.corruption == Straight()
    assert denoiser.predicts is straight
    assert denoiser.time_input == (thousandths if rows == 1000 else LastIndex(rows))
    x1 = x
    euler.set_timesteps(steps)
    with torch.no_grad():
        for t in euler.timesteps:
            x1 = euler.step(network(x1, t).sample, t, x1).prev_sample
    torch.testing.assert_close(DDIM(denoiser)(x, steps=euler.sigmas.double()), x1, **CLOSE)


KINDS = [
    *("DDPM", "DDIM", "DDPMParallel", "DDIMInverse", "PNDM", "LCM", "TCD", "SASolver", "UnCLIP", "EulerDiscrete"),
    *("DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "DEISMultistep"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_scheduler_with_a_table(kind):
    """Its schedule is that of its own `alphas_cumprod`, and step n = i + 1 is fed its index i."""
    network, made = Recorder(), getattr(library(), f"{kind}Scheduler")()
    denoiser = pretrained.wrap(network, made)
    alphas = made.alphas_cumprod.double()
    assert denoiser.corruption.steps == len(alphas) == 1000
    torch.testing.assert_close(denoiser.corruption.alphas_cumprod, alphas, rtol=1e-4, atol=1e-6)
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    x = torch.ones(1000, 1)
    a = alphas[:, None].float()
    torch.testing.assert_close(denoiser(x, t), (x - (1 - a).sqrt() * network(x, torch.arange(1000))) / a.sqrt(), **NEAR)
    assert torch.equal(network.seen[0], torch.arange(1000))


NEAR = {"rtol": 2e-3, "atol": 2e-3}
"""For `1 - alphas_cumprod` in float32."""


def test_the_table_is_the_one_that_the_scheduler_has():
    """Betas of its configuration in float64, given betas, and a table that does not follow from any betas it has."""
    network = Recorder()
    exact = torch.linspace(1e-4, 0.2, T, dtype=torch.float64)
    assert torch.equal(pretrained.wrap(network, ddim()).corruption.betas, exact)
    given = [0.1, 0.2, 0.3, 0.05]
    trained = library().DDPMScheduler(num_train_timesteps=4, trained_betas=given)
    assert pretrained.wrap(network, trained).corruption.betas.tolist() == given
    laplace = library().DDPMScheduler(num_train_timesteps=T, beta_schedule="sigmoid")
    assert torch.equal(pretrained.wrap(network, laplace).corruption.betas, laplace.betas.double())
    moved = ddim()
    moved.alphas_cumprod = moved.alphas_cumprod / (3 - 2 * moved.alphas_cumprod)
    torch.testing.assert_close(
        pretrained.wrap(network, moved).corruption.alphas_cumprod, moved.alphas_cumprod.double(), rtol=1e-9, atol=0
    )


def test_a_scheduler_is_only_looked_at():
    """A subclass, or any object with a configuration and a table."""
    like = SimpleNamespace(config={"prediction_type": "sample"}, alphas_cumprod=torch.tensor([0.9, 0.5, 0.1]))
    denoiser = pretrained.wrap(Recorder(), like)
    assert denoiser.predicts is clean
    torch.testing.assert_close(denoiser.corruption.alphas_cumprod, like.alphas_cumprod.double())
    own = type("Own", (library().DDIMScheduler,), {})(num_train_timesteps=7)
    assert pretrained.wrap(Recorder(), own).corruption.steps == 7


def test_the_library_is_not_imported():
    code = "import sys, unnoise.experiments.pretrained; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("learned", [False, True])
def test_times_between_two_steps(learned):
    """Sines are evaluated there, as `load` does; rows of an embedding, and other networks, are rounded to."""
    network = unet(**({"time_embedding_type": "learned", "num_train_timesteps": T} if learned else {}))
    denoiser, x, seen = pretrained.wrap(network, ddim()), state(), []
    network.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    with torch.no_grad():
        denoiser(x, torch.tensor([0.103, 0.5, 0.998], dtype=torch.float64))
    wanted = torch.tensor([9.3, 49.0, 98.8])
    torch.testing.assert_close(seen[-1], wanted.round().long() if learned else wanted)
    with torch.no_grad():
        torch.testing.assert_close(denoiser(x, torch.tensor(0.5)), denoiser(x, torch.full((3,), 0.5)))


def test_the_network_is_the_users():
    """No copy, no change of mode, gradients, precision."""
    network = unet().train()
    denoiser = pretrained.wrap(network, ddim())
    assert any(module is network for module in denoiser.modules())
    assert {id(p) for p in denoiser.parameters()} == {id(p) for p in network.parameters()}
    assert network.training
    DenoisingLoss.simple(denoiser)(state(), generator=seeded()).total.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    before = denoiser(state(), torch.tensor(0.5)).detach()
    with torch.no_grad():
        for p in network.parameters():
            p *= 0.5
    assert not torch.allclose(denoiser(state(), torch.tensor(0.5)), before)
    frozen = unet().eval()
    assert not pretrained.wrap(frozen, ddim()).network.inner.training
    half = unet().to(torch.bfloat16)
    assert pretrained.wrap(half, ddim())(state(), torch.tensor(0.5)).dtype == torch.float32


def test_classes_and_texts_are_conditions_by_name():
    scheduler, x, t = ddim(), state(), torch.tensor(0.5, dtype=torch.float64)
    network, label = unet(num_class_embeds=4), torch.tensor([0, 1, 2])
    denoiser = pretrained.wrap(network, scheduler)
    assert denoiser.conditions == ("class_labels",)
    alpha, sigma = (c.float() for c in denoiser.corruption(t))
    with torch.no_grad():
        expected = (x - sigma * network(x, 49, class_labels=label).sample) / alpha
        torch.testing.assert_close(denoiser(x, t, class_labels=label), expected, **CLOSE)
        null = network(x, 49, class_labels=torch.full((3,), 3)).sample
        guided = ClassifierFree(denoiser, 3.0, condition="class_labels", null=3)(x, t, class_labels=label)
        strong = 4 * network(x, 49, class_labels=label).sample - 3 * null
        torch.testing.assert_close(guided, (x - sigma * strong) / alpha, **CLOSE)
    network, text = conditional(), torch.randn(3, 5, 12, generator=seeded(1))
    denoiser = pretrained.wrap(network, scheduler)
    assert denoiser.conditions[:2] == ("encoder_hidden_states", "class_labels")
    with torch.no_grad():
        expected = (x - sigma * network(x, 49, encoder_hidden_states=text).sample) / alpha
        torch.testing.assert_close(denoiser(x, t, encoder_hidden_states=text), expected, **CLOSE)
        samples = DDIM(ClassifierFree(denoiser, 2.0, condition="encoder_hidden_states", null=torch.zeros(5, 12)))(
            x, steps=3, encoder_hidden_states=text
        )
    assert samples.isfinite().all()


def test_what_is_not_supported_is_named():
    network, lib = Recorder(), library()
    for scheduler, words in (
        (lib.EDMEulerScheduler(), "build Learned(TensorOutput(unet), EDM(), Preconditioned(0.5), quarter_log)"),
        (lib.ScoreSdeVeScheduler(), "build Learned(network, VE(), scaled_score, noise_level, scaled=False)"),
        (lib.FlowMatchLCMScheduler(), "build Learned(TensorOutput(unet), Straight(), straight, scaled=False)"),
        (lib.IPNDMScheduler(), "a IPNDMScheduler has no alphas_cumprod"),
        (lib.FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "invert_sigmas=True"),
        (lib.EulerDiscreteScheduler(timestep_type="continuous"), "timestep_type='continuous' is not supported"),
        (lib.DDPMScheduler(variance_type="learned"), "variance_type='learned' is not supported"),
        (lib.DDIMScheduler(thresholding=True, sample_max_value=1.5), "Thresholded(denoiser, 0.995)"),
        (lib.DPMSolverMultistepScheduler(prediction_type="flow_prediction"), "prediction_type='flow_prediction'"),
        (lib.DDIMScheduler, "scheduler is the class DDIMScheduler: give the scheduler of the training"),
        (unet(), "scheduler is a UNet2DModel without config"),
        (None, "scheduler is a NoneType without config"),
        (lib.DDIMScheduler(beta_start=0.0), "DDIMScheduler: betas[0]=0"),
    ):
        refused(lambda s=scheduler: pretrained.wrap(network, s), words)
    refused(lambda: pretrained.wrap(lambda x, t: x, ddim()), "unet is a function, not an nn.Module")
    refused(lambda: pretrained.wrap(ddim(), network), "unet is a DDIMScheduler", "wrap(pipeline.unet, pipeline.sched")
    refused(lambda: pretrained.wrap(nn.Linear(2, 2), ddim()), "Linear takes (input), but is called as")


@pytest.mark.parametrize("wrapped", [False, True])
def test_integer_times_are_the_indices_of_a_table(wrapped):
    """Every step of a table, of a respaced one, and the nearest step on another schedule; also by `wrap`."""
    network, table = Recorder(), Tabulated(linear_betas(T))
    denoiser = Learned(IntegerTime(network), table, time_input=step_index)
    if wrapped:
        denoiser = pretrained.wrap(network, ddim(beta_start=1e-3))  # 1000 / T times the usual ends
        table = denoiser.corruption
    x, t = torch.zeros(T, 1), torch.arange(1, T + 1, dtype=torch.float64) / T
    denoiser(x, t)
    assert network.seen[-1].dtype == torch.int64
    assert torch.equal(network.seen[-1], torch.arange(T))
    respaced = table.respaced(strided(10, T))
    denoiser.on(respaced)(x[:10], torch.arange(1, 11, dtype=torch.float64) / 10)
    assert network.seen[-1].tolist() == list(range(0, T, 10))
    log_snr = table.log_snr((torch.tensor([1, 40, 80]) + torch.tensor([0.2, 0.4, 0.7])).double() / T)
    vp = VP()
    denoiser.on(vp)(x[:3], vp.time(log_snr))
    assert network.seen[-1].tolist() == [0, 39, 80]
    DDIM(denoiser)(x[:2], steps=trailing(4, T))
    assert [int(seen[0]) for seen in network.seen[-4:]] == [99, 74, 49, 24]


def test_integer_times_around_any_module():
    """Without the attributes of this package's networks, with them, and with an embedding; for tokens too."""
    plain = IntegerTime(Recorder())
    assert getattr(plain, "conditions", None) is None
    assert not any(hasattr(plain, name) for name in ("outputs", "null", "shape"))
    own = UNet(SHAPE, 8, (1,), 1, classes=3, outputs=2)
    around = IntegerTime(own)
    assert (around.conditions, around.outputs, around.shape) == (own.conditions, 2, SHAPE)
    assert torch.equal(around.null("label"), own.null("label"))
    table = Tabulated(linear_betas(T))
    denoiser = Learned(around, table, time_input=step_index)
    assert denoiser.has_variance_output
    assert denoiser.conditions == own.conditions
    x, label = state(), torch.tensor([0, 1, 2])
    expected = Learned(own, table, time_input=step_index)(x, torch.tensor(0.5), label=label)
    assert torch.equal(denoiser(x, torch.tensor(0.5), label=label), expected)

    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.rows = nn.Embedding(T, 5)

        def forward(self, x, t):
            return self.rows(t)[:, None].expand(*x.shape, 5)

    tokens = torch.zeros(4, 6, dtype=torch.int64)
    model = Categorical(IntegerTime(Rows()), Uniform(5, linear(T, 1e-4, 0.02)), time_input=step_index)
    assert model(tokens, torch.tensor(1.0)).shape == (4, 6, 5)
    with pytest.raises(
        UsageError, match="the embedding inner.rows of IntegerTime has 100 rows, but row 1000 is looked"
    ):
        Categorical(IntegerTime(Rows()), Uniform(5, linear(T, 1e-4, 0.02)))(tokens, torch.tensor(1.0))
    refused(lambda: IntegerTime(nn.Linear(2, 2)), "Linear takes (input), but is called as network(x, time")
    refused(lambda: IntegerTime(lambda x, t: x), "is not an nn.Module")


@pytest.mark.parametrize(
    "out", [lambda x: x, lambda x: (x, "more"), lambda x: [x], lambda x: SimpleNamespace(sample=x, other=2 * x)]
)
def test_the_tensor_in_an_output(out):
    network, x, t = Recorder(out), state(), torch.tensor(0.5)
    table = Tabulated(linear_betas(T))
    found = Learned(TensorOutput(network), table)(x, t)
    assert torch.equal(found, Learned(Recorder(), table)(x, t))
    assert TensorOutput(network).outputs == 1
    assert TensorOutput(network, 2).outputs == IntegerTime(TensorOutput(network, outputs=2)).outputs == 2
    assert TensorOutput(UNet(SHAPE, 8, (1,), 1, outputs=2)).outputs == 2


@pytest.mark.parametrize("out", [lambda x: None, lambda x: {"x": x}, lambda x: (), lambda x: ("a",)])
def test_other_outputs_are_refused_in_one_line(out):
    denoiser = Learned(TensorOutput(Recorder(out)), Tabulated(linear_betas(T)))
    refused(lambda: denoiser(state(), torch.tensor(0.5)), "the network returned")


def test_adapters_come_back_from_a_checkpoint(tmp_path):
    """With the user's network, which is given again; also of a model of the library."""
    network = Recorder()
    for made in (IntegerTime(network), TensorOutput(network, 2), IntegerTime(TensorOutput(network, 2))):
        again = deserialize(serialize(made), network)
        assert type(again) is type(made)
        assert getattr(again, "outputs", None) == getattr(made, "outputs", None)
    model = unet()
    data = [{"x0": state(4)}]
    trained = Trainer(DenoisingLoss.simple(pretrained.wrap(model, ddim())), Training(steps=1), folder=tmp_path / "run")
    trained.fit(iter(data * 2))
    loaded, x = unnoise.load(tmp_path / "run", network=unet()).objective.denoiser, state()
    with torch.no_grad():
        assert torch.equal(loaded(x, torch.tensor(0.5)), trained.objective.denoiser(x, torch.tensor(0.5)))


def test_a_probability_flow_of_a_users_network():
    """It is that of this package's denoiser around the same function: the step does not change between two rows."""
    network = Recorder()
    denoiser = pretrained.wrap(network, ddim())
    samples = ProbabilityFlow(denoiser.on(VP()))(state(), steps=5)
    assert samples.isfinite().all()
    assert all(seen.dtype == torch.int64 and 0 <= int(seen.min()) <= int(seen.max()) < T for seen in network.seen)
