"""What the categorical family lets a user combine: the axes of the consistency matrix, and its page in the docs.

`python tests/consistency/cells.py` writes docs/consistency.md; `make consistency` does the same.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).parent))

from enumerated import D, K

from unnoise import discrete as d
from unnoise.shared.errors import UsageError
from unnoise.shared.random import categorical
from unnoise.shared.sampler import CorrectorPredictor, PredictorCorrector

PAGE = Path(__file__).parent.parent.parent / "docs" / "consistency.md"
RING = torch.tensor([[1], [2], [0]])
BETAS = torch.tensor([0.3, 0.4, 0.6, 0.95], dtype=D)
EVENTS = -torch.log1p(-BETAS)
MILD = d.LogLinearNoise(eps=0.02, t_min=0.02)
T_MIN = 0.02


def rows(seed: int, size: int) -> torch.Tensor:
    """Matrices `(4, size, size)` whose rows are distributions."""
    return (2 * torch.rand(4, size, size, dtype=D, generator=torch.Generator().manual_seed(seed))).softmax(-1)


def masking_rows() -> torch.Tensor:
    """Absorption in a fourth token, each token at a pace of its own; some are left at the end."""
    chance = 0.4 + 0.5 * torch.rand(4, 3, dtype=D, generator=torch.Generator().manual_seed(6))
    q = torch.diag_embed(torch.cat([1 - chance, torch.ones(4, 1, dtype=D)], 1))
    q[:, :3, 3] = chance
    return q


PROCESSES = {
    "Uniform, table": lambda: d.Uniform(K, BETAS),
    "Uniform, time": lambda: d.Uniform(K, MILD),
    "Uniform, geometric time": lambda: d.Uniform(K, d.GeometricNoise(1e-2, 6.0, t_min=T_MIN)),
    "Absorbing, table": lambda: d.Absorbing(K, d.reciprocal(4)),
    "Absorbing, table with survivors": lambda: d.Absorbing(K, BETAS),
    "Absorbing, time": lambda: d.Absorbing(K, d.LogLinearNoise(0.0, T_MIN)),
    "Absorbing, time with survivors": lambda: d.Absorbing(K, MILD),
    "Absorbing in a token of the data, table": lambda: d.Absorbing(K, d.reciprocal(4), mask=1),
    "Absorbing in a token of the data, time with survivors": lambda: d.Absorbing(K, MILD, mask=1),
    "DiscretizedGaussian, table": lambda: d.DiscretizedGaussian(K, BETAS),
    "BandDiagonal, table": lambda: d.BandDiagonal(K, BETAS, band=2),
    "GaussianTarget, table": lambda: d.GaussianTarget(K, d.TabulatedNoise(EVENTS), reach=1.0, width=1.5),
    "GaussianTarget, time": lambda: d.GaussianTarget(K, d.ConstantNoise(4.0, T_MIN), reach=1.0, width=1.5),
    "NearestNeighbor, table": lambda: d.NearestNeighbor(RING, d.TabulatedNoise(EVENTS)),
    "NearestNeighbor, time": lambda: d.NearestNeighbor(RING, d.ConstantNoise(4.0, T_MIN)),
    "Mixture with Uniform, table": lambda: d.Mixture(
        d.NearestNeighbor(RING, d.TabulatedNoise(EVENTS / 3)), d.Uniform(K, BETAS)
    ),
    "Mixture with Uniform, time": lambda: d.Mixture(
        d.NearestNeighbor(RING, d.ConstantNoise(1.0, T_MIN)), d.Uniform(K, MILD)
    ),
    "Mixture with Absorbing, table": lambda: d.Mixture(d.DiscretizedGaussian(K, BETAS / 2), d.Absorbing(K, BETAS)),
    "Mixture with Absorbing, time": lambda: d.Mixture(
        d.NearestNeighbor(RING, d.ConstantNoise(1.0, T_MIN)), d.Absorbing(K, MILD)
    ),
    "Dense, table": lambda: d.Dense(rows(2, 3)),
    "Dense with a mask, table": lambda: d.Dense(masking_rows(), torch.eye(4, dtype=D)[3], categories=3),
}
REVERSES = {"Product": d.Product, "Marginal": d.Marginal, "Product(eps)": lambda: d.Product(1e-3)}
READINGS = (*REVERSES, "ratios")
FIRST = (
    *("Uniform, table", "Uniform, time", "Absorbing, table", "Absorbing, time with survivors"),
    *("DiscretizedGaussian, table", "Mixture with Absorbing, time"),
)
HEADS = {"direct": d.direct, "residual": d.residual, "carried": d.carried, "logistic": d.logistic}
OBJECTIVES = {
    "D3PMLoss(ce=0)": lambda denoiser: d.D3PMLoss(denoiser, 0.0),
    "D3PMLoss(ce)": lambda denoiser: d.D3PMLoss(denoiser, 0.3),
    "ImportanceSampling(D3PMLoss)": lambda denoiser: d.ImportanceSampling(d.D3PMLoss(denoiser, 0.0)),
    "ContinuousBound(ce=0)": lambda denoiser: d.ContinuousBound(denoiser),
    "ContinuousBound(ce)": lambda denoiser: d.ContinuousBound(denoiser, 0.3),
    "CrossEntropy": lambda denoiser: d.CrossEntropy(denoiser),
}
BOUNDS = {
    "VariationalBound()": lambda denoiser: d.VariationalBound(denoiser),
    "VariationalBound(steps=3)": lambda denoiser: d.VariationalBound(denoiser, steps=3),
    "VariationalBound(steps=grid)": lambda denoiser: d.VariationalBound(denoiser, steps=own_grid(denoiser.corruption)),
}
CORRECTED = {
    "Ancestral": lambda denoiser: d.Ancestral(denoiser, last=categorical),
    "TauLeaping": lambda denoiser: d.TauLeaping(denoiser, d.single, last=categorical),
    "Unmasking": lambda denoiser: d.Unmasking(denoiser, last=categorical),
    "FirstHitting": lambda denoiser: d.FirstHitting(denoiser),
}
SAMPLERS = {
    "Ancestral": CORRECTED["Ancestral"],
    "Ancestral(most_likely)": lambda denoiser: d.Ancestral(denoiser),
    "Euler": lambda denoiser: d.Euler(denoiser, last=categorical),
    "TauLeaping(single)": CORRECTED["TauLeaping"],
    "TauLeaping(ordinal)": lambda denoiser: d.TauLeaping(denoiser, d.ordinal, last=categorical),
    "Unmasking": CORRECTED["Unmasking"],
    "FirstHitting": CORRECTED["FirstHitting"],
    "Remasking": lambda denoiser: d.Remasking(denoiser, cap=0.3, last=categorical),
    "Infilling(Ancestral)": lambda denoiser: held(CORRECTED["Ancestral"](denoiser)),
    "Infilling(FirstHitting)": lambda denoiser: held(CORRECTED["FirstHitting"](denoiser)),
}
CORRECTORS = {
    f"{order.__name__}({name})": lambda denoiser, make=make, order=order: order(make(denoiser), corrector(denoiser))
    for order in (PredictorCorrector, CorrectorPredictor)
    for name, make in CORRECTED.items()
}
WRAPPERS = {
    "Temperature": lambda denoiser: d.Temperature(denoiser, 0.7),
    "TopP": lambda denoiser: d.TopP(denoiser, 0.8),
    "ClassifierFree": lambda denoiser: d.ClassifierFree(denoiser, 1.5, null=2),
    "ClassifierGuided": lambda denoiser: d.ClassifierGuided(denoiser, tilted, 1.5, d.every_neighbor),
}
AXES = {
    "objective": OBJECTIVES,
    "bound": BOUNDS,
    "sampler": SAMPLERS,
    "corrected sampler": CORRECTORS,
    "wrapper": WRAPPERS,
}


def some_of(pairs: list[tuple[str, str]]) -> list[object]:
    """Pairs of a process and a reading for pytest: one reading of every process and all of some.

    The others are slow.
    """
    import pytest

    return [
        pytest.param(p, r, marks=pytest.mark.slow if r not in ("Product", "ratios") and p not in FIRST else ())
        for p, r in pairs
    ]


def corrector(denoiser: d.CategoricalDenoiser) -> d.RateCorrector:
    """Short leaps at every time."""
    return d.RateCorrector(denoiser, size=0.2, repeats=1, below=1.0, jumps=d.single)


def held(sampler: object) -> d.Infilling:
    """The first position is known."""
    return d.Infilling(sampler, torch.tensor([2, 0]), torch.tensor([True, False]))


def own_grid(transition: d.Transition) -> torch.Tensor:
    """A grid that ends above the first row of a table, and above t_min."""
    return torch.tensor([1.0, 0.75, 0.5, 0.0], dtype=D)


def tilted(hot: torch.Tensor, t: torch.Tensor, **cond: torch.Tensor) -> torch.Tensor:
    """A classifier that looks at both tokens, `(B,)`."""
    weights = torch.sin(1.3 * torch.arange(hot[0].numel(), dtype=D)).view(hot.shape[1:])
    score = (hot.double() * weights).sum((1, 2))
    return torch.nn.functional.logsigmoid(torch.where(cond.get("label", torch.zeros(len(hot))) > 0, score, -score))


class Conditional(torch.nn.Module):
    """A network with a class: other logits for each of two, and for none."""

    conditions = ("label",)

    def __init__(self, states: int, out: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.table, self.wave = (torch.randn(3, states**2, 2, out, dtype=D, generator=generator) for _ in range(2))
        self.states = states

    def null(self, condition: str) -> torch.Tensor:
        """No class is the third."""
        return torch.tensor(2)

    def forward(self, x: torch.Tensor, time: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        """`(B, 2, out)`."""
        label = torch.full((len(x),), 2) if label is None else label.expand(len(x))
        at = label, x[:, 0] * self.states + x[:, 1]
        return self.table[at] + torch.cos(0.004 * time.double())[:, None, None] * self.wave[at]


def build(process: str, reading: str, head: str = "direct") -> d.CategoricalDenoiser:
    """A denoiser with a network of its own."""
    transition = PROCESSES[process]()
    out = transition.states if reading == "ratios" else 2 if head == "logistic" else K
    network = Conditional(transition.states, out)
    if reading == "ratios":
        return d.ScoreEntropyDenoiser(network, transition, offset=d.unscaled)
    return d.Categorical(network, transition, REVERSES[reading](), head=HEADS[head])


class Cell(NamedTuple):
    """One combination, and what became of building it: "" or the words of the refusal."""

    axis: str
    process: str
    reading: str
    part: str
    refused: str


def cells() -> list[Cell]:
    """Every cell of the matrix, each built."""
    found = []
    for process, reading in itertools.product(PROCESSES, READINGS):
        for axis, parts in AXES.items():
            for part, make in parts.items():
                found.append(Cell(axis, process, reading, part, refusal(lambda: make(build(process, reading)))))  # noqa: B023
    for process, head in itertools.product(PROCESSES, HEADS):
        found.append(Cell("head", process, "Marginal", head, refusal(lambda: build(process, "Marginal", head))))  # noqa: B023
    return found


def refusal(make: Callable[[], object]) -> str:
    """The words with which a combination is refused when it is built, or ""."""
    try:
        make()
    except UsageError as error:
        return str(error)
    return ""


def page(found: list[Cell]) -> str:
    """docs/consistency.md."""
    reasons: dict[str, int] = {}
    sections = []
    for axis, title in TITLES.items():
        own = [cell for cell in found if cell.axis == axis]
        same: dict[str, list[str]] = {}
        for reading in dict.fromkeys(cell.reading for cell in own):
            same.setdefault(section([cell for cell in own if cell.reading == reading], reasons), []).append(
                NAMES[reading]
            )
        for text, names in same.items():
            sections.append(f"### {title}" + (f": {' and '.join(names)}" if axis != "head" else "") + f"\n\n{text}")
    tested = sum(not cell.refused for cell in found)
    notes = "\n".join(f"{number}. {words}" for words, number in reasons.items())
    head = HEADER.format(tested=tested, refused=len(found) - tested)
    return head + "\n\n".join(sections) + "\n\n### Why refused\n\n" + notes + "\n"


def section(own: list[Cell], reasons: dict[str, int]) -> str:
    """The table of one axis and reading; processes that are refused for one reason in every column stand below it."""
    parts, lines, gone = list(dict.fromkeys(cell.part for cell in own)), [], {}
    for process in PROCESSES:
        marks = []
        for cell in own:
            if cell.process == process:
                words = plain(cell.refused)
                marks.append(f"refused {reasons.setdefault(words, len(reasons) + 1)}" if words else verdict(cell))
        if len(set(marks)) == 1 and marks[0].startswith("refused"):
            gone.setdefault(marks[0], []).append(process)
        else:
            lines.append([process, *marks])
    rest = [f"All {mark}: {'; '.join(processes)}." for mark, processes in gone.items()]
    return "\n\n".join([table(["", *parts], lines), *rest])


def plain(words: str) -> str:
    """A refusal without the names of one process, so that equal reasons are one."""
    for name in (
        "Uniform",
        "Absorbing",
        "DiscretizedGaussian",
        "BandDiagonal",
        "GaussianTarget",
        "NearestNeighbor",
        "Mixture",
        "Dense",
    ):
        words = words.replace(f"this is {name} ", "this is another process ").replace(f"this {name} ", "this process ")
        words = words.replace(f"{name} (T=4)", "a process").replace(f"{name} (T=None)", "a process")
    return words.replace("over 3 states", "").replace("over 4 states", "").replace(" :", ":")


def verdict(cell: Cell) -> str:
    """What the tests show of a cell that can be built."""
    if cell.axis == "objective":
        return "order eps" if "eps" in cell.reading else "stationary"
    if cell.axis == "bound":
        return "bound" if cell.part != "VariationalBound()" or "table" in cell.process else "bound, limit"
    if cell.axis in ("sampler", "corrected sampler"):
        return SAMPLED.get(cell.part, "order 1")
    return "one model"


def table(head: list[str], lines: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *lines))


SAMPLED = {
    "Ancestral": "exact",
    "Ancestral(most_likely)": "greedy end",
    "Unmasking": "exact",
    "Infilling(Ancestral)": "exact",
}
SAMPLED |= {"FirstHitting": "exact, jointly", "Infilling(FirstHitting)": "exact, jointly"}
NAMES = {
    "Product": "`Product`",
    "Marginal": "`Marginal`",
    "Product(eps)": "`Product(eps=1e-3)`",
    "ratios": "`ScoreEntropyDenoiser`",
}
TITLES = {
    "objective": "Objectives",
    "bound": "Bounds",
    "sampler": "Samplers",
    "corrected sampler": "Samplers with `RateCorrector`",
    "wrapper": "Wrappers",
    "head": "Heads",
}
HEADER = """# Consistency

