"""Runs trained in Python, without a recipe: each kind of denoiser is sampled and measured from its checkpoint alone."""

import json
import math
from dataclasses import dataclass

import pytest
import torch
from pretrained_helpers import refused
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import nn

from unnoise.continuous import (
    DDIM,
    Clipped,
    Cosine,
    DenoisingLoss,
    Heun,
    Hybrid,
    Learned,
    LinearBetas,
    Preconditioned,
    Variational,
    VariationalBound,
    ZeroTerminal,
    large,
    learned_diagonal,
    learned_range,
    noise,
    small,
    snr,
    straight,
    velocity,
    velocity_weight,
)
from unnoise.continuous.grids import karras
from unnoise.discrete import (
    Absorbing,
    Ancestral,
    Categorical,
    ContinuousBound,
    D3PMLoss,
    DiscretizedGaussian,
    LogLinearNoise,
    ScoreEntropyDenoiser,
    Uniform,
    carried,
    cosine,
    most_likely,
)
from unnoise.discrete import VariationalBound as CategoricalBound
from unnoise.experiments import load
from unnoise.experiments.cli import main
from unnoise.experiments.evaluation import draw
from unnoise.experiments.pretrained.imported import Imported, ImportedTokens, run_of
from unnoise.sde import EDM, VE, VP, Adaptive, ChangeOfVariables, NoiseLevels, ProbabilityFlow, Straight
from unnoise.shared.data import Batches, SubwordTokenizer, characters, image_dataset, subwords, tokenizer_file
from unnoise.shared.gaussian.denoiser import Estimate, GaussianDenoiser
from unnoise.shared.gaussian.dequantization import UniformDequantization
from unnoise.shared.gaussian.schedule import Schedule
from unnoise.shared.networks import DiT, UNet
from unnoise.shared.progress import silent
from unnoise.shared.quantization import Quantization
from unnoise.shared.random import Streams, categorical
from unnoise.shared.serialization import serializable
from unnoise.shared.training import Trainer, Training

DIGITS, Q = image_dataset("digits"), Quantization(17)


def unet(**more):
    return UNet((1, 8, 8), 8, (1,), 1, (), heads=1, **more)


def learned(schedule, predicts=noise, **more):
    return Learned(unet(**more), schedule, predicts)


def simple(denoiser):
    """Its loss, with a weight that trains every time, also at zero SNR."""
    return DenoisingLoss(denoiser, weight=velocity_weight)


def trained(objective, batches, folder, steps=2):
    """The checkpoint of a few steps of training without a recipe."""
    Trainer(objective, Training(steps=steps, warmup=0, device="cpu"), folder=folder).fit(batches)
    checkpoint = load(folder)
    assert checkpoint.experiment is None
    return checkpoint


def numbers(run, checkpoint, steps=4):
    """Samples, and the code length of two examples, by the run."""
    denoiser, generator = checkpoint.average.denoiser, torch.Generator().manual_seed(0)
    samples = draw(
        run, run.sampler_of(denoiser), checkpoint.shape, checkpoint.quantization, 3, run.grid(denoiser, steps)
    )
    k = DIGITS.k[:2] if len(checkpoint.shape) == 3 else torch.arange(2 * math.prod(checkpoint.shape)).reshape(2, -1) % 5
    measure = run.code_length_of(denoiser, checkpoint.quantization)
    return samples.levels, measure(k, generator, silent, **run.conditions(torch.arange(2)))


def assert_numbers(run, checkpoint, sampler, steps, code, **cond):
    """The run gives what these parts of the library give."""
    levels, measured = numbers(run, checkpoint)
    shape = (3, *checkpoint.shape)
    drawn = sampler(shape=shape, steps=steps, generator=Streams(0, torch.arange(3)), **cond)
    assert torch.equal(levels, run.levels(checkpoint.quantization, drawn))
    expected = code(torch.Generator().manual_seed(0))
    for found, term in zip(measured[:3], expected[:3], strict=True):
        assert torch.equal(found, term)


CHAINS = {
    "noise": (lambda: simple(learned(LinearBetas(100))), large, 50),
    "zero SNR": (lambda: simple(learned(ZeroTerminal(LinearBetas(30)), velocity)), large, 30),
    "variance output": (lambda: Hybrid(learned(LinearBetas(30), outputs=2), Q, weight=snr), learned_range, 30),
    "its own variance": (
        lambda: Hybrid(learned(LinearBetas(30), outputs=2), Q, variance=learned_diagonal, weight=snr),
        learned_diagonal,
        30,
    ),
    "variational": (lambda: Variational(learned(LinearBetas(30)), Q, variance=small), small, 30),
}


