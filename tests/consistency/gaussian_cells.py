"""The consistency matrix of the Gaussian families: its axes, and its half of docs/consistency.md."""

from __future__ import annotations

import itertools
import re
from typing import NamedTuple

import torch
from cells import refusal, table
from torch import Tensor, nn

from unnoise import continuous as c
from unnoise import sde
from unnoise.shared.gaussian.denoiser import GaussianDenoiser
from unnoise.shared.gaussian.guidance import ClassifierFree, ClassifierGuided, ConditionDropout, NoisyClassifier
from unnoise.shared.objective import Stratified
from unnoise.shared.quantization import Quantization
from unnoise.shared.sampler import CorrectorPredictor, PredictorCorrector

D = torch.float64
THREE = Quantization(3)
BETAS = torch.tensor([0.1, 0.3, 0.5], dtype=D)

SCHEDULES = {
    "VP": sde.VP,
    "SubVP": sde.SubVP,
    "VE": lambda: sde.VE(0.02, 20.0),
    "EDM": sde.EDM,
    "Straight": sde.Straight,
    "Straight(end=0.999)": lambda: sde.Straight(0.999),
    "Cosine": c.Cosine,
    "Shifted(Cosine)": lambda: c.Shifted(c.Cosine(), -1.0),
    "Tabulated, 49 rows": lambda: c.Tabulated(c.linear_betas(49)),
    "Tabulated, 3 rows": lambda: c.Tabulated(BETAS),
    "Tabulated, 1 row": lambda: c.Tabulated(BETAS[1:2]),
    "Tabulated to zero SNR": lambda: c.Tabulated(c.zero_terminal(c.linear_betas(50))),
    "NoiseLevels, 49 rows": lambda: sde.NoiseLevels(sde.geometric_sigmas(0.1, 10.0, 49)),
}
ZERO_SNR = ("Straight", "Tabulated to zero SNR")
PREDICTIONS = {
    "noise": lambda schedule: c.noise,
    "clean": lambda schedule: c.clean,
    "velocity": lambda schedule: c.velocity,
    "straight": lambda schedule: sde.straight,
    "Preconditioned": lambda schedule: sde.Preconditioned(0.7),
    "PosteriorMean": c.PosteriorMean,
}
FIXED = {"small": c.small, "large": c.large, "LogInterpolated": c.LogInterpolated(0.3)}
LEARNED = {"learned_range": c.learned_range, "learned_diagonal": c.learned_diagonal}
VARIANCES = FIXED | LEARNED
WEIGHTS = {
    "DenoisingLoss.simple": c.DenoisingLoss.simple,
    "DenoisingLoss(truncated_snr)": lambda d: c.DenoisingLoss(d, weight=c.truncated_snr),
    "DenoisingLoss.min_snr": lambda d: c.DenoisingLoss.min_snr(d, 2.0),
    "DenoisingLoss(OutputError(velocity))": lambda d: c.DenoisingLoss(d, weight=c.OutputError(c.velocity)),
    "DenoisingLoss.score_matching": c.DenoisingLoss.score_matching,
    "DenoisingLoss.likelihood_weighted": c.DenoisingLoss.likelihood_weighted,
    "DenoisingLoss.edm": lambda d: c.DenoisingLoss.edm(d, 0.7),
    "DenoisingLoss.flow_matching": c.DenoisingLoss.flow_matching,
}
BOUNDING = {f"Variational({name})": lambda d, v=v: c.Variational(d, THREE, v) for name, v in FIXED.items()}
UNUSUAL = {
    "MaximumLikelihood": sde.MaximumLikelihood,
    "ImplicitScoreMatching": sde.ImplicitScoreMatching,
    "SlicedScoreMatching": lambda d: sde.SlicedScoreMatching(d, 2),
}
OBJECTIVES = {
    **WEIGHTS,
    **BOUNDING,
    **UNUSUAL,
    "Variational(learned_range)": lambda d: c.Variational(d, THREE, c.learned_range),
    "Hybrid": lambda d: c.Hybrid(d, THREE),
    "Variational, uneven times": lambda d: c.Variational(d, THREE, times=Stratified(1.5)),
    "MaximumLikelihood, uneven times": lambda d: sde.MaximumLikelihood(d, Stratified(1.5)),
    "ImportanceSampling(DenoisingLoss.simple)": lambda d: c.ImportanceSampling(c.DenoisingLoss.simple(d)),
    "ImportanceSampling(MaximumLikelihood)": lambda d: c.ImportanceSampling(sde.MaximumLikelihood(d)),
    "ConditionDropout(DenoisingLoss.simple)": lambda d: ConditionDropout(c.DenoisingLoss.simple(d)),
    "Distillation": lambda d: c.Distillation(d, c.Clipped(d), 4),
}
BOUNDS = {
    f"VariationalBound({name})": lambda d, v=v: c.VariationalBound(d, THREE, variance=v)
    for name, v in VARIANCES.items()
}
LIKELIHOODS = {
    "ChangeOfVariables(angle)": lambda d: sde.ChangeOfVariables(
        d, trace=sde.ExactTrace(), integrator=sde.Adaptive(1e-7, 1e-7)
    ),
    "ChangeOfVariables(time)": lambda d: sde.ChangeOfVariables(
        d, trace=sde.ExactTrace(), integrator=sde.Adaptive(1e-7, 1e-7), coordinates=sde.time_coordinates
    ),
}
OF_THE_FLOW = {
    "DDIM": c.DDIM,
    "Heun": c.Heun,
    "DPMSolver(2)": c.DPMSolver,
    "DPMSolver(3)": lambda d: c.DPMSolver(d, 3),
    "DPMSolverPPSingle": c.DPMSolverPPSingle,
    "DPMSolverPP": c.DPMSolverPP,
    "DPMSolverPP(exponential)": lambda d: c.DPMSolverPP(d, c.exponential),
    "DPMSolverPP(curved)": lambda d: c.DPMSolverPP(d, c.curved),
    "UniPC(2)": lambda d: c.UniPC(d, 2),
    "UniPC(3)": c.UniPC,
    "LMS": lambda d: c.LMS(d, 3),
    "ProbabilityFlow": sde.ProbabilityFlow,
    "ProbabilityFlow(time)": lambda d: sde.ProbabilityFlow(d, coordinates=sde.time_coordinates),
    "EulerMaruyama(0)": lambda d: sde.EulerMaruyama(d, 0.0),
    "ReverseDiffusion(0)": lambda d: sde.ReverseDiffusion(d, 0.0),
}
STOCHASTIC = {
    "Ancestral(small)": lambda d: c.Ancestral(d, c.small),
    "Ancestral(large)": c.Ancestral,
    "Ancestral(LogInterpolated)": lambda d: c.Ancestral(d, c.LogInterpolated(0.3)),
    "DDIM(0.5)": lambda d: c.DDIM(d, 0.5),
    "DDIM(1)": lambda d: c.DDIM(d, 1.0),
    "Renoised(DDIM)": lambda d: c.Renoised(c.DDIM(d)),
    "Renoised(DPMSolverPPSingle)": lambda d: c.Renoised(c.DPMSolverPPSingle(d)),
    "DPMSolverPP(SDE)": lambda d: c.DPMSolverPP(d, eta=1.0),
    "EulerMaruyama": sde.EulerMaruyama,
    "EulerMaruyama(0.5)": lambda d: sde.EulerMaruyama(d, 0.5),
    "ReverseDiffusion": sde.ReverseDiffusion,
    "Churned(Heun)": lambda d: c.Churned(c.Heun(d), 0.02),
}
CORRECTED = {
    "PredictorCorrector": lambda d: PredictorCorrector(sde.ReverseDiffusion(d), sde.AnnealedLangevin(d, 0.02, 1)),
    "CorrectorPredictor": lambda d: CorrectorPredictor(sde.ReverseDiffusion(d), sde.AnnealedLangevin(d, 0.02, 1)),
}
ON_LEARNED = {f"Ancestral({name})": lambda d, v=v: c.Ancestral(d, v) for name, v in LEARNED.items()}
ENCODED = {
    "NoPredictor, AnnealedLangevin": lambda d: CorrectorPredictor(sde.NoPredictor(d), sde.AnnealedLangevin(d, 0.1, 2))
}
IN_TIME = ("EulerMaruyama", "ProbabilityFlow(time)")  # whose steps depend on t, not on the log-SNR alone
SAMPLERS = {**OF_THE_FLOW, **STOCHASTIC, **CORRECTED, **ENCODED, **ON_LEARNED}
WRAPPERS = {
    "Clipped": lambda d: c.Clipped(d, -0.9, 0.9),
    "Thresholded": lambda d: c.Thresholded(d, 0.5),
    "ClassifierFree": lambda d: ClassifierFree(d, 1.5),
    "ClassifierFree(interval)": lambda d: ClassifierFree(d, 1.5, low=0.3, high=0.8),
    "ClassifierFree(rescale)": lambda d: ClassifierFree(d, 1.5, rescale=0.7),
    "ClassifierGuided": lambda d: ClassifierGuided(d, NoisyClassifier(TwoClasses(), d.corruption)),
}
AXES = {"objective": OBJECTIVES, "bound": BOUNDS, "likelihood": LIKELIHOODS, "sampler": SAMPLERS, "wrapper": WRAPPERS}


