"""The folder of an ablation: its plan, the claims of processes on runs, and the results."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...shared.errors import UsageError, shown
from ...shared.metrics.measurement import Evaluation, Origin
from ...shared.progress import Progress, silent
from ...shared.training import load
from ...shared.training.checkpoint import list_checkpoints
from ...shared.training.folder import curve, write_text
from ...shared.training.precision import PRECISIONS
from ..notation import average_named
from ..reproduce import train_recipe
from .grid import Ablation, Case, Setup
from .results import Results, Run

PLAN = "ablation.json"
ATTEMPTS = 3
"""The number of processes that may end during one run before it counts as failed."""


@dataclass(frozen=True)
class Plan:
    """The runs of an ablation in a folder.

    Attributes:
        folder: the folder.
        title, question, shows: texts of the report.
        factors: the levels of each factor by name, the first of which is the baseline.
        measures: the names of the measurements in the report.
        cases: the runs.
    """

    folder: Path
    title: str
    question: str
    shows: str
    factors: dict[str, list[str]]
    measures: list[str]
    cases: list[Case]

    @staticmethod
    def of(ablation: Ablation, folder: Path) -> Plan:
        """Returns the plan of an ablation in a folder; nothing is written."""
        factors = {factor: list(levels) for factor, levels in ablation.vary.items()}
        texts = ablation.title, ablation.question, ablation.shows
        return Plan(folder, *texts, factors, list(ablation.measures), list(ablation.cases()))

    @staticmethod
    def read(folder: Path) -> Plan:
        """Returns the plan that `write` wrote into a folder.

        Raises:
            UsageError: for a folder without a plan, or a plan that cannot be read.
        """
        path = folder / PLAN
        if not path.is_file():
            raise UsageError(f"{folder} has no {PLAN}: give the folder of an ablation, or start one there with --out")
        try:
            data = json.loads(path.read_text())
            cases = [Case(case["levels"], case["seed"], Setup.of(case["setup"])) for case in data.pop("cases")]
            return Plan(folder=folder, cases=cases, **data)
        except UsageError as error:  # a part of one's own, with the option that imports it
            raise UsageError(f"{path}: {error}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path} cannot be read ({shown(error)}): start the ablation again with --out") from error

    def write(self) -> None:
        """Writes the plan into its folder. Results of runs that an earlier plan had too stay valid."""
        cases = [{"levels": dict(c.levels), "seed": c.seed, "setup": c.setup.described()} for c in self.cases]
        texts = {name: getattr(self, name) for name in ("title", "question", "shows", "factors", "measures")}
        (self.folder / "runs").mkdir(parents=True, exist_ok=True)
        write_text(self.folder / PLAN, json.dumps(texts | {"cases": cases}, indent=1))

    def trained(self, case: Case) -> Path:
        """Returns the folder of the trained model of a run, which runs share that differ in sampling alone."""
        return self.folder / "trained" / f"{case.setup.training_key}-seed{case.seed}"

    def result(self, case: Case) -> Path:
        """Returns the file with the result of a run."""
        return self.folder / "runs" / f"{case.setup.key}-seed{case.seed}.json"

    def done(self, case: Case) -> bool:
        """Returns whether a run has a result, or has failed."""
        return self.result(case).exists()

    def pending(self) -> list[Case]:
        """Returns the runs without a result."""
        return [case for case in self.cases if not self.done(case)]

    def left_out(self) -> int:
        """Returns the number of runs with a result in the folder that this plan does not have."""
        own = {self.result(case).name for case in self.cases}
        return sum(path.name not in own for path in (self.folder / "runs").glob("*-seed*.json"))

    def retry(self) -> int:
        """Forgets the failures, so that failed runs are run again, and returns their number."""
        failed = [case for case in self.cases if self.done(case) and "failure" in read_result(self.result(case))]
        for case in failed:
            self.result(case).unlink()
            attempts_file(self.result(case)).unlink(missing_ok=True)
        return len(failed)

    def results(self) -> Results:
        """Returns the results so far."""
        runs = [self.run(case) for case in self.cases]
        missing = sum(run.evaluation is None and not run.failure for run in runs)
        text = "\n\n".join(part for part in (self.question, self.shows) if part)
        return Results(self.title, text, self.factors, self.measures, runs, missing)

    def run(self, case: Case) -> Run:
        """Returns a run for the report."""
        levels, seed = dict(case.levels), case.seed
        if not self.done(case):
            return Run(levels, seed, None)
        data, curve = read_result(self.result(case)), learning_curve(self.trained(case))
        if "failure" in data:
            return Run(levels, seed, None, data["failure"], curve)
        return Run(levels, seed, Evaluation.from_json(data["evaluation"]), "", curve, data["seconds"])


def read_result(path: Path) -> dict[str, Any]:
    """Returns the contents of a result.

    Raises:
        UsageError: for a file that cannot be read.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UsageError(f"{path} is damaged ({shown(error)}): remove it, and its run is done again") from error


def learning_curve(folder: Path) -> tuple[list[float], list[float]]:
    """Returns the steps and the losses in the log of a run; empty lists without a log."""
    path = folder / "metrics.jsonl"
    return curve(path, "loss") if path.exists() else ([], [])


