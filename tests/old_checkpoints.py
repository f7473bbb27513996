"""What objects that old checkpoints describe must still give: a function for each kind, by as few calls as possible.

Only this file calls the package: where a method has another name now, it is changed here. The names of old modules
stand in the JSON files alone. See fixtures/checkpoints/README.md.
"""

import hashlib
import json
import math
import shutil
from collections import Counter
from dataclasses import is_dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from unnoise.experiments import load
from unnoise.experiments.cli import main
from unnoise.experiments.reproduce import train_recipe
from unnoise.shared.data import Batches
from unnoise.shared.progress import silent
from unnoise.shared.random import derived_seed
from unnoise.shared.serialization import deserialize, serialize
from unnoise.shared.training import Trainer, Training

MOST = 36
"""Numbers of a tensor that are kept, beside their sum."""
CHOICES = {
    *("ddpmpp", "adm", "dit", "absorbing", "uniform", "absorbing+nearest", "residual", "direct", "logistic", "product"),
    *("marginal", "cosine", "linear", "mutual-information", "quad", "small", "heun", "rk45", "euler-maruyama", "vlb"),
    *("likelihood", "sigma2", "sub-vp", "ve"),
}
"""Texts of old settings that are classes and functions now; test_earlier_recipes.py tests what they stand for."""
MOVED = {
    "DDPM": (88, 2e-4),
    "ImplicitModel": (88, 2e-4),
    "Upsampler": (90, 2e-4),
    "GuidedDiffusion": (90, 2e-4, "4,3,2"),  # the sections are a tuple now
    "ImprovedDDPM": (90, 0.02),  # the weight of the bound in L_hybrid has no effect on L_vlb,
    "NCSN": (2, 0.2),  # nor blocks and dropout on a RefineNet,
    "ScoreSDE": (1.2,),  # nor the power of the times on importance sampling
}
"""Numbers of old settings, by class, that do not stand in those of today: steps and first beta are a table of betas."""


def seeded():
    return torch.Generator().manual_seed(0)


def moment(t):
    return torch.tensor(t, dtype=torch.float64)