class TwoClasses(nn.Module):
    """A classifier of two classes, `(B, D)` to `(B, 2)`."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        score = torch.tanh(x.sum(1)) + 0.2
        return torch.stack([score, -score], 1)


class Net(nn.Module):
    """A network with a class label and bounded outputs; the second of two is a variance output."""

    conditions = ("label",)

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.outputs, self.gain = outputs, nn.Parameter(torch.tensor(0.8, dtype=D))

    def null(self, condition: str) -> Tensor:
        """Returns the label of no class, the third."""
        return torch.tensor(2)

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        label = torch.full((len(x),), 2, device=x.device) if label is None else label.expand(len(x))
        out = torch.tanh(self.gain * x + 0.3 * (label - 1.0).view(-1, *[1] * (x.ndim - 1)))
        return out if self.outputs == 1 else torch.cat([out, torch.sin(2 * x)], 1)


def build(schedule: str, prediction: str = "velocity", outputs: int = 1) -> GaussianDenoiser:
    """Returns a new network as a denoiser on a schedule."""
    there = SCHEDULES[schedule]()
    return c.Learned(Net(outputs), there, PREDICTIONS[prediction](there))


class Cell(NamedTuple):
    """One combination; `refused` is the error message that building it raises, or ""."""

    axis: str
    schedule: str
    outputs: int
    part: str
    refused: str


def cells() -> list[Cell]:
    """Returns all cells of the matrix, after an attempt to build each."""
    found = []
    for schedule, outputs in itertools.product(SCHEDULES, (1, 2)):
        for axis, parts in AXES.items():
            for part, make in parts.items():
                if outputs == 1 or axis in ("objective", "bound") or part in ON_LEARNED:
                    found.append(
                        Cell(axis, schedule, outputs, part, refusal(lambda: make(build(schedule, outputs=outputs))))  # noqa: B023
                    )
    for schedule, prediction in itertools.product(SCHEDULES, PREDICTIONS):
        found.append(Cell("prediction", schedule, 1, prediction, refusal(lambda: build(schedule, prediction))))  # noqa: B023
    return found


def page(found: list[Cell]) -> str:
    """Returns the second half of docs/consistency.md."""
    reasons: dict[str, int] = {}
    sections = []
    for (axis, outputs), title in TITLES.items():
        own = [cell for cell in found if (cell.axis, cell.outputs) == (axis, outputs)]
        sections.append(f"### {title}\n\n{section(own, reasons)}")
    tested = sum(not cell.refused for cell in found)
    notes = "\n".join(f"{number}. {words}" for words, number in reasons.items())
    head = HEADER.format(tested=tested, refused=len(found) - tested)
    return head + "\n\n".join(sections) + "\n\n### Why refused\n\n" + notes + "\n"


def section(own: list[Cell], reasons: dict[str, int]) -> str:
    """Returns the table of one axis, with a row for each part; schedules with equal columns share one."""
    parts = list(dict.fromkeys(cell.part for cell in own))
    marks = {(cell.schedule, cell.part): mark(cell, reasons) for cell in own}
    columns: dict[tuple[str, ...], list[str]] = {}
    for schedule in SCHEDULES:
        columns.setdefault(tuple(marks[schedule, part] for part in parts), []).append(schedule)
    head = ["", *("; ".join(names) for names in columns.values())]
    lines = [[part, *(column[i] for column in columns)] for i, part in enumerate(parts)]
    return table(head, lines)


def mark(cell: Cell, reasons: dict[str, int]) -> str:
    """Returns the text of a cell on the page."""
    if not cell.refused:
        return VERDICTS[cell.axis](cell)
    words = re.sub(r"schedule=\w+: the posterior mean", "the posterior mean", cell.refused)
    words = re.sub(r"\w+ is a schedule in continuous time", "this is a schedule in continuous time", words)
    words = re.sub(r"\w+ ends at zero SNR", "the schedule ends at zero SNR", words)
    words = re.sub(r"weight=\S+ is 0", "the weight is 0", re.sub(r"so \w+ would never", "so this would never", words))
    return f"refused {reasons.setdefault(words, len(reasons) + 1)}"


def of_objective(cell: Cell) -> str:
    """Returns what the tests verify of an objective."""
    if cell.part.startswith("Variational"):
        return "stationary, term of the bound"
    return {
        "MaximumLikelihood": "stationary, bound",
        "Hybrid": "its parts",
        "Distillation": "built",
        "ConditionDropout(DenoisingLoss.simple)": "as the simple loss",
    }.get(cell.part, "stationary")


def of_sampler(cell: Cell) -> str:
    """Returns the order that the tests measure; on tables, whose slopes jump, not of samplers that depend on t."""
    if cell.schedule.startswith(("Tabulated", "NoiseLevels")) and cell.part.startswith(IN_TIME):
        return "order as the table allows"
    if cell.part in OF_THE_FLOW:
        return f"order {OF_THE_FLOW[cell.part](build('VP')).order}"
    return (
        "order 1"
        if cell.part in STOCHASTIC | CORRECTED
        else "stationary variance"
        if cell.part in ENCODED
        else "as fixed"
    )


VERDICTS = {
    "objective": of_objective,
    "bound": lambda cell: "bound",
    "likelihood": lambda cell: "density of its flow",
    "sampler": of_sampler,
    "wrapper": lambda cell: "one estimate",
    "prediction": lambda cell: "one estimate",
}
TITLES = {
    ("prediction", 1): "Predictions",
    ("objective", 1): "Objectives",
    ("objective", 2): "Objectives of networks with a variance output",
    ("bound", 1): "Bounds",
    ("bound", 2): "Bounds of networks with a variance output",
    ("likelihood", 1): "Likelihoods",
    ("sampler", 1): "Samplers",
    ("sampler", 2): "Samplers of networks with a variance output",
    ("wrapper", 1): "Wrappers",
}
HEADER = """
## The Gaussian families

