"""What a recipe is made of, as JSON: objective, sampler, code length, data, training; networks are on the meta device.

Schedules of published betas are written as their tables, long tensors as their shape, sum, first and last number.
"""

import inspect
import json
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from unnoise.experiments.image_data import Images
from unnoise.shared.data import CharacterTokenizer
from unnoise.shared.denoiser import Denoiser
from unnoise.shared.networks import DiT, RefineNet, Transformer, UNet
from unnoise.shared.quantization import Quantization
from unnoise.shared.serialization import deserialize, serialize
from unnoise.shared.training.averages import Decay
from unnoise.shared.values import state_of

IMAGES = {"uoft-cs/cifar10": (3, 32, 32), "digits": (1, 8, 8), "mnist5k": (1, 28, 28)}
GRAY = ("digits", "mnist5k")
TOKENS = {"gpt2.json": 50257, "lm1b.json": 8192, "bert-base-uncased.json": 30522}
"""The sizes of the tokenizers of recipes, whose files are not here."""
DATA_SETTINGS = {
    "experiments.Data": ("batch", "classes", "flip", "name", "seed", "size"),
    "experiments.Text": ("batch", "column", "crop", "documents", "layout", "length", "name", "seed", "tokenizer"),
}
"""Arguments of data in the version of the snapshots."""


TRAINING_SETTINGS = (
    *("betas", "clip", "cooldown", "device", "epsilon", "learning_rate", "log_every", "save_every", "seed", "steps"),
    *("warmup", "watch_every", "weight_decay"),
)
"""Settings of training in the version of the snapshots that have their names and values still."""


def training_of_then(settings):
    """Settings of training as in the version of the snapshots, whose averages all had the warm-up of `Decay`."""
    ema = deserialize(settings["ema"])
    then = {
        "bfloat16": {"float32": False, "bfloat16": True, "auto": None}[settings["precision"]],
        "ema": ema.rate if isinstance(ema, Decay) and ema.warmup else repr(ema),
    }
    return {name: settings[name] for name in TRAINING_SETTINGS} | then


def on_meta(monkeypatch):
    """Networks without memory, and tokenizers without files."""
    for cls in (UNet, RefineNet, Transformer, DiT):

        def init(self, *args, own=cls.__init__, **further):
            with torch.device("meta"):
                own(self, *args, **further)

        init.__signature__ = inspect.signature(cls.__init__)
        monkeypatch.setattr(cls, "__init__", init)


def of_data(data, monkeypatch):
    """Shape and quantization of the data of a recipe, which are not read."""
    if isinstance(data, Images):
        channels = 3 if data.tint or data.name not in GRAY else 1
        shape = IMAGES[data.name] if data.size is None else (channels, *data.size)
        return (channels, *shape[1:]), Quantization(17 if data.name == "digits" else 256)
    size = CharacterTokenizer().size
    if data.tokenizer in TOKENS:
        size = TOKENS[data.tokenizer]
        monkeypatch.setattr(type(data), "read_tokenizer", lambda self: SimpleNamespace(size=size))
    elif data.tokenizer:
        size = data.read_tokenizer().size
    return (data.length,), Quantization(size)


def short(value):
    """A description with tables of betas as such, and tensors as a few numbers."""
    if isinstance(value, dict):
        name = str(value.get("class", ""))
        if name.startswith("continuous.") and name.endswith(("Betas", "ZeroTerminal")):
            betas = {"tensor": deserialize(value).betas}
            return short({"class": "continuous.Tabulated", "arguments": {"betas": betas}})
        if "tensor" in value:
            t = torch.as_tensor(value["tensor"], dtype=torch.float64)
            numbers = {"sum": t.sum(), "first": t.flatten()[0], "last": t.flatten()[-1]}
            return {"tensor": list(t.shape)} | {key: float(x) for key, x in numbers.items()}
        if name == "training.Training":
            return {"class": name, "arguments": short(training_of_then(value["arguments"]))}
        if name in DATA_SETTINGS:
            own = {k: v for k, v in value["arguments"].items() if k in DATA_SETTINGS[name]}
            return {"class": name, "arguments": short(own)}
        found = {key: short(part) for key, part in value.items()}
        return {"class": name, "arguments": used(found["arguments"])} if name == "networks.UNet" else found
    return [short(part) for part in value] if isinstance(value, list | tuple) else value


def used(arguments):
    """The arguments of a U-Net without those that have no effect: heads beside their width, and a null label alone."""
    without = {"heads"} if arguments["variant"]["arguments"]["head_width"] is not None else set()
    return {
        k: v
        for k, v in arguments.items()
        if k not in without | ({"null_label"} if not arguments["classes"] else without)
    }


def described(value, depth=0):
    """A description of any object; of a denoiser that a wrapper does not change, the word alone."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return short({"tensor": value})
    if inspect.isroutine(value):
        return value.__name__
    if isinstance(value, list | tuple):
        return [described(part, depth + 1) for part in value]
    if isinstance(value, nn.Module) and not hasattr(value, "corruption"):
        return type(value).__name__
    if isinstance(value, Denoiser) and not hasattr(value, "denoiser"):
        return "denoiser"
    state = state_of(value) if depth < 8 else {}
    parts = {name: described(part, depth + 1) for name, part in state.items() if not name.startswith("_")}
    return {"class": type(value).__name__} | parts


def snapshot(recipe, monkeypatch):
    """What the recipe is made of; call `on_meta` before."""
    shape, quantization = of_data(recipe.data, monkeypatch)
    objective = recipe.objective(shape, quantization)
    denoiser = objective.denoiser
    grid = recipe.grid(denoiser, recipe.sampling_steps)
    measure = inspect.getclosurevars(recipe.code_length_of(denoiser, quantization)).nonlocals
    numel = 2 * torch.Size(shape).numel()
    k = (torch.arange(numel) % quantization.levels).reshape(2, *shape).to(torch.uint8)
    x = recipe.form(quantization, k, torch.Generator().manual_seed(0))
    sums = [float(x.double().sum()), float(x.double().square().sum())]
    found = {
        "objective": short(serialize(objective)),
        "parameters": sum(p.numel() for p in objective.parameters()),
        "sampler": described(recipe.sampler_of(denoiser)),
        "steps": recipe.sampling_steps,
        "grid": grid if isinstance(grid, int) else short({"tensor": grid}),
        "code_length": {name: described(part) for name, part in measure.items() if name in ("bound", "exact")},
        "kind": recipe.kind,
        "data": short(serialize(recipe.data)),
        "training": short(serialize(recipe.training)),
        "form": [str(x.dtype), *sums, bool((recipe.levels(quantization, x).long() == k.long()).all())],
    }
    return json.loads(json.dumps(found))


def leaves(value, at=""):
    """The numbers, texts and names of a snapshot by their paths."""
    if isinstance(value, dict | list):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        return {path: leaf for key, part in parts for path, leaf in leaves(part, f"{at}.{key}").items()}
    return {at: value}


def assert_same(found, expected):
    found, expected = leaves({part: found[part] for part in expected}), leaves(expected)
    assert {path: (found.get(path), leaf) for path, leaf in expected.items() if not close(found.get(path), leaf)} == {}
    assert found.keys() == expected.keys()


def close(a, b):
    return a == (pytest.approx(b, rel=1e-8) if isinstance(a, float) and isinstance(b, float) else b)