class Own(nn.Module):
    """A network that is not of the package."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x, time):
        return torch.tanh(self.layer(x)) + time[:, None] / 1000


class Chooses(nn.Module):
    """`log p(c | x)` of one-hot tokens, for guidance."""

    def forward(self, hot, t, **cond):
        weight = torch.cos(1.3 * torch.arange(hot[0].numel(), dtype=torch.float64)).to(hot).reshape(hot[0].shape)
        return nn.functional.logsigmoid((hot * weight).flatten(1).sum(1)) + 0 * torch.as_tensor(t).to(hot)


def made(spec):
    """The value that a spec of a JSON file stands for."""
    if isinstance(spec, list):
        return [made(part) for part in spec]
    if not isinstance(spec, dict):
        return spec
    if "wave" in spec:
        numbers = torch.sin(spec.get("step", 0.7) * torch.arange(torch.Size(spec["wave"]).numel(), dtype=torch.float64))
        return numbers.reshape(spec["wave"]).to(getattr(torch, spec.get("dtype", "float32")))
    if "counted" in spec:
        return (5 * torch.arange(torch.Size(spec["counted"]).numel()) + 1).reshape(spec["counted"]) % spec["of"]
    if "values" in spec:
        return torch.tensor(spec["values"], dtype=getattr(torch, spec["dtype"]))
    if "chooses" in spec:
        return Chooses()
    return (
        deserialize(spec) if {"class", "function"} & spec.keys() else {name: made(part) for name, part in spec.items()}
    )


def filled(module):
    """The module with float32 weights that depend on their shapes alone."""
    with torch.no_grad():
        for value in module.state_dict().values():
            if value.dtype == torch.float32:
                numbers = 0.3 * torch.cos(1.7 * torch.arange(value.numel(), dtype=torch.float64))
                value.copy_(numbers.reshape(value.shape))
    return module.eval()


def schedule(value, t, log_snr, u):
    alpha, sigma = value(t)
    found = {
        "alpha": alpha,
        "sigma": sigma,
        "log_snr": value.log_snr(t),
        "time": value.time(log_snr),
        "grid": value.grid(5),
    }
    return found | {"training_time": value.training_time(u), "t_min": value.t_min, "t_last": value.t_last}


def prediction(value, alpha, sigma):
    skip, out = value(alpha, sigma)
    return {"skip": skip, "out": out}


def time_input(value, schedule, t):
    return {"label": value(schedule, t)}


def weight(value, schedule, t, alpha, sigma):
    torch.testing.assert_close(
        torch.stack(schedule(t)), torch.stack([alpha, sigma])
    )  # two conventions for the same weight
    return {"weight": value(schedule, t)}


def score_weight(value, schedule, t):
    alpha, sigma = schedule(t)  # of the error of the score, where today all weights are of the error of x_0
    return {"weight": value(schedule, t) * sigma**4 / alpha**2}


def variance(value, schedule, t, s, v):
    return {"between": value(schedule, t, s, v), "at zero": value(schedule, t, torch.zeros_like(s), v)}


def draw(value):
    return {"four": value(4, seeded()), "three": value(3, seeded())}


def probe(value, x):
    return {"probe": value(x, seeded())}


def scale(value, k, x):
    found = {"continuous": value.continuous(k), "dequantized": value.dequantized(k, seeded())}
    return found | {
        "quantized": value.quantize(x),
        "cell_of": value.cell_of(x),
        "cell": value.cell,
        "spacing": value.spacing,
    }


def noise_schedule(value, t, total):
    found = {"total": value.total(t), "time": value.time(total), "t_min": value.t_min, "steps": value.steps}
    return found if value.steps else found | {"rate": value.rate(t)}


def transition(value, s, t, u):
    x = torch.arange(value.states)
    one_hot = value.one_hot(x, torch.float64)
    found = {"levels": value.categories, "states": value.states, "steps": value.steps, "stationary": value.stationary()}
    found |= {
        "pushforward": value.pushforward(one_hot, s, t),
        "from zero": value.pushforward(one_hot, torch.zeros_like(s), t),
    }
    found |= {"likelihood": value.likelihood(x, s, t), "grid": value.grid(4), "training_time": value.training_time(u)}
    found["corrupt"] = value.corrupt(torch.arange(60).reshape(2, 30) % value.categories, t, generator=seeded())
    if value.steps is None:
        found |= {
            "inflow": value.inflow(x, t).clone().fill_diagonal_(0),
            "outflow": value.outflow(x, t).clone().fill_diagonal_(0),
        }
    return found


def reverse(value, transition, x_t, p0, t, s):
    return {"between": value(transition, x_t, p0, t, s), "at zero": value(transition, x_t, p0, t, torch.zeros_like(s))}


def head(value, transition, out, x_t):
    return {"logits": value(out, x_t, transition)}


def change(value, classifier, x_t, t, states):
    return {"change": value(classifier, x_t, t, states, {})}


def network(value, inputs, conditions):
    names = "\n".join(f"{name} {tuple(tensor.shape)}" for name, tensor in sorted(value.state_dict().items()))
    with torch.no_grad():
        return {"out": filled(value)(*inputs, **conditions), "names": hashlib.sha256(names.encode()).hexdigest()[:16]}


def denoiser(value, x_t, t, conditions):
    found = {}
    for moment in t:
        found[f"clean at {float(moment)}"] = filled(value)(x_t, moment, **conditions).detach()
        if hasattr(value, "score"):
            found[f"score at {float(moment)}"] = value.score(x_t, moment, **conditions).detach()
        if hasattr(value, "step_distribution"):
            found[f"law at {float(moment)}"] = value.step_distribution(x_t, moment, moment / 2, **conditions).detach()
            found[f"ratio at {float(moment)}"] = value.ratio(x_t, moment, **conditions).detach()
        if hasattr(value, "log_density"):
            found[f"log_density at {float(moment)}"] = value.log_density(x_t, moment, **conditions).detach()
        if getattr(value, "has_variance_output", False):
            found[f"spread at {float(moment)}"] = value.estimate(x_t, moment, **conditions).variance_output.detach()
    return found


def objective(value, x0, t, conditions):
    at, drawn = filled(value).at(x0, t, generator=seeded(), **conditions), value(x0, generator=seeded(), **conditions)
    return {"at": at.total.detach(), "drawn": drawn.total.detach(), "t": drawn.t}


def dequantizer(value, k):
    x, gain = filled(value)(k, seeded())
    return {"x": x.detach(), "gain": gain.detach()}


def operator(value, x, r, prior, noise):
    y = value(x)
    return {
        "y": y,
        "adjoint": value.adjoint(y),
        "pseudo_inverse": value.pseudo_inverse(y),
        "solve": value.solve(r, prior, noise),
    }


def alphabet(value, texts, ids):
    tokens = [torch.from_numpy(e.tokens).long() for e in value.encode(texts)]
    named = value.fingerprint.replace("characters", "symbols").replace("tokens", "pieces")  # the words of that time
    return {"size": value.size, "named": named, "texts": value.decode(ids)} | {
        f"tokens {i}": t for i, t in enumerate(tokens)
    }


def chain(value):
    windows = value.sample(3, 8, seeded())
    return {
        "stationary": value.stationary(),
        "entropy_rate": value.entropy_rate(),
        "windows": windows,
        "bits": value.bits(windows),
    }


def settings(value):
    """Every number and text of it, whatever the arguments are called."""
    return {"settings": leaves(serialize(value))}


def leaves(description):
    """Numbers and texts of a description, without the names of classes and functions."""
    if isinstance(description, dict):
        parts = [part for name, part in description.items() if name not in ("class", "function")]
        return [leaf for part in parts for leaf in leaves(part)]
    if isinstance(description, list):
        return [leaf for part in description for leaf in leaves(part)]
    return [] if description is None else [description]


KINDS = {
    f.__name__: f
    for f in (
        *(
            schedule,
            prediction,
            time_input,
            weight,
            score_weight,
            variance,
            draw,
            probe,
            scale,
            noise_schedule,
            transition,
            reverse,
            head,
        ),
        *(change, network, denoiser, objective, dequantizer, operator, alphabet, chain, settings),
    )
}
OF_FLOAT32 = ("network", "denoiser", "objective", "dequantizer", "change")
"""Kinds whose numbers come from a network, whatever their type."""


def read(entry):
    """The object of an entry of descriptions.json."""
    return deserialize(entry["description"], Own() if entry.get("own") else None)


def again(entry, value):
    """The entry, described as it is today."""
    description = json.loads(json.dumps(serialize(value)))
    assert serialize(read(entry | {"description": description})) == serialize(value)
    return entry | {"description": description}


def numbers(entry, value):
    """What that object gives, as JSON."""
    torch.manual_seed(0)
    return packed(KINDS[entry["kind"]](value, **{name: made(spec) for name, spec in entry["given"].items()}))


def packed(found):
    """Tensors as JSON: all numbers of a small one; of a large one some, evenly spaced, and the sum."""
    return {name: packed_tensor(value) if isinstance(value, Tensor) else value for name, value in found.items()}


def packed_tensor(value):
    flat = value.detach().reshape(-1)
    about = {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}
    if len(flat) <= MOST:
        return about | {"values": flat.tolist()}
    every = -(-len(flat) // MOST) | 1  # odd, for what repeats in pairs
    return about | {"every": every, "values": flat[::every].tolist(), "sum": flat.double().sum().item()}


def assert_same(found, expected, of_float32=False, called=""):
    """Exact for integers and texts; 1e-5 for float32 and what comes from it, 1e-10 for float64.

    Samples in float32 are compared to 2e-5 of their largest value: steps down from a large sigma amplify rounding. The
    kept ones differ from those of float64 networks by up to 1.3e-5 of it (`edm`: 8.5e-5 of 7, `imported-score`: 4.1e-3
    of 314), today's by up to 7e-6.

    `called` is the name of an old class, whose settings may have moved.
    """
    assert found.keys() == expected.keys()
    for name, old in expected.items():
        new = found[name]
        if name == "settings":  # an argument that has come since is no difference
            missing = Counter(leaf for leaf in old if leaf not in CHOICES) - Counter(new)
            assert not missing - Counter(MOVED.get(called.rpartition(".")[2], ())), name
            continue
        if not isinstance(old, dict):
            assert new == (pytest.approx(old, rel=1e-10) if isinstance(old, float) else old), name
            continue
        assert new["shape"] == old["shape"], name
        floating = old["dtype"].startswith("float")
        assert new["dtype"].startswith("float") == floating, name
        if not floating:
            assert new["values"] == old["values"], name
            continue
        rough = of_float32 or old["dtype"] == "float32"
        close = {"rel": 1e-5, "abs": 1e-6} if rough else {"rel": 1e-10, "abs": 1e-12}
        if name == "samples" and rough:
            close = {"rel": 0, "abs": 2e-5 * max(1.0, *map(abs, old["values"]))}
        assert new["values"] == pytest.approx(old["values"], nan_ok=True, **close), name
        if "sum" in old:
            close["abs"] *= torch.Size(old["shape"]).numel()
            assert new["sum"] == pytest.approx(old["sum"], nan_ok=True, **close), name


def run_numbers(folder, given, scratch):
    """What a run's folder gives: denoiser, loss, samples, and the loss of the step that comes next."""
    found, own = {}, Own() if given.get("own") else None
    checkpoint = load(folder, network=own)
    average, experiment = checkpoint.average, checkpoint.experiment
    x, x0, t, conditions = (made(given[name]) for name in ("x", "x0", "t", "conditions"))
    for time in t:
        found[f"denoiser at {float(time)}"] = average.denoiser(x, time, **conditions).detach()
    found["loss at"] = average.at(x0, t, generator=seeded(), **conditions).total.detach()
    found["loss"] = average(x0, generator=seeded(), **conditions).total.detach()
    found["raw loss"] = checkpoint.objective.eval()(x0, generator=seeded(), **conditions).total.detach()
    if given["samples"]:
        sampler, shape = experiment.sampler_of(average.denoiser), (2, *checkpoint.shape)
        steps = experiment.grid(average.denoiser, given["samples"])
        found["samples"] = sampler(
            shape=shape, steps=steps, generator=seeded(), **experiment.conditions(torch.arange(2))
        )
    return packed(found) | {"step": checkpoint.step} | next_step(folder, given, scratch)


