"""Parts, data and recipes of one's own in Python files: trained, sampled and evaluated by the command line."""

import json
import re
import sys

import numpy as np
import pytest
from PIL import Image

from unnoise.experiments import evaluation
from unnoise.experiments.cli import main
from unnoise.experiments.own_files import own_module
from unnoise.shared import serialization
from unnoise.shared.errors import UsageError
from unnoise.shared.training.checkpoint import newest, read

PARTS = '''
from dataclasses import dataclass, replace

import torch
from torch import nn

from unnoise.experiments.gaussian import GaussianLoss
from unnoise.experiments.image_data import Images
from unnoise.experiments.papers import ddpm
from unnoise.experiments.parts import part
from unnoise.shared.data import ImageDataset
from unnoise.shared.gaussian.schedule import Schedule
from unnoise.shared.quantization import Quantization
from unnoise.shared.sampler import Sampler


@dataclass(frozen=True)
class Sine(Schedule):
    """A quarter of a circle."""

    last: float = 1.5

    def __call__(self, t):
        return torch.cos(self.last * t), torch.sin(self.last * t)


def twice(schedule, t):
    """Twice the signal-to-noise ratio."""
    alpha, sigma = schedule(t)
    return 2 * (alpha / sigma) ** 2


@dataclass(frozen=True)
class Scaled:
    """Another weight, with an argument."""

    by: float

    def __call__(self, schedule, t):
        return self.by * twice(schedule, t)


class Jump(Sampler):
    """Deterministic steps along the estimate of x_0."""

    def __init__(self, denoiser, share=1.0):
        super().__init__(denoiser)
        self.share = share

    def step(self, x, t, s, *, generator=None, **cond):
        x0 = self.denoiser(x, t, **cond)
        (alpha, sigma), (a, b) = self.corruption(t), self.corruption(s)
        return (a * x0 + self.share * b * (x - alpha * x0) / sigma).to(x.dtype)


def jump(denoiser, share=0.7) -> Sampler:
    """A sampler as a function of the denoiser."""
    return Jump(denoiser, share)


def scaled(by):
    """A function that returns a weight, which checkpoints cannot contain."""
    return lambda schedule, t: by * twice(schedule, t)


class Net(nn.Module):
    """A linear network."""

    def __init__(self, shape, width=8):
        super().__init__()
        self.shape, self.width = shape, width
        size = shape[0] * shape[1] * shape[2]
        self.layers = nn.Sequential(nn.Linear(size + 1, width), nn.SiLU(), nn.Linear(width, size))

    def forward(self, x, time):
        flat = torch.cat([x.flatten(1), time.float().reshape(-1, 1).expand(len(x), 1) / 1000], 1)
        return self.layers(flat).reshape(x.shape)


class Forgets(nn.Module):
    """A network that does not keep its argument."""

    def __init__(self, shape, classes=None):
        super().__init__()
        self.layer = nn.Conv2d(shape[0], shape[0], 3, padding=1)

    def forward(self, x, time, label=None):
        return self.layer(x)


@dataclass(frozen=True)
class Disks(Images):
    """Disks at random places."""

    radius: float = 2.0

    def load(self, split="train", progress=None):
        center = 8 * torch.rand(60, 2, 1, 1, generator=torch.Generator().manual_seed(int(split == "test")))
        place = torch.stack(torch.meshgrid(*[torch.arange(8)] * 2, indexing="ij"))
        k = ((place - center).norm(dim=1, keepdim=True) < self.radius).byte()
        return ImageDataset(k, label=None, quantization=Quantization(levels=2))


def disks():
    """Disks of one size."""
    return replace(ddpm.smoke(), data=Disks("disks", batch=8), loss=GaussianLoss(weight=Scaled(3.0)))


def needs(size):
    """A function with an argument."""


def fails():
    """A function that fails."""
    return 1 / 0


def other():
    """No recipe."""
    return 3
'''

