"""A comparison of models of text that are trained for the same time, as a table and a figure."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch

from ...discrete import CategoricalDenoiser, Infilling, Transition
from ...shared.data import TextDataset, sparse_chain
from ...shared.editing import Inpainting
from ...shared.errors import UsageError
from ...shared.metrics import NGram, entropy
from ...shared.metrics.text import JUDGED, judged
from ...shared.progress import Progress, silent
from ...shared.sampler import Sampler
from ...shared.training.folder import curve, read_object, writable
from ..categorical import CategoricalRecipe
from ..evaluation import draw
from ..report import table
from ..reproduce import trained
from ..text_measures import code

SHOWN = 3


def compare(
    models: Mapping[str, CategoricalRecipe],
    folder: Path,
    progress: Progress = silent,
    *,
    seconds: float | None = None,
    windows: int = 400,
    samples: int = 200,
) -> Path:
    """Trains each model, codes held-out text, draws samples and fills gaps; writes a table, a figure and the samples.

    Args:
        models: the models by name; their text has no tokenizer, as the baselines are models of single characters.
        folder: the folder of the comparison, with a folder for each model.
        progress: how to report progress.
        seconds: processor time for which each model is trained; None trains it for the steps of its recipe.
        windows: number of held-out windows to code.
        samples: number of samples of each model.

    Returns:
        The path of the table, a Markdown file.
    """
    first = next(iter(models.values()))
    torch.manual_seed(0)
    train, test = first.load("train"), first.load("test")
    results, texts = baselines(first, train, test, windows, samples), []
    for name, model in models.items():
        place = writable(folder_of(folder, name))
        if seconds is not None:
            model = within(model, seconds, place)
        denoiser = trained(model, train, place, progress).denoiser
        found = dict(code(model, denoiser, test, windows, progress=progress))
        sampler = model.sampler_of(denoiser)
        drawn = draw(model, sampler, test.shape, test.quantization, samples, model.sampling_steps, progress=progress)
        results[name] = (
            found
            | judged(drawn.levels, train)
            | {"evaluations": drawn.evaluations, "training_steps": model.training.steps}
        )
        texts.append(
            f"## {name}\n\n{quoted(test.decode(drawn.levels[:SHOWN]))}\n\n{filled(model, denoiser, test, progress)}"
        )
    picture(folder, results)
    (folder / "results.json").write_text(json.dumps(results, indent=1))
    (folder / "samples.md").write_text("# Samples and filled gaps\n\n" + "\n\n".join(texts) + "\n")
    page = folder / "table.md"
    head = ["model", "bits/char", "generative perplexity", "sample entropy, bits", "evaluations", "training steps"]
    rows = [[name, *cells(found)] for name, found in results.items()]
    page.write_text(
        f"# A comparison of models of text\n\n{first.data.name}, {test.vocabulary} characters, windows of "
        f"{test.length}. Bits/char are upper bounds on {windows} held-out windows, ± the standard error over them. The "
        f"generative perplexity of {samples} samples is per character, under a 5-gram model of the training text (of "
        f"{JUDGED:,} windows at most); it can be compared only between samples of similar "
        f"entropy.\n\n![training](figure.png)\n\n{table(head, rows)}\n\nSamples and filled gaps: "
        "[samples.md](samples.md).\n"
    )
    return page


def picture(folder: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Draws the path term of the bound on training batches after a tenth of the training, and the best baseline."""
    from ...shared.figures import Lines, save_lines

    curves, steps = {}, 0
    for name, found in results.items():
        if "training_steps" in found:
            # The path term: without the prior term and, in continuous time, without the data term.
            points = zip(*curve(folder_of(folder, name) / "metrics.jsonl", "bits_per_dim"), strict=True)
            steps = max(steps, found["training_steps"])
            curves[name] = smoothed([(step, value) for step, value in points if step >= found["training_steps"] / 10])
    floor = min((found["bits_per_character"], name) for name, found in results.items() if "training_steps" not in found)
    curves[floor[1]] = ([0, steps], [floor[0], floor[0]])
    save_lines(
        folder / "figure.png",
        {"path term of the bound, training batches": Lines("step", "bits/char", curves, logy=True)},
    )


def folder_of(folder: Path, name: str) -> Path:
    """Returns the folder of a model of the comparison."""
    return folder / name.lower().replace(" ", "-")


def smoothed(points: list[tuple[float, float]], over: int = 8) -> tuple[list[float], list[float]]:
    """Returns the steps, and running means of the values of single batches."""
    values = [v for _, v in points]
    return [x for x, _ in points], [
        sum(values[max(0, i - over) : i + 1]) / len(values[max(0, i - over) : i + 1]) for i in range(len(values))
    ]