def next_step(folder, given, scratch):
    """Goes on with a copy of the run for one step, and returns the loss and gradient of that step by the old draws.

    Earlier versions drew the noise of a batch from one generator, and today's trainer draws it for each example.
    """
    copy = shutil.copytree(folder, scratch / "run")
    checkpoint = load(copy, network=Own() if given.get("own") else None)
    steps, experiment, objective = checkpoint.step + 1, checkpoint.experiment, checkpoint.objective
    config = deserialize(checkpoint.description["config"]) or Training(warmup=0, device="cpu")
    for name, p in objective.named_parameters():
        p.requires_grad_(name not in (checkpoint.description["frozen"] or ()))
    if given["resumes"] == "recipe":
        assert is_dataclass(experiment)
        batches = experiment.batches(experiment.load("train"))
    elif "recipe" in given:
        recipe = made(given["recipe"])
        batches = recipe.batches(recipe.load("train"))
    else:
        batches = [made(given["batch"])] * steps
    found = of_one_generator(objective.train(), batches, checkpoint, config)
    if given["resumes"] == "recipe":
        again = replace(experiment, training=replace(experiment.training, steps=steps))
        train_recipe(again, again.load("train"), copy, silent, resume=True)
    else:
        trainer = Trainer(objective, replace(config, steps=steps), folder=copy, experiment=experiment)
        trainer.fit(batches, resume=True)
    assert load(copy, network=Own() if given.get("own") else None).step == steps
    names = ("loss", "gradient_norm")
    last = json.loads((copy / "metrics.jsonl").read_text().splitlines()[-1])
    assert all(math.isfinite(last[name]) for name in names)
    return {f"next {name}": {"dtype": "float32", "shape": [], "values": [found[name]]} for name in names}