def attempts_file(result: Path) -> Path:
    """Returns the file that counts the processes that began a run."""
    return result.with_suffix(".attempts")


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Yields whether this process alone has a claim, which the operating system releases when the process ends."""
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def work(plan: Plan, progress: Progress = silent, *, wait: float = 2.0, say: Any = print) -> int:
    """Does the runs of a plan that no other process does, until all have a result; returns the number done here.

    Any number of processes, on machines that see the folder, can work at the same time: a run is claimed by a lock of
    its file. A run that raises is recorded with its error, and the next one begins.

    Args:
        plan: the plan.
        progress: how to report the progress of a run.
        wait: seconds between two looks for runs that other processes have claimed.
        say: receives a line for each run.
    """
    number = 0
    while pending := plan.pending():
        before = number
        for case in pending:
            with claimed(plan.result(case)) as own:
                if not own or plan.done(case) or not attempt(plan, case, progress, say):
                    continue
                number += 1
        if number == before:
            time.sleep(wait)
    return number


def attempt(plan: Plan, case: Case, progress: Progress, say: Any) -> bool:
    """Does one claimed run and writes its result; returns False where another process trains its model."""
    result, start = plan.result(case), time.perf_counter()
    counter = attempts_file(result)
    earlier = int(counter.read_text() or 0) if counter.exists() else 0
    if earlier >= ATTEMPTS:
        failed(result, f"the process ended {earlier} times during this run: too little memory?")
        say(f"failed: {case.name}: the process ended {earlier} times")
        return True
    try:
        with claimed(plan.trained(case)) as own:
            if not own and not finished(plan, case):
                return False
            counter.write_text(str(earlier + 1))
            if not finished(plan, case):
                train(plan, case, progress)
        evaluation = measured(case.setup, plan.trained(case), case.seed, progress)
    except Exception as error:  # whatever a run raises must not end the others
        reason = shown(error, 300) if isinstance(error, UsageError) else f"{type(error).__name__}: {shown(error, 300)}"
        write_text(result.with_suffix(".log"), traceback.format_exc())
        failed(result, reason)
        say(f"failed: {case.name}: {reason}")
        if device_is_lost():
            counter.unlink(missing_ok=True)
            say("the GPU cannot be used after this error by the process: start the ablation again to go on")
            raise SystemExit(1) from error
    except BaseException:  # stopped by the user or the cluster, which is not a failure of the run
        counter.write_text(str(earlier))
        raise
    else:
        seconds = round(time.perf_counter() - start, 1)
        written = {"levels": dict(case.levels), "seed": case.seed, "seconds": seconds}
        content = written | {"finished": time.strftime("%Y-%m-%d %H:%M:%S"), "evaluation": evaluation.as_json()}
        write_text(result, json.dumps(content, indent=1, allow_nan=False))
        say(f"done in {seconds:.0f} s: {case.name}: {numbers_of(plan, evaluation)}")
    with suppress(FileNotFoundError):
        counter.unlink()
    return True


def numbers_of(plan: Plan, evaluation: Mapping[str, Any]) -> str:
    """Returns the numbers of a run that the report has, in words."""

    def shown_as(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, int | float) else "NaN" if value is None else str(value)

    return ", ".join(
        f"{name} {shown_as(evaluation[name])}" if name in evaluation else f"{name} was not measured"
        for name in plan.measures
    )


def device_is_lost() -> bool:
    """Returns whether an error has left the GPU unusable for this process, as a failed assertion in a kernel does."""
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def failed(result: Path, reason: str) -> None:
    """Writes the result of a run that failed."""
    write_text(result, json.dumps({"failure": reason, "finished": time.strftime("%Y-%m-%d %H:%M:%S")}, indent=1))


def finished(plan: Plan, case: Case) -> bool:
    """Returns whether the model of a run is trained to its end."""
    steps = case.setup.recipe.training.steps
    return any(int(path.name) >= steps for path in list_checkpoints(plan.trained(case) / "checkpoints"))


def train(plan: Plan, case: Case, progress: Progress) -> None:
    """Trains the model of a run, from its newest checkpoint where there is one."""
    recipe = case.setup.recipe
    train_recipe(recipe, recipe.load("train"), plan.trained(case), progress, resume=True)


def measured(setup: Setup, folder: Path, seed: int, progress: Progress) -> Evaluation:
    """Measures a trained model, on the device of its training and in float32."""
    recipe, average = setup.recipe, None if setup.average is None else average_named(setup.average)
    checkpoint = load(folder, device=recipe.training.chosen_device(), average=average)
    if checkpoint.step < recipe.training.steps:
        raise UsageError(
            f"the newest checkpoint in {folder} is damaged: remove the folder, and start again with --retry"
        )
    denoiser = checkpoint.average.denoiser
    assert checkpoint.quantization is not None, "written by the trainer"
    recipe.refuse_unfit(denoiser, checkpoint.quantization)
    own: dict[str, Any] = {"features": setup.features} if setup.features else {}
    with PRECISIONS["float32"].products():
        found = recipe.evaluate(
            denoiser,
            count=setup.count,
            steps=recipe.grid(denoiser, recipe.sampling_steps),
            seed=seed,
            trained_on=checkpoint.description["batches"],
            progress=progress,
            samples=setup.samples,
            without=setup.without,
            **own,
        )
    weights = checkpoint.description["weights"]["average.*"]
    return found.of(Origin(weights=str(weights), precision="float32", seed=seed))