Data are a Gaussian, a mixture and a few quantized points in one dimension, and everything is an integral by
quadrature or a closed form, float64. {tested} combinations are built and tested, {refused} are refused when they are
built.

- **stationary**: the derivative of the objective's expectation along any change of the exact denoiser is 0 (2e-7),
  and along a change of a wrong denoiser it is not; for both the expectation is the formula of the docstring: a
  weighted error of x_0, of the score or of the velocity, a term of the bound, or a bound on the density of the
  reverse SDE.
- **bound**: for any denoiser, prior, path and data are `E_q[log q / p]` computed independently, at least `-log
  P(x_0)` of the chain that `Ancestral` samples, decoder included, and `sum_x exp(-bound) <= 1`: on tables of 1 and 3
  rows that do not end in pure noise, at zero SNR, on noise levels and on respaced tables, clipped or not.
- **density of its flow**: the code length is minus the logarithm of `p_1 |dx_1 / dx|` along its own flow, for exact,
  wrong, clipped and guided denoisers.
- **order n**: on Gaussian data, where every sampler is a linear map of its start and its noise, the error of the
  variance at a late time falls as the n-th power of the step. Samplers that depend on the log-SNR alone return equal
  results at equal log-SNRs on all schedules. **order as the table allows**: samplers that depend on t, on a table.
- **its parts**: the mean is trained by its squared error alone and the variance by the bound. **as the simple loss**:
  with the condition, or with its null where it is dropped. **as fixed**: mean and variance of a step are those of the
  chain that the bound codes. **stationary variance**: that of the Langevin steps, in closed form. **built**: tested
  elsewhere.
- **one estimate**: the estimate of x_0, the score, the noise and the velocity of a wrapper or prediction agree, on
  its schedule and on others.

"""