def of_one_generator(objective, batches, checkpoint, config):
    """The loss of the next step, and the norm of its gradient, as they were computed by earlier versions."""
    generator, step = torch.Generator(), checkpoint.step
    if isinstance(batches, Batches):
        position = (checkpoint.description["batches"] or {"position": 0})["position"]
        rows = batches.order(position // batches.per_epoch)[position % batches.per_epoch * batches.batch :]
        rows = rows[: batches.batch]
        generator.manual_seed(derived_seed(batches.seed, "dequantization", position))
        batch = {"x0": batches.form(batches.quantization, batches.k[rows], generator)}
        batch |= {name: v[rows] for name, v in batches.conditions.items()}
    else:
        batch = batches[0]
    torch.manual_seed(derived_seed(config.seed, "dropout", step))
    generator.manual_seed(derived_seed(config.seed, "noise", step))
    loss = objective(**batch, generator=generator).total.mean()
    parameters = [p for p in objective.parameters() if p.requires_grad]
    gradients = [g.detach() for g in torch.autograd.grad(loss, parameters, allow_unused=True) if g is not None]
    return {"loss": float(loss.detach()), "gradient_norm": float(torch.nn.utils.get_total_norm(gradients))}


def drawn_by_the_command(folder):
    """`unnoise sample RUN`, into the present folder."""
    return main(["sample", str(folder), "--count", "2", "--steps", "2", "--out", "samples.npz"])