def cells(found: Mapping[str, Any]) -> list[str]:
    """Returns the cells of a row of the table."""
    error = f" ± {found['standard_error']:.3f}" if "standard_error" in found else ""
    perplexity = f"{found['generative_perplexity']:.2f}" if "generative_perplexity" in found else "-"
    diversity = f"{found['sample_entropy']:.2f}" if "sample_entropy" in found else "-"
    rest = (str(found.get(key, "-")) for key in ("evaluations", "training_steps"))
    return [f"{found['bits_per_character']:.3f}{error}", perplexity, diversity, *rest]


def baselines(
    recipe: CategoricalRecipe, train: TextDataset, test: TextDataset, windows: int, samples: int
) -> dict[str, dict[str, Any]]:
    """Measures the baselines: the entropy of a chain, or n-gram models; and the held-out text in place of samples."""
    real = test.windows[: min(samples, len(test.windows))].long()
    held_out = {"sample_entropy": entropy(real, train.vocabulary)}
    if recipe.data.name == "chain":
        chain = sparse_chain()
        own = 2 ** float(chain.bits(real).sum() / real.numel())
        return {
            "exact entropy": {
                "bits_per_character": chain.entropy(test.length) / test.length,
                "generative_perplexity": own,
            }
            | held_out,
            "frequencies": {"bits_per_character": float(-torch.xlogy(p := chain.stationary(), p).sum()) / math.log(2)},
        }
    found = {}
    for order, name in ((1, "unigram"), (3, "trigram"), (5, "5-gram")):
        model = NGram(order, train.vocabulary).fit(train.windows[: min(len(train.windows), JUDGED)])
        coded = test.windows[: min(windows, len(test.windows))].long()
        found[name] = {"bits_per_character": float(model.bits(coded).sum() / coded.numel())}
    found["5-gram"] |= held_out | {"generative_perplexity": 2 ** float(model.bits(real).sum() / real.numel())}
    return found


def within(model: CategoricalRecipe, seconds: float, place: Path) -> CategoricalRecipe:
    """Returns the model with as many training steps as fit into the time; the time of a step is measured only once."""
    note = place / "budget.json"
    if not note.exists():
        steps, data = 12, model.load("train")
        objective = model.objective(data.shape, data.quantization)
        optimizer = torch.optim.AdamW(objective.parameters(), fused=True)
        times = []
        for batch in islice(model.batches(data), steps):
            start = time.process_time()
            inputs: dict[str, Any] = batch
            objective(**inputs).total.mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            times.append(time.process_time() - start)
        note.write_text(json.dumps({"seconds_per_step": sorted(times)[steps // 2], "seconds": seconds}))
    measured = read_object(note, "delete it to measure the time of a step again").get("seconds_per_step")
    if not isinstance(measured, float) or not measured > 0:
        raise UsageError(f"{note} has no positive seconds_per_step: delete it to measure the time of a step again")
    steps = int(seconds / measured)
    training = replace(
        model.training, steps=steps, cooldown=steps // 3, watch_every=steps, save_every=max(steps // 3, 1)
    )
    return replace(model, training=training)


def filled(model: CategoricalRecipe, denoiser: CategoricalDenoiser, test: TextDataset, progress: Progress) -> str:
    """Returns held-out text, as Markdown, with its middle half replaced by samples."""
    known = test.windows[:SHOWN].long()
    mask = torch.ones(known.shape[1], dtype=torch.bool)
    mask[known.shape[1] // 4 : 3 * known.shape[1] // 4] = False
    inner = cast("Sampler[CategoricalDenoiser, Transition]", model.sampler_of(denoiser))
    own_mask = denoiser.corruption.states > denoiser.corruption.categories
    # Known tokens stay clean where the process has a mask, and are corrupted to each time where it has none.
    sampler = Infilling(inner, known, mask) if own_mask else Inpainting(inner, known, mask)
    x = sampler(
        shape=known.shape, steps=model.sampling_steps, generator=torch.Generator().manual_seed(1), progress=progress
    )
    lines = []
    for row in test.decode(x):
        quarter = len(row) // 4
        lines.append(f"{row[:quarter]}[{row[quarter : 3 * quarter]}]{row[3 * quarter :]}")
    return "With the middle, in brackets, replaced by a sample:\n\n" + quoted(lines)


def quoted(lines: list[str]) -> str:
    """Returns lines as a Markdown code block."""
    return "```\n" + "\n\n".join(lines) + "\n```"