## The categorical family

Generated by `make consistency` from the table that `tests/consistency` tests; do not edit. The data are two dependent
tokens of a vocabulary of three, and everything is enumerated in float64. {tested} combinations are built and tested;
{refused} raise an error when they are built, for the reasons at the end. [readings.md](readings.md) explains the two
readings of a network's output.

- **stationary**: the gradient of the objective at the exact denoiser is 0 (1e-8, free logits at every state), and it is
  not 0 at an inexact one. **order eps**: it is 0 up to the eps of the published code.
- **bound**: for an inexact denoiser, prior, path and data are `E_q[log q(x_1..T | x_0) / p(x_0..T)]` by sums over all
  states (1e-9), at least `-log P(x_0)` of the samples of `Ancestral` on the same grid, and `sum_x exp(-bound) <= 1`;
  for the exact denoiser of independent tokens the bound is the entropy and `KL(q(x_1) || p(x_1))`. **limit**: chains of
  100, 400 and 1600 steps converge to the integral, at first order.
- **exact**: with the exact denoiser of independent tokens the sampler maps q(x_t) of the data to the distribution of
  the data, on any grid; for dependent tokens at first order, since both are sampled at once. From the sampler's own
  start the error is at most that of the start: the total variation between q(x_t) at the grid's first time and p(x_t),
  which is arbitrarily small for a process that ends in noise. **exact, jointly**: for dependent tokens too, except for
  data tokens that remain at t = 1, which the start samples independently (an error of the order of the square of their
  share). **order 1**: the error halves as the number of steps doubles; for inexact denoisers the limit is the
  distribution to which `Ancestral` converges, except for `Remasking` and correctors, whose distribution no bound
  describes. **greedy end**: the last step takes the most likely token, as published for images and MDLM: the error is
  at most the probability that a token is noise at the last time; with `last=categorical` the bound describes the
  samples.
- **one model**: kernel, samples, rates and divergences of the wrapped denoiser are those of one model, so its bound is
  that of its samples. `Temperature` and `TopP` change the network's output, so under `Product` they sharpen the
  prediction from the other tokens and not the evidence of x_t itself; `ClassifierFree` is the same under both readings.
  A token that `TopP` excludes costs infinitely many nats.

Where rates are infinite at t = 1 (`Absorbing, time`, under which no data token remains), `Euler`, `TauLeaping` and
`RateCorrector` can be built, and raise an error in the first step of a grid that starts there.

"""

if __name__ == "__main__":
    import gaussian_cells

    PAGE.write_text(page(cells()) + gaussian_cells.page(gaussian_cells.cells()))
    print(f"wrote {PAGE}")