POINTS = '''
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from unnoise.experiments.gaussian import GaussianRecipe
from unnoise.experiments.parts import part
from unnoise.experiments.recipe import Data
from unnoise.shared.data import Batches
from unnoise.shared.networks import MLP
from unnoise.shared.quantization import Quantization
from unnoise.shared.training import Training


class Examples(NamedTuple):
    """Points of the plane, and what recipes read of data."""

    k: Tensor
    quantization: Quantization = Quantization(64)
    shape: tuple = (2,)
    summary: str = "points of a ring"


@dataclass(frozen=True)
class Ring(Data):
    """Points of a ring."""

    name: str = "ring"
    batch: int = 32
    classes = None
    picture = "samples.txt"

    def load(self, split="train", progress=None):
        angle = 6.283 * torch.rand(200, generator=torch.Generator().manual_seed(int(split == "test")))
        return Examples((32 + 20 * torch.stack([angle.cos(), angle.sin()], 1)).byte())

    def batches(self, examples, form, bytes_per_logit):
        return Batches(examples.k, self.batch, examples.quantization, form)

    def conditions(self, rows):
        return {}

    def conditions_of(self, examples):
        return {}

    def self_contained(self):
        return self

    def show(self, path, levels, quantization, columns):
        path.write_text("".join(f"{x} {y}\\n" for x, y in levels.tolist()))
        return ""

    def evaluate(self, recipe, denoiser, *, count, seed, **_):
        k = self.load("test").k[:count]
        measure = recipe.code_length_of(denoiser, Quantization(64))
        bits = measure(k, torch.Generator().manual_seed(seed), lambda *a: a[0]).bits_per_dim(2)
        return {"bits_per_dim": float(bits.mean()), "kind": recipe.kind}


def ring():
    """A ring."""
    return GaussianRecipe(data=Ring(), network=part(MLP, features=2, width=16, depth=1), training=Training(steps=4))
'''


CALLED = ("--loss.weight", "own_parts.py:scaled(by=3)")


def forget():
    """Forgets all files of one's own, as in a new process."""
    for key in [key for key in sys.modules if key.startswith("own_file_")]:
        del sys.modules[key]
    for name in [name for name in serialization._KNOWN if ".py:" in name or name.startswith("mine.")]:
        serialization._NAMES.pop(serialization._KNOWN.pop(name))


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The two files in the working directory, forgotten afterwards; the judge of images is trained for a moment."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_parts.py").write_text(PARTS)
    (tmp_path / "own_points.py").write_text(POINTS)
    full = evaluation.judge_of
    monkeypatch.setattr(evaluation, "judge_of", lambda images, progress, steps=600: full(images, progress, 5))
    forget()
    yield tmp_path
    forget()


def done(capsys, *arguments):
    """Runs a command, and returns what it prints."""
    status = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    assert status == 0, err
    return out


def refused(capsys, words, *arguments):
    """The command is refused with one line that has these words."""
    capsys.readouterr()
    status = main([str(a) for a in arguments])
    err = capsys.readouterr().err
    lines = re.findall(r"^(?:.*\r)?(unnoise: .*)\n", err, re.MULTILINE)
    assert (status, len(lines), "Traceback" in err) == (2, 1, False), err
    assert re.search(words, err), err


def test_own_parts(own, capsys):
    """A schedule, a weight, a sampler and a network, each with its arguments as options."""
    train = ("train", "ddpm-smoke", "--data.classes", "None", "--schedule", "own_parts.py:Sine(last=1.4)")
    train += ("--loss.weight", "own_parts.py:twice", "--sampler", "own_parts.py:Jump", "--sampler.share", "0.5")
    train += ("--network", "own_parts.py:Net", "--network.width", "6", "--out", "run", "--training.steps")
    done(capsys, *train, 2)
    recipe = read(newest(own / "run"))[0]["experiment"]["arguments"]
    assert recipe["schedule"] == {"class": "own_parts.py:Sine", "arguments": {"last": 1.4}}
    assert recipe["loss"]["arguments"]["weight"] == {"function": "own_parts.py:twice"}
    assert [recipe[name]["arguments"]["arguments"] for name in ("sampler", "network")] == [
        [["share", 0.5]],
        [["width", 6]],
    ]
    few = ("--count", 2, "--steps", 3)
    assert "by Jump: run/samples.png" in done(capsys, "sample", "run", *few)
    forget()  # another process
    for command in (("sample", "run"), ("evaluate", "run"), ("train", "run", "--resume")):
        words = r"contains own_parts.py:\w+, a part of your own.* give --module with the path of own_parts"
        refused(capsys, words, *command)
    by = ("--module", "own_parts.py")
    assert "by Jump: run/samples-2.png" in done(capsys, "sample", "run", *few, *by)
    assert (own / "run" / "samples.png").read_bytes() == (own / "run" / "samples-2.png").read_bytes()
    forget()
    done(capsys, "evaluate", "run", *few, "--module=own_parts.py")
    assert json.loads((own / "run" / "evaluation.json").read_text())["bits_per_dim"] > 0
    assert "resuming run: --training.steps 3 (was 2)" in done(capsys, "train", "run", "--resume", "--training.steps", 3)
    forget()
    done(capsys, "sample", "run", *few, *by, "--sampler", "own_parts.py:Jump(share=0)")
    (own / "elsewhere").mkdir()
    (own / "own_parts.py").rename(own / "elsewhere" / "own_parts.py")
    forget()
    done(capsys, "sample", "run", *few, "--module", "elsewhere/own_parts.py")