@pytest.mark.parametrize("name", CHAINS)
def test_tables_are_chains(name, tmp_path):
    objective, variance, steps = CHAINS[name]
    checkpoint = trained(objective(), DIGITS.batches(16), tmp_path)
    run, clipped = run_of(checkpoint), Clipped(checkpoint.average.denoiser)
    bound = VariationalBound(clipped, Q, variance=variance, terms=100)
    assert (run.sampling_steps, run.kind, run.classes) == (steps, "upper bound", None)
    assert_numbers(run, checkpoint, DDIM(clipped), 4, lambda g: bound(Q.continuous(DIGITS.k[:2]), generator=g))


@serializable("tests.python_runs.Sine")
@dataclass(frozen=True)
class Sine(Schedule):
    """A schedule of one's own, of one method."""

    def __call__(self, t):
        return torch.cos(1.5 * t), torch.sin(1.5 * t)


@serializable("tests.python_runs.Shrinks")
class Shrinks(GaussianDenoiser):
    """A denoiser of one's own: the mean of a normal distribution, scaled by one weight."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule = self.corruption = schedule
        self.scale = nn.Parameter(torch.tensor(0.5))

    def estimate(self, x_t, t, **cond):
        alpha, sigma = self.corruption(t)
        factor = (self.scale * alpha / (alpha**2 + sigma**2)).float()
        return Estimate.of_mean(factor.reshape(-1, *[1] * (x_t.ndim - 1)) * x_t)


FLOWS = {
    "VP": (lambda: learned(VP()), True),
    "VE": (lambda: learned(VE()), True),
    "EDM": (lambda: learned(EDM(), Preconditioned(0.5)), True),
    "cosine": (lambda: learned(Cosine(), velocity), True),
    "noise levels": (lambda: learned(NoiseLevels(torch.logspace(-2, 1, 12).double())), True),
    "straight": (lambda: learned(Straight(), straight), False),
    "own schedule": (lambda: learned(Sine(), velocity), True),
    "own denoiser": (lambda: Shrinks(VP()), True),
}


@pytest.mark.parametrize("name", FLOWS)
def test_continuous_time_and_noise_levels_are_flows(name, tmp_path):
    make, finite = FLOWS[name]
    checkpoint = trained(DenoisingLoss(make(), weight=flat), DIGITS.batches(16, Quantization.dequantized), tmp_path)
    run, denoiser = run_of(checkpoint), checkpoint.average.denoiser
    assert (run.sampling_steps, run.kind) == (18, "exact up to uniform dequantization")
    sampler, steps = (Heun(denoiser), karras(4, denoiser.corruption)) if finite else (ProbabilityFlow(denoiser), 4)
    exact = ChangeOfVariables(denoiser, UniformDequantization(Q), integrator=Adaptive(1e-5, 1e-5))
    assert_numbers(run, checkpoint, sampler, steps, lambda g: exact(DIGITS.k[:2], generator=g))


@serializable("tests.python_runs.flat")
def flat(schedule, t):
    """The weight 1 of the squared error of x_0."""
    return torch.ones_like(t)


TOKENS = {
    "uniform": lambda: D3PMLoss(of_levels(Uniform(17, cosine(20)))),
    "Gaussian": lambda: D3PMLoss(of_levels(DiscretizedGaussian(17, cosine(20)))),
    "absorbing": lambda: ContinuousBound(of_levels(Absorbing(17, LogLinearNoise()))),
}


def of_levels(transition):
    return Categorical(unet(categories=transition.states, logits=17), transition)


@pytest.mark.parametrize("name", TOKENS)
def test_categorical_models_of_images(name, tmp_path):
    checkpoint = trained(TOKENS[name](), DIGITS.batches(16, Quantization.quantized), tmp_path)
    run, denoiser = run_of(checkpoint), checkpoint.average.denoiser
    assert isinstance(run, ImportedTokens)
    assert run.sampling_steps == (denoiser.corruption.steps or 128)
    sampler, bound = Ancestral(denoiser, most_likely), CategoricalBound(denoiser, terms=100)
    assert_numbers(run, checkpoint, sampler, 4, lambda g: bound(DIGITS.k[:2].long(), generator=g))
    assert run.with_data("digits").load("test").shape == (1, 8, 8)


def dit(transition, length=16):
    return DiT(transition.states, length, 16, 1, 2, outputs=transition.categories)


def of_characters(kind):
    transition = Absorbing(27, LogLinearNoise())
    network = dit(transition)
    denoiser = (
        Categorical(network, transition, head=carried) if kind == "MDLM" else ScoreEntropyDenoiser(network, transition)
    )
    return ContinuousBound(denoiser)


@pytest.mark.parametrize("kind", ["MDLM", "SEDD"])
def test_text_of_characters(kind, tmp_path):
    """Its alphabet is known, so samples are text and --data names the text."""
    data = characters("shakespeare", "train", 16)
    checkpoint = trained(of_characters(kind), data.batches(8), tmp_path / "run")
    run, denoiser = run_of(checkpoint), checkpoint.average.denoiser
    bound, k = CategoricalBound(denoiser, terms=100), torch.arange(32).reshape(2, -1) % 5
    assert_numbers(run, checkpoint, Ancestral(denoiser, categorical), 4, lambda g: bound(k, generator=g))
    shown = run.show(tmp_path / "a.txt", torch.tensor([[1, 2, 0]]), checkpoint.quantization, 1)
    assert shown.strip() == data.tokenizer.decode(torch.tensor([[1, 2, 0]]))[0].strip()
    refused(lambda: run.load("test"), "this checkpoint comes without data: give --data NAME")
    found = run.with_data("shakespeare").evaluate(
        denoiser, count=2, steps=2, trained_on=checkpoint.description["batches"]
    )
    assert "warning" not in found
    assert found["windows"] == 2


def test_by_the_commands(tmp_path, capsys):
    of_text = trained(of_characters("MDLM"), characters("shakespeare", "train", 16).batches(8), tmp_path / "text")
    trained(simple(learned(VP())), DIGITS.batches(16), tmp_path / "images")
    few = ["--count", "2", "--steps", "2"]
    for arguments in (
        ["sample", tmp_path / "images", *few, "--sampler", "ddim"],
        ["sample", tmp_path / "text", *few],
        ["evaluate", tmp_path / "text", *few, "--data", "shakespeare"],
    ):
        assert main([str(a) for a in arguments]) == 0, capsys.readouterr().err
    found = json.loads((tmp_path / "text" / "evaluation.json").read_text())
    expected = run_of(of_text).with_data("shakespeare").evaluate(of_text.average.denoiser, count=2, steps=2)
    assert found["bits_per_token"] == expected["bits_per_token"]


def test_text_of_other_tokens(tmp_path):
    """The checkpoint has the fingerprint of the tokenizer, not the tokenizer: it is given, and no other is taken."""
    paths = []
    for name in ("a", "b"):
        tokenizer = Tokenizer(WordLevel({"</s>": 0} | {f"{name}{n}": n for n in range(1, 17)}, unk_token=f"{name}1"))
        tokenizer.pre_tokenizer = WhitespaceSplit()
        paths.append(str(tmp_path / f"{name}.json"))
        tokenizer.save(paths[-1])
    own = tokenizer_file(paths[0])
    assert isinstance(own, SubwordTokenizer)
    for split in ("train", "test"):
        (tmp_path / f"{split}.txt").write_text("".join(f"a{n % 16 + 1} a{n % 7 + 1} a3\n" for n in range(100)))
    data = subwords(str(tmp_path), "train", 8, own)
    transition = Absorbing(17, LogLinearNoise())
    objective = ContinuousBound(Categorical(dit(transition, 8), transition, head=carried))
    checkpoint = trained(objective, data.batches(8), tmp_path / "run")
    run, denoiser = run_of(checkpoint), checkpoint.average.denoiser
    assert "does not contain their tokenizer (17 tokens" in run.show(
        tmp_path / "ids.txt", torch.tensor([[1, 2]]), checkpoint.quantization, 1
    )
    refused(lambda: run.with_data(str(tmp_path)).load("test"), 'with_tokenizer("tokenizer.json")')
    refused(lambda: run.with_tokenizer(paths[1]).with_data(str(tmp_path)).load("test"), "of the training")
    given = run.with_tokenizer(paths[0]).with_data(str(tmp_path))
    assert given.evaluate(denoiser, count=2, steps=2, trained_on=checkpoint.description["batches"])["windows"] == 2


def test_class_labels(tmp_path):
    """Those of the network, in turn, and of the held-out images."""
    batches = DIGITS.batches(16, Quantization.continuous, conditions=("label",))
    checkpoint = trained(simple(learned(LinearBetas(30), classes=10)), batches, tmp_path)
    run, clipped = run_of(checkpoint), Clipped(checkpoint.average.denoiser)
    assert run.classes == 10
    bound, label = VariationalBound(clipped, Q, terms=100), torch.arange(3)
    x0 = Q.continuous(DIGITS.k[:2])
    assert_numbers(
        run, checkpoint, DDIM(clipped), 4, lambda g: bound(x0, generator=g, label=torch.arange(2)), label=label
    )
    test = run.with_data("digits").load("test")
    assert torch.equal(run.data.conditions_of(test)["label"], test.label)


def test_evaluation_of_other_data_is_refused(tmp_path):
    checkpoint = trained(simple(learned(LinearBetas(30))), DIGITS.batches(16), tmp_path)
    run, denoiser = run_of(checkpoint), checkpoint.average.denoiser
    refused(lambda: run.load("test"), "this checkpoint comes without data: give --data NAME")
    refused(lambda: run.with_data("mnist5k").load("test"), "and this network needs (1, 8, 8) and 17")
    recorded = checkpoint.description["batches"]
    refused(
        lambda: run.with_data("digits").evaluate(denoiser, count=2, steps=2, trained_on=recorded | {"examples": 7}),
        "held-out examples may have been trained on",
    )
    refused(lambda: run.objective((1, 8, 8), Q), "continue the training of unnoise.load(RUN).objective")


@serializable("tests.python_runs.Own")
class Own(nn.Module):
    """A network of one's own, which needs a label, and a mask too if it `masks`."""

    def __init__(self, masks=False):
        super().__init__()
        self.masks, self.layer = masks, nn.Linear(64, 64)
        self.forward = self.masked if masks else self.labelled

    def labelled(self, x, time, label):
        return self.layer(x.flatten(1)).reshape(x.shape) + label[:, None, None, None] / 10

    def masked(self, x, time, mask):
        return self.layer(x.flatten(1)).reshape(x.shape) * mask


