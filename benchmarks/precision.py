"""The held-out loss of the digits in bfloat16 beside that in float32: `python -m benchmarks.precision`, minutes.

Both runs have the same seed and number of steps. It is a check of the trainer's automatic precision, not a timing.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import tyro

from unnoise.experiments.gaussian import GaussianRecipe
from unnoise.experiments.papers import ddpm
from unnoise.shared.progress import Progress, bar, silent
from unnoise.shared.training import Trainer


def losses(recipe: GaussianRecipe, steps: int, draws: int = 20, progress: Progress = silent) -> dict[str, float]:
    """Returns the held-out loss of the averaged network after training in each precision, by its setting."""
    found = {}
    images, test = recipe.data.load("train"), recipe.data.load("test")
    for precision in ("float32", "auto"):  # auto is the trainer's automatic precision
        training = replace(recipe.training, steps=steps, cooldown=steps // 3, precision=precision, device="cpu")
        torch.manual_seed(training.seed)
        objective = recipe.objective(images.shape, images.quantization)
        average = Trainer(objective, training, progress=progress).fit(recipe.batches(images))
        generator = torch.Generator().manual_seed(1)
        x0, cond = images.quantization.continuous(test.k), {"label": test.label}
        with torch.no_grad():
            means = [average(x0, generator=generator, **cond).total.mean() for _ in range(draws)]
        found[precision] = float(torch.stack(means).mean())
    return found


def main(steps: int = 300) -> None:
    """Trains the digits twice and prints both losses.

    Args:
        steps: training steps.
    """
    found = losses(ddpm.digits(), steps, progress=bar)
    apart = abs(found["auto"] / found["float32"] - 1)
    print(f"{found['auto']:.5f} in automatic precision, {found['float32']:.5f} in float32: {apart:.2%} apart")


if __name__ == "__main__":
    tyro.cli(main)
