"""Training steps through `Trainer` beside a bare loop, averages of weights, and data from files beside memory."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor, nn

from unnoise.continuous import DenoisingLoss, Learned, Tabulated, linear_betas
from unnoise.experiments.image_data import Images
from unnoise.experiments.papers import ddpm, mdlm
from unnoise.experiments.parts import part
from unnoise.experiments.recipe import Recipe
from unnoise.shared.data import Batches
from unnoise.shared.data.mapped import ImageWriter, mapped_rows
from unnoise.shared.networks import UNet
from unnoise.shared.networks.presets import ddpm_cifar10
from unnoise.shared.objective import Objective
from unnoise.shared.quantization import Quantization
from unnoise.shared.training import Trainer, Training
from unnoise.shared.training.averages import averaging

from .machine import scratch
from .timing import Contender, Work, Workload, asserted, returned

GROUP = "training and averages"
TARGET = 1.03
"""Largest ratio of the seconds of a step through `Trainer` to those of a bare loop."""
LARGEST = 5000
"""Largest number of examples that the bare loop keeps in memory."""
STEPS = 10
"""Steps of a turn."""


def recipes(smoke: bool) -> dict[str, Recipe]:
    """Returns the recipes whose networks are measured, by name."""
    small = part(UNet, width=32, multipliers=(1, 2, 2), blocks=1, attention=(4,), heads=4)
    mnist = replace(ddpm.mnist(), network=small, data=Images("mnist5k", batch=16))
    return {
        "digits, 8 x 8, U-Net of 1.2 M parameters, batch 64": ddpm.smoke() if smoke else ddpm.digits(),
        "MNIST, 28 x 28, U-Net of 1.2 M parameters, batch 16": ddpm.smoke() if smoke else mnist,
        "Shakespeare, DiT of 1.2 M parameters, batch 16": mdlm.smoke() if smoke else mdlm.shakespeare(),
    }


def bare_step(objective: Objective[Any], examples: Any, recipe: Recipe, config: Training) -> Work:
    """Returns a function that trains one step: draw a batch, loss, backward, clip, AdamW, average.

    It is written as a researcher would write it, with none of the functions of `Trainer`.
    """
    data, generator = cast(Batches, recipe.batches(examples)), torch.Generator().manual_seed(0)
    x0 = data.form(data.quantization, data.k[torch.arange(min(len(data.k), LARGEST))], generator)
    cond = data.conditions
    order = torch.randperm(len(x0), generator=generator)
    parameters: list[Tensor] = list(objective.parameters())
    average: list[Tensor] = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(
        parameters, config.learning_rate, config.betas, config.epsilon, config.weight_decay, fused=True
    )
    batch, position = recipe.data.batch, 0

    def work() -> None:
        nonlocal position
        start = position % (len(x0) // batch) * batch
        rows, position = order[start : start + batch], position + 1
        kept = {name: value[rows] for name, value in cond.items()}
        objective(x0[rows], generator=generator, **kept).total.mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 0.005)  # pyright: ignore[reportPrivateImportUsage]

    return work


def in_turn(step: Work, count: int) -> Callable[[], float]:
    """Returns a function that takes steps and returns the processor time of one."""

    def work() -> float:
        start = time.process_time()
        for _ in range(count):
            step()
        return (time.process_time() - start) / count

    return work


def through_trainer(objective: Objective[Any], config: Training, data: Any, count: int) -> Callable[[], float]:
    """Returns a function that trains `count` steps after a first one, and returns the processor time of one."""
    marks = list[float]()
    config = replace(config, steps=count + 1, save_every=10**9, watch_every=1, warmup=100, cooldown=0, device="cpu")
    trainer = Trainer(objective, config, watch=lambda average, step: marks.append(time.process_time()))

    def work() -> float:
        marks.clear()
        trainer.step = 0
        trainer.fit(data)
        return (marks[-1] - marks[0]) / count

    return work


def training_step(name: str, smoke: bool) -> Workload:
    """Returns a step through `Trainer` beside one of a bare loop on the same objective."""
    recipe, count = recipes(smoke)[name], 1 if smoke else STEPS
    examples = recipe.load("train")
    objectives = []
    for _ in range(2):
        torch.manual_seed(0)
        objectives.append(recipe.objective(examples.shape, examples.quantization))
    data = recipe.batches(examples)

    def equal() -> str:
        batches = cast(Batches, data)
        k = batches.k[:2]
        x0 = batches.form(batches.quantization, k, torch.Generator().manual_seed(0))
        cond = {name: value[:2] for name, value in batches.conditions.items()}
        first, second = (o(x0, generator=torch.Generator().manual_seed(1), **cond).total for o in objectives)
        return asserted(first, second, "losses before training", 1e-6)

    bare = bare_step(objectives[1], examples, recipe, recipe.training)
    return Workload(
        name=f"training step, {name}",
        group=GROUP,
        unit="step",
        ours=Contender(through_trainer(objectives[0], recipe.training, data, count)),
        base="bare loop",
        references={"bare loop": Contender(in_turn(bare, count))},
        equal=equal,
        target=TARGET,
        clock=returned,
    )


def from_a_file(smoke: bool) -> Workload:
    """Returns training from a mapped file beside training from memory: a U-Net on 3 x 32 x 32, batch 64."""
    number, batch, count = (16, 2, 1) if smoke else (4096, 64, 3)
    k = torch.randint(0, 256, (number, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    path = scratch() / "images.arrow"
    with ImageWriter(path, tuple(k.shape[1:])) as writer:
        for image in k:
            writer.add(image.numpy())
        writer.finish([])
    works = []
    for rows in (mapped_rows(path), k):
        torch.manual_seed(0)
        network = UNet((3, 32, 32), 8 if smoke else 16, (1, 2), 1, (), 1)
        objective = DenoisingLoss.simple(Learned(network, Tabulated(linear_betas(1000))))
        works.append(through_trainer(objective, Training(), Batches(rows, batch, Quantization(256)), count))
    return Workload(
        name="training from a file",
        group=GROUP,
        unit="step",
        ours=Contender(works[0]),
        base="from memory",
        references={"from memory": Contender(works[1])},
        equal=lambda: asserted(mapped_rows(path)[torch.arange(2)], k[:2], "images", 0.0),
        target=1 / 0.9,
        clock=returned,
    )


def averages(smoke: bool) -> Workload:
    """Returns an update of averaged weights of DDPM's network beside the same sum of one flat tensor."""
    torch.manual_seed(0)
    network = nn.Linear(4, 4) if smoke else ddpm_cifar10()
    average = copy.deepcopy(network).requires_grad_(False)
    flat = torch.cat([p.detach().flatten() for p in network.parameters()])
    other, update = flat.clone(), averaging(average, network)

    def equal() -> str:
        moved = copy.deepcopy(network).requires_grad_(False)
        with torch.no_grad():
            for p in moved.parameters():
                p.zero_()
        averaging(moved, network)(0.9)
        found = torch.cat([p.flatten() for p in moved.parameters()])
        return asserted(found, torch.zeros_like(flat).lerp_(flat, 0.1), "averages", 1e-6)

    references = {"one flat tensor": Contender(lambda: other.lerp_(flat, 0.001))}
    if find_spec("k_diffusion"):
        from k_diffusion import utils  # pyright: ignore[reportMissingImports]

        shadow = copy.deepcopy(average)
        references["k-diffusion"] = Contender(lambda: utils.ema_update(network, shadow, 0.999))
    return Workload(
        name=f"averages, {flat.numel() / 1e6:.1f} M parameters",
        group=GROUP,
        unit="update",
        ours=Contender(lambda: update(0.999)),
        base="one flat tensor",
        references=references,
        equal=equal,
        target=1.15,
    )


def workloads(smoke: bool) -> dict[str, Callable[[], Workload]]:
    """Returns the workloads of this module by name."""
    name = next(iter(recipes(smoke)))
    return {f"training step, {name}": partial(training_step, name, smoke), "averages": partial(averages, smoke)}


def further(smoke: bool) -> dict[str, Callable[[], Workload]]:
    """Returns the workloads of `--full` alone: the other networks, and data from a file."""
    names = [*recipes(smoke)][1:]
    return {
        **{f"training step, {name}": partial(training_step, name, smoke) for name in names},
        "training from a file": partial(from_a_file, smoke),
    }