def test_an_own_network_that_does_not_keep_its_arguments(own, capsys):
    """Its description is the recipe's."""
    line = ("ddpm-smoke", "--network", "own_parts.py:Forgets", "--training.steps", 2, "--out", "run")
    done(capsys, "train", *line)
    forget()
    done(capsys, "sample", "run", "--count", 2, "--module", "own_parts.py")
    done(capsys, "train", "run", "--resume", "--training.steps", 3)


def test_a_part_can_be_a_function_that_returns_it(own, capsys):
    line = ("ddpm-smoke", "--sampler", "own_parts.py:jump", "--training.steps", 30, "--out", "run")
    done(capsys, "train", *line)
    recipe = read(newest(own / "run"))[0]["experiment"]["arguments"]
    assert recipe["sampler"]["arguments"] == {"build": {"function": "own_parts.py:jump"}, "arguments": []}
    forget()
    by = ("--count", 2, "--format", "npz", "--module", "own_parts.py")
    assert "by Jump" in done(capsys, "sample", "run", *by)
    done(capsys, "sample", "run", *by, "--sampler.share", "0.1")
    done(capsys, "sample", "run", *by, "--sampler", "own_parts.py:Jump(share=0.1)")
    first, second, third = (np.load(own / "run" / f"samples{n}.npz")["arr_0"] for n in ("", "-2", "-3"))
    assert (first != second).any()
    assert (second == third).all()


def test_own_images_in_an_own_recipe(own, capsys):
    out = done(capsys, "train", "own_parts.py:disks", "--data.radius", "3.0", "--training.steps", 2)
    assert "training own_parts.py:disks on 60 examples of 1x8x8 into runs/disks/" in out
    recipe = read(newest(own / "runs" / "disks"))[0]["experiment"]["arguments"]
    assert recipe["data"]["class"] == "own_parts.py:Disks"
    assert recipe["data"]["arguments"]["radius"] == 3.0
    assert recipe["loss"]["arguments"]["weight"] == {"class": "own_parts.py:Scaled", "arguments": {"by": 3.0}}
    forget()
    by = ("--module", "own_parts.py", "--count", 2)
    done(capsys, "sample", "runs/disks", *by)
    done(capsys, "evaluate", "runs/disks", *by)
    found = json.loads((own / "runs" / "disks" / "evaluation.json").read_text())
    assert found["held_out"].startswith("60 images of 1x8x8")
    help_ = done(capsys, "train", "own_parts.py:disks", "--help")
    assert "Trains own_parts.py:disks. Disks of one size." in help_
    assert "--data.radius FLOAT" in help_


def test_own_data_that_are_not_images(own, capsys):
    done(capsys, "train", "own_points.py:ring", "--out", "run")
    forget()
    done(capsys, "sample", "run", "--count", 3, "--steps", 2, "--module", "own_points.py")
    assert len((own / "run" / "samples.txt").read_text().splitlines()) == 3
    done(capsys, "sample", "run", "--count", 3, "--steps", 2, "--format", "npz")
    done(capsys, "evaluate", "run", "--count", 4)
    assert json.loads((own / "run" / "evaluation.json").read_text())["bits_per_dim"] > 0


def test_a_folder_of_images_needs_no_code(own, capsys):
    for n in range(8):
        path = own / "set" / ("test" if n % 2 else "train") / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 30 * n).save(path)
    line = ("--data.name", "set", "--data.classes", "None", "--data.batch", 2, "--training.steps", 2)
    done(capsys, "train", "ddpm-smoke", *line, "--out", "run")
    done(capsys, "evaluate", "run", "--count", 2)
    assert json.loads((own / "run" / "evaluation.json").read_text())["held_out"].startswith("4 images of 1x8x8")


