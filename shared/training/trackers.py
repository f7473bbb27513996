"""Trackers of experiments: they receive the lines of a run's log, and pictures of samples, beside `metrics.jsonl`."""

from __future__ import annotations

import importlib.util
import os
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias
from warnings import warn

from ..errors import Notice, UsageError, shown
from .folder import reason

PROJECT = "unnoise"
"""The project of runs in trackers that have projects, unless their environment variable names another."""


class Tracker(ABC):
    """Receives a run's log. Everything that it writes on this machine lies in the run's folder.

    An exception of a method ends the use of the tracker, with one `Notice`, and not the run.

    Attributes:
        name: the name in messages and in `Training.trackers`.
    """

    name: ClassVar[str]

    @abstractmethod
    def start(self, folder: Path, name: str, settings: Mapping[str, Any], step: int) -> None:
        """Starts or continues a run.

        Args:
            folder: the run's folder.
            name: the name of the run.
            settings: settings by name.
            step: the number of steps that were done before; 0 for a new run.
        """

    @abstractmethod
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Records numbers by name at a step."""

    @abstractmethod
    def image(self, step: int, name: str, path: Path) -> None:
        """Records a PNG picture at a step."""

    @abstractmethod
    def close(self) -> None:
        """Ends the run."""


class TensorBoard(Tracker):
    """TensorBoard: event files in RUN/tensorboard, shown by `tensorboard --logdir RUN`."""

    name = "tensorboard"

    def start(self, folder: Path, name: str, settings: Mapping[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Events after the step of a checkpoint are those of a process that was killed.
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)
        if not step:
            lines = "\n".join(f"    {key}: {value}" for key, value in settings.items())
            self.writer.add_text("settings", f"{name}\n\n{lines}")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def image(self, step: int, name: str, path: Path) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as picture:
            self.writer.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases(Tracker):
    """Weights & Biases: files in RUN/wandb; without an API key they stay there, and `wandb sync` uploads them."""

    name = "wandb"

    def start(self, folder: Path, name: str, settings: Mapping[str, Any], step: int) -> None:
        for variable in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
            os.environ.setdefault(variable, str(folder / "wandb"))
        (folder / "wandb").mkdir(exist_ok=True)
        import wandb  # pyright: ignore[reportMissingImports]

        mode = os.environ.get("WANDB_MODE")
        if mode is None and not wandb.login(prompt=False):
            mode = "offline"
            text = f"wandb has no API key, and writes to {folder / 'wandb'} alone: `wandb sync` uploads it later"
            warn(Notice(text), stacklevel=2)
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=name,
            config=dict(settings),
            dir=str(folder),
            id=stored_id(folder / "wandb"),
            resume="allow",
            mode=mode,  # pyright: ignore[reportArgumentType]
            settings=wandb.Settings(silent=True),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def image(self, step: int, name: str, path: Path) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self.run.log({name: wandb.Image(str(path))}, step=step)

    def close(self) -> None:
        self.run.finish()


class Trackio(Tracker):
    """trackio: a database in RUN/trackio, shown by `TRACKIO_DIR=RUN/trackio trackio show`."""

    name = "trackio"

    def start(self, folder: Path, name: str, settings: Mapping[str, Any], step: int) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(folder / "trackio"))
        import trackio  # pyright: ignore[reportMissingImports]

        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        with redirect_stdout(StringIO()):  # instructions for its viewer
            self.run = trackio.init(project=project, name=name, config=dict(settings), resume="allow", embed=False)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def image(self, step: int, name: str, path: Path) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        self.run.log({name: trackio.Image(str(path))}, step=step)

    def close(self) -> None:
        with redirect_stdout(StringIO()):
            self.run.finish()


class MLflow(Tracker):
    """MLflow: a database and pictures in RUN/mlruns, unless MLFLOW_TRACKING_URI names a server.

    `mlflow ui --backend-store-uri sqlite:///RUN/mlruns/mlflow.db` shows them.
    """

    name = "mlflow"

    def start(self, folder: Path, name: str, settings: Mapping[str, Any], step: int) -> None:
        home = (folder / "mlruns").resolve()
        home.mkdir(exist_ok=True)
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it writes to the user's home
        import mlflow  # pyright: ignore[reportMissingImports]

        uri = os.environ.get("MLFLOW_TRACKING_URI")
        self.client = mlflow.MlflowClient(tracking_uri=uri or f"sqlite:///{home / 'mlflow.db'}")
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known, place = self.client.get_experiment_by_name(project), None if uri else (home / "artifacts").as_uri()
        experiment = known.experiment_id if known else self.client.create_experiment(project, artifact_location=place)
        mark = home / "run-id"
        if mark.is_file():
            self.id = mark.read_text(encoding="utf-8").strip()
            self.client.update_run(self.id, status="RUNNING")
            return
        self.id = self.client.create_run(experiment, run_name=name).info.run_id
        mark.write_text(self.id, encoding="utf-8")
        for key, value in settings.items():
            self.client.log_param(self.id, key, shown(value, 500))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

        now = round(1000 * time.time())
        self.client.log_batch(self.id, [Metric(name, value, now, step) for name, value in values.items()])

    def image(self, step: int, name: str, path: Path) -> None:
        self.client.log_artifact(self.id, str(path), artifact_path=name)

    def close(self) -> None:
        self.client.set_terminated(self.id)


TRACKERS: dict[str, type[Tracker]] = {t.name: t for t in (TensorBoard, WeightsAndBiases, Trackio, MLflow)}
"""The trackers by the names that `Training.trackers` takes; each is also the name of its package and its extra."""
TrackerName: TypeAlias = Literal["tensorboard", "wandb", "trackio", "mlflow"]


def stored_id(folder: Path) -> str:
    """Returns the identifier of a run from its file in a folder; a new one is written where there is none."""
    mark = folder / "run-id"
    if not mark.is_file():
        mark.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
    return mark.read_text(encoding="utf-8").strip()


def named_trackers(names: Any) -> tuple[str, ...]:
    """Returns the names of trackers, each once.

    Raises:
        UsageError: for a name that is not in `TRACKERS`.
    """
    names = names if isinstance(names, tuple | list) else (names,)
    if wrong := [name for name in names if name not in TRACKERS]:
        raise UsageError(f"trackers={shown(wrong[0])}: give some of {', '.join(TRACKERS)}")
    return tuple(dict.fromkeys(names))


def trackers_of(names: Sequence[str]) -> tuple[Tracker, ...]:
    """Returns new trackers of these names.

    Raises:
        UsageError: for a package that is not installed.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UsageError(
                f"trackers={name} needs the package {name}, which is not installed: pip install 'unnoise[{name}]'"
            )
    return tuple(TRACKERS[name]() for name in names)


