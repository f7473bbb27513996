"""Trackers beside metrics.jsonl: what they receive, where they write, and that none of them can stop a run."""

import sys
import warnings
from types import ModuleType, SimpleNamespace

import pytest
import torch
from PIL import Image
from small_runs import batches, objective, same

from unnoise.shared.errors import Notice, UsageError
from unnoise.shared.training import Trainer, Training, trackers
from unnoise.shared.training.folder import read_metrics
from unnoise.shared.training.trackers import MLflow, TensorBoard, Tracker, Trackers, Trackio, WeightsAndBiases, flat

CONFIG = Training(steps=6, learning_rate=1e-2, log_every=3, save_every=3, watch_every=3)
SETTINGS = {"training.steps": 6, "recipe.network": "UNet", "none": None}


class Own(Tracker):
    name = "own"

    def __init__(self, fails=""):
        self.fails, self.calls = fails, []

    def call(self, name, *given):
        self.calls.append((name, *given))
        if name == self.fails:
            raise RuntimeError(f"no {name}\nsecond line")

    def start(self, folder, name, settings, step):
        self.call("start", folder, name, settings, step)

    def log(self, step, values):
        self.call("log", step, values)

    def image(self, step, name, path):
        self.call("image", step, name, path)

    def close(self):
        self.call("close")


def picture(folder, name="s.png"):
    Image.new("RGB", (4, 6), (250, 0, 0)).save(folder / name)
    return folder / name


def test_a_tracker_receives_the_lines_of_the_log_and_pictures(tmp_path):
    own = Own()
    watch = lambda average, step: picture(tmp_path, f"{step}.png") if step == 3 else None  # noqa: E731
    Trainer(objective(), CONFIG, folder=tmp_path, trackers=[own], watch=watch).fit(batches())
    assert [call[0] for call in own.calls] == ["start", "log", "image", "log", "close"]
    _, folder, name, settings, step = own.calls[0]
    assert (folder, name, step) == (tmp_path, tmp_path.name, 0)
    assert settings["training.steps"] == 6
    lines = [{"step": c[1], **c[2]} for c in own.calls if c[0] == "log"]
    assert lines == read_metrics(tmp_path / "metrics.jsonl")
    assert own.calls[2] == ("image", 3, "samples", tmp_path / "3.png")


def test_a_resumed_run_tells_trackers_its_step(tmp_path):
    Trainer(objective(), CONFIG, folder=tmp_path).fit(batches())
    own, longer = Own(), Training(**{**vars(CONFIG), "steps": 9})
    Trainer(objective(), longer, folder=tmp_path, trackers=[own]).fit(batches(), resume=True)
    assert own.calls[0][-1] == 6
    assert [c[1] for c in own.calls if c[0] == "log"] == [9]


@pytest.mark.parametrize("method", ["start", "log", "image", "close"])
def test_a_tracker_that_fails_is_left_out_with_one_notice_and_the_run_goes_on(tmp_path, method):
    broken, intact = Own(fails=method), Own()
    watch = lambda average, step: picture(tmp_path)  # noqa: E731
    trainer = Trainer(objective(), CONFIG, folder=tmp_path, trackers=[broken, intact], watch=watch)
    with pytest.warns(Notice, match=f"own is left out from now on, because of an error .no {method}.$") as found:
        average = trainer.fit(batches())
    assert len(found) == 1
    assert broken.calls[-1][0] == method
    assert [c[0] for c in intact.calls] == ["start", "log", "image", "log", "image", "close"]
    assert same(average, Trainer(objective(), CONFIG).fit(batches()))


def test_trackers_are_closed_when_a_run_ends_in_an_error(tmp_path):
    own = Own()
    with pytest.raises(UsageError, match="the batches ended"):
        Trainer(objective(), CONFIG, folder=tmp_path, trackers=[own]).fit(iter([{"x0": torch.zeros(4, 6)}]))
    assert own.calls[-1] == ("close",)


def test_names_are_checked_before_the_run():
    assert Training(trackers=("wandb", "tensorboard", "wandb")).trackers == ("wandb", "tensorboard")
    with pytest.raises(UsageError, match="trackers=wandbb: give some of tensorboard, wandb, trackio, mlflow"):
        Training(trackers=("wandbb",))


def test_a_missing_package_names_its_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"not installed: pip install 'unnoise\[mlflow\]'"):
        Trainer(objective(), Training(trackers=("mlflow",)), folder=tmp_path)


def test_settings_are_flattened_to_names_with_dots():
    described = {"class": "a.B", "arguments": {"n": 3, "part": {"class": "a.C", "arguments": {"w": 0.5}}, "l": [1, 2]}}
    assert flat(described, "recipe") == {
        "recipe": "a.B",
        "recipe.n": 3,
        "recipe.part": "a.C",
        "recipe.part.w": 0.5,
        "recipe.l": "[1, 2]",
    }
    assert flat(None, "recipe") == {"recipe": None}