def test_labels_and_conditions_of_own_networks(tmp_path):
    """The number of classes is that of their recorded names; what cannot be given is named."""
    names = tuple("abcdefghij")
    batches = DIGITS._replace(names=names).batches(16, conditions=("label",))
    checkpoint = trained(simple(Learned(Own(), VP())), batches, tmp_path / "named")
    run = run_of(checkpoint)
    assert run.conditions(torch.tensor([3, 12]))["label"].tolist() == [3, 2]
    unnamed = Batches(DIGITS.k, 16, Q, Quantization.continuous, {"label": DIGITS.label})
    run = run_of(trained(simple(Learned(Own(), VP())), unnamed, tmp_path / "unnamed"))
    refused(lambda: run.conditions(torch.arange(2)), "this network needs label too")
    masks = Batches(DIGITS.k, 16, Q, Quantization.continuous, {"mask": torch.ones(len(DIGITS.k), 1, 1, 1)})
    run = run_of(trained(simple(Learned(Own(masks=True), VP())), masks, tmp_path / "masks"))
    refused(lambda: run.conditions(torch.arange(2)), "this network needs mask too")


def test_what_a_checkpoint_does_not_record(tmp_path):
    batches = [{"x0": Q.continuous(DIGITS.k[:4])}] * 2
    checkpoint = trained(simple(learned(LinearBetas(30))), batches, tmp_path / "plain")
    refused(lambda: run_of(checkpoint), 'train on batches that have both, such as image_dataset("digits").batches(64)')
    signals = checkpoint._replace(quantization=Q, shape=(2, 100))
    refused(lambda: run_of(signals), "shape (2, 100), and only images (C, H, W) and tokens")
    with_both = checkpoint._replace(quantization=Q, shape=(1, 8, 8))
    run = run_of(with_both)
    assert isinstance(run, Imported)
    assert run_of(with_both._replace(experiment=run)) is run
    tokens = run_of(trained(TOKENS["uniform"](), DIGITS.batches(16, Quantization.quantized), tmp_path / "d3pm"))
    refused(lambda: tokens.with_tokenizer("tokenizer.json"), "is a model of images")