class Trackers:
    """Several trackers of one run; one that raises an exception is left out from then on, with a `Notice`.

    Args:
        trackers: the trackers, which are started here.
        folder: the run's folder, which is also the name of the run.
        settings: settings by name, for the trackers to show.
        step: the number of steps that were done before.
    """

    def __init__(self, trackers: Sequence[Tracker], folder: Path, settings: Mapping[str, Any], step: int) -> None:
        self.trackers = list(trackers)
        self._each(lambda tracker: tracker.start(folder, folder.resolve().name, settings, step))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Records numbers by name at a step."""
        self._each(lambda tracker: tracker.log(step, values))

    def image(self, step: int, name: str, path: Path) -> None:
        """Records a PNG picture at a step."""
        self._each(lambda tracker: tracker.image(step, name, path))

    def close(self) -> None:
        """Ends the run."""
        self._each(lambda tracker: tracker.close())

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for tracker in tuple(self.trackers):
            try:
                call(tracker)
            except Exception as error:
                self.trackers.remove(tracker)
                text = f"{tracker.name} is left out from now on, because of an error ({shown(reason(error), 200)})"
                warn(Notice(text), stacklevel=3)


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Returns serialized settings as one dict of numbers and texts, nested ones by names with dots.

    A part has its class under its own name, and its arguments below it.
    """
    if not isinstance(settings, Mapping):
        return {prefix: settings if isinstance(settings, int | float | str | None) else shown(settings, 500)}
    found = {prefix: settings["class"]} if prefix and "class" in settings else {}
    for name, value in settings.get("arguments", settings).items():
        found |= flat(value, f"{prefix}.{name}" if prefix else name)
    return found