def test_the_values_of_own_files_that_are_wrong(own, capsys):
    (own / "broken.py").write_text("x = 1 / 0\n")
    (own / "wrong.py").write_text("def f(:\n")
    (own / "b").mkdir()
    (own / "b" / "own_parts.py").write_text("")
    train = ("train", "ddpm-smoke", "--out", "run", "--schedule")
    for words, *line in (
        (r"--schedule: there is no file none.py: give the path", *train, "none.py:Sine"),
        (r"broken.py cannot be imported \(ZeroDivisionError: division by zero\)", *train, "broken.py:Sine"),
        (r"wrong.py cannot be imported \(SyntaxError", *train, "wrong.py:Sine"),
        (r"own_parts.py does not define Sin: did you mean Sine", *train, "own_parts.py:Sin"),
        (r"Sine has no argument first: ", *train, "own_parts.py:Sine(first=1)"),
        (r"needs by: write Scaled\(by=...\)", *train[:-1], "--loss.weight", "own_parts.py:Scaled"),
        (r"scaled is to build a part: annotate what it returns", *train[:-1], *CALLED),
        (r"own_parts.py have one name", *train, "b/own_parts.py:Sine"),
        (r"there is no file none.py", "sample", "run", "--module", "none.py"),
        (r"broken.py cannot be imported", "sample", "run", "--module", "broken.py"),
        (r"no.such.module cannot be imported \(ModuleNotFoundError", "sample", "run", "--module", "no.such.module"),
        (r"own_parts.py:needs needs size: give a function without arguments", "train", "own_parts.py:needs"),
        (r"own_parts.py:fails\(\) raises ZeroDivisionError: division by zero", "train", "own_parts.py:fails"),
        (r"own_parts.py:other\(\) returns 3: give a function", "train", "own_parts.py:other"),
        (r"own_parts.py does not define disk: did you mean disks", "train", "own_parts.py:disk"),
    ):
        refused(capsys, words, *line)
    assert not (own / "run").exists()
    assert not (own / "runs").exists()


def test_an_own_file_that_names_its_class_itself(own, capsys):
    """Its name in checkpoints is its own, whatever the file is called."""
    text = "from unnoise.shared.serialization import serializable\n" + PARTS
    text = text.replace(
        "@dataclass(frozen=True)\nclass Sine", '@serializable("mine.Sine")\n@dataclass(frozen=True)\nclass Sine'
    )
    (own / "named.py").write_text(text)
    done(capsys, "train", "ddpm-smoke", "--schedule", "named.py:Sine(1.2)", "--training.steps", 2, "--out", "run")
    recipe = read(newest(own / "run"))[0]["experiment"]["arguments"]
    assert recipe["schedule"] == {"class": "mine.Sine", "arguments": {"last": 1.2}}
    forget()
    refused(capsys, "contains mine.Sine, which no imported module defines", "sample", "run")
    (own / "named.py").rename(own / "renamed.py")
    done(capsys, "sample", "run", "--count", 2, "--module", "renamed.py")
    done(capsys, "sample", "run", "--count", 2)  # in the same process


def test_a_file_is_imported_once(own):
    assert own_module("own_parts.py") is own_module(str(own / "own_parts.py"))
    (own / "b").mkdir()
    (own / "b" / "own_parts.py").write_text("")
    with pytest.raises(UsageError, match="have one name, by which checkpoints name their parts: rename one"):
        own_module("b/own_parts.py")


def test_a_checkpoint_cannot_call_functions_of_own_files(own, capsys):
    """A file names a class or a function that is annotated to return a part; no other function is called."""
    (own / "side.py").write_text("def side(path):\n    open(path, 'w').write('x')\n")
    own_module("side.py")
    target = str(own / "written")
    for description in (
        {"class": "side.py:side", "arguments": {"path": target}},
        {
            "class": "experiments.Part",
            "arguments": {"build": {"function": "side.py:side"}, "arguments": [["path", target]]},
        },
        {"class": "experiments.churned_heun", "arguments": {"denoiser": 1, "sampling_steps": 2}},
    ):
        with pytest.raises(UsageError, match="it is a function|is to build a part"):
            serialization.deserialize(description)
    assert not (own / "written").exists()
    with pytest.raises(UsageError, match="os is a module of Python itself"):
        own_module("os")