@pytest.fixture
def variables(monkeypatch):
    """Forgets what trackers set in the environment."""
    for name in ("WANDB_MODE", "WANDB_PROJECT", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name in ("TRACKIO_DIR", "TRACKIO_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


class Recorder(SimpleNamespace):
    """Records calls of `init`, `log` and `finish`."""

    def __init__(self):
        super().__init__(inits=[], logged=[], finished=0)

    def init(self, **given):
        self.inits.append(given)
        return self

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.finished += 1


def fake(monkeypatch, name, **content):
    module = ModuleType(name)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)


def session(tracker, folder, step=0):
    tracker.start(folder, "run", SETTINGS, step)
    tracker.log(step + 5, {"loss": 0.5})
    tracker.image(step + 5, "samples", picture(folder))
    tracker.close()


def test_wandb_keeps_to_the_folder_of_the_run_and_one_identifier(tmp_path, variables):
    found = Recorder()
    content = {"Image": lambda path: f"image {path}", "Settings": dict, "login": lambda prompt: True}
    fake(variables, "wandb", init=found.init, **content)
    session(WeightsAndBiases(), tmp_path)
    session(WeightsAndBiases(), tmp_path, 10)
    assert [i["dir"] for i in found.inits] == [str(tmp_path)] * 2
    assert found.inits[0]["id"] == found.inits[1]["id"]
    assert found.inits[0]["resume"] == "allow"
    assert found.inits[0]["config"] == SETTINGS
    assert trackers.os.environ["WANDB_CACHE_DIR"] == str(tmp_path / "wandb")
    assert found.logged[:2] == [(5, {"loss": 0.5}), (5, {"samples": f"image {tmp_path / 's.png'}"})]
    assert (found.finished, found.inits[0]["mode"]) == (2, None)


def test_wandb_without_a_key_says_that_it_writes_offline(tmp_path, variables):
    found = Recorder()
    fake(variables, "wandb", init=found.init, Settings=dict, login=lambda prompt: False, Image=str)
    with pytest.warns(Notice, match="wandb has no API key, and writes to .* alone"):
        session(WeightsAndBiases(), tmp_path)
    assert found.inits[0]["mode"] == "offline"


def test_trackio_keeps_to_the_folder_of_the_run(tmp_path, variables, capsys):
    found = Recorder()
    fake(variables, "trackio", init=lambda **given: (print("a dashboard"), found.init(**given))[1], Image=str)
    session(Trackio(), tmp_path)
    assert trackers.os.environ["TRACKIO_DIR"] == str(tmp_path / "trackio")
    assert (found.inits[0]["name"], found.inits[0]["resume"], found.finished) == ("run", "allow", 1)
    assert capsys.readouterr().out == ""


class Client:
    """A store of MLflow in memory, by its URI."""

    stores: dict = {}  # noqa: RUF012

    def __init__(self, tracking_uri):
        self.calls = self.stores.setdefault(tracking_uri, [])

    def __getattr__(self, name):
        def call(*given, **named):
            self.calls.append((name, *given, *named.values()))
            answers = {"create_experiment": "7", "create_run": SimpleNamespace(info=SimpleNamespace(run_id="abc"))}
            return answers.get(name)

        return call


def test_mlflow_keeps_to_the_folder_of_the_run_and_one_run(tmp_path, variables):
    Client.stores.clear()
    fake(variables, "mlflow", MlflowClient=Client)
    fake(variables, "mlflow.entities", Metric=lambda name, value, time, step: (name, value, step))
    session(MLflow(), tmp_path)
    session(MLflow(), tmp_path, 10)
    ((uri, calls),) = Client.stores.items()
    assert uri == f"sqlite:///{tmp_path / 'mlruns' / 'mlflow.db'}"
    assert [c[0] for c in calls].count("create_run") == 1
    assert ("create_experiment", "unnoise", (tmp_path / "mlruns" / "artifacts").as_uri()) in calls
    assert [c for c in calls if c[0] == "log_batch"] == [
        ("log_batch", "abc", [("loss", 0.5, 5)]),
        ("log_batch", "abc", [("loss", 0.5, 15)]),
    ]


def test_tensorboard_itself_writes_below_the_folder_of_the_run(tmp_path):
    pytest.importorskip("tensorboard")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TensorBoard's own imports
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        for step in (0, 5):
            found = Trackers([TensorBoard()], tmp_path, SETTINGS, step)
            found.log(step + 5, {"loss": 0.5 + step})
            found.log(step + 8, {"later": 1.0})  # lost: the run is killed, and resumes from step 5
            found.image(step + 5, "samples", picture(tmp_path))
            found.close()
        assert len(found.trackers) == 1
        events = EventAccumulator(str(tmp_path / "tensorboard"))
        events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(5, 0.5), (10, 5.5)]
    assert [e.step for e in events.Scalars("later")] == [13]
    assert [(e.step, e.width, e.height) for e in events.Images("samples")] == [(5, 4, 6), (10, 4, 6)]
