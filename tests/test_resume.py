"""What may change between a run and its resumption.

Each parameter keeps its own state, and every difference is refused or said.
"""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import CONFIG, Own, batches, by_number, objective, resumed, same, slots, stopped_at_three, trained_names
from tokenizers import Tokenizer

from unnoise.continuous import DenoisingLoss, Learned, Tabulated, linear_betas
from unnoise.experiments import load
from unnoise.shared.data import Batches, CharacterTokenizer, SubwordTokenizer, train_tokenizer
from unnoise.shared.errors import Notice, UsageError
from unnoise.shared.networks import MLP
from unnoise.shared.quantization import Quantization
from unnoise.shared.serialization import serialize
from unnoise.shared.training import Trainer, Training
from unnoise.shared.training.differences import difference


@pytest.mark.parametrize("part", ["time", "leave", "layers"])
@pytest.mark.parametrize("thawed", [True, False])
def test_state_stays_with_its_parameter(tmp_path, part, thawed):
    """What was trained then and now goes on with its state; the rest starts afresh, and is named."""
    then, now = ((part,), ()) if thawed else ((), (part,))
    stopped_at_three(tmp_path, lambda: objective(frozen=then))
    stored = load_file(tmp_path / "checkpoints" / "00000003" / "tensors.safetensors")
    words = (
        "frozen and are trained now: their optimizer state is new"
        if thawed
        else "trained and are frozen now: their optimizer state is dropped"
    )
    trainer = Trainer(objective(frozen=now), CONFIG, folder=tmp_path)
    with pytest.warns(Notice, match=rf"continues at step 3: \d+ parameters \(denoiser.network.{part}.* were {words}"):
        trainer._open(batches(), resume=True)
    found = slots(trainer)
    trained = {name for name, p in trainer.objective.named_parameters() if p.requires_grad}
    assert set(found) == {name for name in trained if f".{part}." not in name}
    for name, state in found.items():
        for slot in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(state[slot], stored[f"optimizer.{name}.{slot}"])
    with pytest.warns(Notice):
        trainer = resumed(tmp_path, lambda: objective(frozen=now))
    for name, p in trainer.objective.named_parameters():
        assert torch.isfinite(p).all()
        if name in trained:
            assert slots(trainer)[name]["step"] == (3 if f".{part}." in name else 6)
            assert slots(trainer)[name]["exp_avg"].shape == p.shape
    assert same(trainer.objective, load(tmp_path).objective)
    resumed(tmp_path, lambda: objective(frozen=now), Training(**{**vars(CONFIG), "steps": 8}))  # now without a word


def test_the_order_of_parameters_does_not_matter(tmp_path):
    """A network whose layers are declared in another order goes on as if it were the same, for it is."""
    whole = Trainer(objective(Own()), CONFIG, folder=tmp_path / "whole").fit(batches())
    stopped_at_three(tmp_path / "parts", lambda: objective(Own()))
    trainer = resumed(tmp_path / "parts", lambda: objective(Own(("second", "first"))))
    expected = dict(whole.named_parameters())
    assert all(torch.equal(p, expected[name]) for name, p in trainer.average.named_parameters())


def own(frozen=(), used=False):
    network = Own()
    if used:
        network.register_parameter("unused", None)
    return objective(network, frozen=frozen)


def test_state_by_number_is_taken_where_the_parameters_are_the_same(tmp_path):
    """Of checkpoints of earlier versions, bit for bit.

    A parameter without a gradient, first, has a number and no state.
    """
    assert trained_names(own())[0] == "denoiser.network.unused"
    whole = Trainer(own(), CONFIG, folder=tmp_path / "whole").fit(batches())
    stopped_at_three(tmp_path / "parts", own)
    home = tmp_path / "parts" / "checkpoints" / "00000003"
    by_number(home, trained_names(own()))
    assert not any(".0." in k for k in load_file(home / "tensors.safetensors") if k.startswith("optimizer."))
    assert same(whole, resumed(tmp_path / "parts", own).average)
    stored = load_file(tmp_path / "parts" / "checkpoints" / "00000006" / "tensors.safetensors")
    assert "optimizer.denoiser.network.second.bias.exp_avg" in stored


@pytest.mark.parametrize(
    ("then", "now"),
    [((), ("first",)), (("first",), ()), (("first",), ("second",)), (("second",), ("first",)), (("second",), ())],
)
def test_state_by_number_of_other_parameters_is_not_taken(tmp_path, then, now):
    """Fewer, more, and as many of other shapes."""
    stopped_at_three(tmp_path, lambda: own(then, used=True))
    by_number(tmp_path / "checkpoints" / "00000003", trained_names(own(then, used=True)))
    with pytest.warns(
        Notice, match="its optimizer state belongs to other parameters than are trained now, and a new one starts"
    ):
        trainer = resumed(tmp_path, lambda: own(now, used=True))
    assert len(slots(trainer)) == len(trainer.parameters) > 0
    for p, state in trainer.optimizer.state.items():
        assert (state["exp_avg"].shape, state["step"]) == (p.shape, 3)


def test_a_checkpoint_without_optimizer_state_says_that_it_starts_afresh(tmp_path):
    stopped_at_three(tmp_path)
    file = tmp_path / "checkpoints" / "00000003" / "tensors.safetensors"
    save_file({k: v for k, v in load_file(file).items() if not k.startswith("optimizer.")}, file)
    with pytest.warns(Notice, match="has no optimizer state, and a new one starts"):
        resumed(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 2e-2),
        ("betas", (0.9, 0.99)),
        ("epsilon", 1e-6),
        ("weight_decay", 0.1),
        ("warmup", 4),
        ("cooldown", 2),
        ("clip", 0.5),
        ("ema", 0.5),
        ("precision", "bfloat16"),
        ("seed", 3),
    ],
)
def test_settings_that_change_the_course_are_said(tmp_path, name, value):
    stopped_at_three(tmp_path)
    config = Training(**{**vars(CONFIG), name: value})
    with pytest.warns(Notice, match=rf"other settings \({name}.*: was .*, now .*\): used from now on"):
        trainer = resumed(tmp_path, config=config)
    if name in ("betas", "weight_decay"):
        assert trainer.optimizer.param_groups[0][name] == value
    with pytest.warns(Notice, match=f"{name}.*without effect, because the run is finished"):
        resumed(tmp_path)


def test_settings_of_pace_may_change(tmp_path):
    stopped_at_three(tmp_path)
    more = Training(**{**vars(CONFIG), "steps": 8, "log_every": 1, "save_every": 2, "watch_every": 1, "device": "cpu"})
    assert resumed(tmp_path, config=more).step == 8
    with pytest.warns(Notice, match="it has 8 steps, more than steps=6, and is not trained further"):
        assert resumed(tmp_path).step == 8


def test_other_data_are_refused(tmp_path):
    stopped_at_three(tmp_path)
    for data, words in (
        (
            batches(levels=9),
            r"the data differ from those of the run in .*: quantization.levels: was 17, now 9: give the run's",
        ),
        (batches(features=5), r"the data differ .*: shape\[0\]: was 6, now 5"),
        (
            Batches(torch.zeros(40, 6, dtype=torch.uint8), 4, Quantization(17), Quantization.dequantized),
            "batch: was 8, now 4: give the run's own data, or .*--out",
        ),
        (
            Batches(batches().k, 8, Quantization(17), Quantization.dequantized, seed=4),
            "seed: was 0, now 4: give the run's own data, or train into another .*--out",
        ),
    ):
        with pytest.raises(UsageError, match=words):
            resumed(tmp_path, data=data)
    strange = batches()
    strange.load_state_dict = lambda state: state["rows"]
    with pytest.raises(UsageError, match=r"Batches cannot continue from \{.*: give the run's"):
        resumed(tmp_path, data=strange)
    for k, labels in ((torch.zeros(40, 6), None), (batches().k, {"label": torch.zeros(40)})):
        data = Batches(k, 8, Quantization(17), Quantization.dequantized, labels)
        with pytest.warns(
            Notice, match="the data have other values than the checkpoint's, and training continues on the new ones"
        ):
            Trainer(objective(), CONFIG, folder=tmp_path)._open(data, resume=True)
        assert data.position == 3
    assert Batches(batches().k.to(torch.uint8), 8, Quantization(17)).content() == batches().content()
    endless = ({"x0": torch.randn(8, 6)} for _ in range(100))
    with pytest.warns(Notice, match="the batches start from their beginning, because they have no load_state_dict"):
        resumed(tmp_path, data=endless)
    with pytest.warns(
        Notice, match="the batches start from their beginning, because those of the run had no state_dict"
    ):
        resumed(tmp_path, config=Training(**{**vars(CONFIG), "steps": 8}))


def test_another_recipe_is_said_and_another_model_refused(tmp_path):
    from dataclasses import replace

    from unnoise.experiments.papers import ddpm

    recipe = ddpm.smoke()
    Trainer(objective(), CONFIG, folder=tmp_path, experiment=recipe).fit(batches())
    shutil.rmtree(tmp_path / "checkpoints" / "00000006")
    other = replace(recipe, data=replace(recipe.data, name="elsewhere"), training=replace(recipe.training, log_every=1))
    with pytest.warns(Notice, match=r"other settings \(data.name: was digits, now elsewhere\)"):
        Trainer(objective(), CONFIG, folder=tmp_path, experiment=other).fit(batches(), resume=True)
    with pytest.raises(
        UsageError, match="other settings: denoiser.network.width: was 16, now 8: give the run's own, or train"
    ):
        resumed(tmp_path, lambda: objective(MLP(6, 8, 1)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_precision_is_part_of_a_run(tmp_path, dtype):
    """Weights come back in their own precision, and a run does not go on in another."""
    made = objective().to(dtype)
    expected = Trainer(made, CONFIG, folder=tmp_path).fit({"x0": torch.randn(8, 6, dtype=dtype)} for _ in range(6))
    loaded = load(tmp_path).average
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert same(expected, loaded)
    with pytest.raises(
        UsageError,
        match=rf"has denoiser.network.* in {dtype}, and the given model has it in torch.float32: give the run's",
    ):
        resumed(tmp_path, config=Training(**{**vars(CONFIG), "steps": 8}))


@pytest.mark.filterwarnings("default::unnoise.shared.errors.Notice")
def test_the_command_line_says_what_changed(tmp_path, monkeypatch, capsys):
    """Once, in one line, on the error's side; and goes on."""
    from unnoise.experiments.cli import main

    monkeypatch.chdir(tmp_path)
    train = ["train", "ddpm-smoke", "--training.watch-every", "0"]
    assert main(train) == 0
    capsys.readouterr()
    assert main([*train, "--training.steps", "10", "--resume"]) == 0
    assert "unnoise:" not in capsys.readouterr().err
    more = ["--training.steps", "12", "--training.learning-rate", "0.5", "--sampling-steps", "3", "--resume"]
    assert main([*train, *more]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("unnoise:")]
    assert len(said) == 1
    assert re.search(
        r"continues at step 10: other settings \(learning_rate: was 0.001, now 0.5; sampling_steps: was \d+, now 3\)",
        said[0],
    )
    (tmp_path / "runs" / "empty" / "checkpoints").mkdir(parents=True)
    assert main([*train, "--resume", "--out", "runs/empty"]) == 2
    assert "there is nothing to resume in runs/empty" in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 2])
def test_whose_state_is_dropped_is_said(tmp_path, count):
    """Of a few frozen parameters it is theirs, not that of all."""

    def some_frozen():
        made = objective()
        for p in list(made.parameters())[:count]:
            p.requires_grad_(False)
        return made

    stopped_at_three(tmp_path)
    words = (
        "2 parameters .* were trained and are frozen now: their" if count == 2 else "was trained and is frozen now: its"
    )
    with pytest.warns(Notice, match=f"{words} optimizer state is dropped"):
        resumed(tmp_path, some_frozen)


def test_differences_of_descriptions_are_short():
    """Long values by what tells them apart: shapes and the first difference, a length and a digest."""
    there, here = ({"schedule": serialize(Tabulated(linear_betas(steps)))} for steps in (100, 50))
    assert difference(there, here) == ["schedule.betas: was 100 values, now 50"]
    betas = linear_betas(100)
    betas[[7, 9]] = 0.5
    (line,) = difference(there, {"schedule": serialize(Tabulated(betas))})
    assert re.fullmatch(r"schedule.betas\[7\]: was 0.01\d+, now 0.5, the first of 2 that differ", line)
    nan = {"tensor": [[1.0, float("nan")]], "dtype": "float32"}
    assert difference(nan, json.loads(json.dumps(nan))) == []
    assert difference(nan, nan | {"dtype": "float64"}, "a") == ["a: was float32, now float64"]
    assert difference(nan, {"tensor": [[2.0, float("nan")]], "dtype": "float32"}, "a") == ["a[0, 0]: was 1.0, now 2.0"]
    assert difference(nan, {"tensor": 2.0, "dtype": "float32"}, "a") == ["a: was 1 x 2 values, now 1"]
    (line,) = difference({"tokenizer": "a" * 1000}, {"tokenizer": "b" * 1000})
    assert re.fullmatch(r"tokenizer: was (1,000 characters \(SHA-256 \w{8}...\)), now (?!\1).*", line)
    assert difference({"a": [0.1] * 50}, {"a": [0.1] * 51}) == ["a: was 50 values, now 51 values"]
    assert difference({"a": 1, "b": 2}, {"a": 1, "c": 3}) == ["b: was 2, now nothing", "c: was nothing, now 3"]
    assert difference('{"a": 1, "class": 2}', '{"class":2, "a":1}') == []
    assert difference('{"a": {"tensor": 1}}', '{"a": {"tensor": 2}}', "t") == ["t.a.tensor: was 1, now 2"]
    assert difference("{", '{"a": 1}', "t") == ['t: was {, now {"a": 1}']
    (line,) = difference({"network": serialize(MLP(6, 8, 1))}, {"network": {"external": "my.Own"}})
    assert re.fullmatch(r"network: was networks.MLP, now my.Own", line)


def test_another_schedule_is_refused_in_short(tmp_path):
    stopped_at_three(tmp_path)
    with pytest.raises(
        UsageError, match=r"schedule.betas: was 40 values, now 50: give the run's own, or .*\(--out, folder=\)$"
    ):
        resumed(tmp_path, lambda: DenoisingLoss.simple(Learned(MLP(6, 16, 1), Tabulated(linear_betas(50)))))


class Other(Own):
    """Parameters of the same names and shapes, and another function."""

    def forward(self, x, label):
        return -super().forward(x, label)


def test_an_own_network_of_another_class_is_said(tmp_path):
    stopped_at_three(tmp_path, lambda: objective(Own()))
    with pytest.warns(Notice, match=r"continues at step 3: the class of the network: was .*\.Own, now .*\.Other"):
        resumed(tmp_path, lambda: objective(Other()))
    resumed(tmp_path, lambda: objective(Other()), Training(**{**vars(CONFIG), "steps": 8}))  # now without a word
    with pytest.raises(
        UsageError, match="do not match: missing denoiser.network.* more; give the network that was saved"
    ):
        resumed(tmp_path, objective)


def renumbered(tokenizer):
    """The same tokens with other ids."""
    made = json.loads(tokenizer.json)
    pieces = sorted(made["model"]["vocab"], key=made["model"]["vocab"].get)
    made["model"]["vocab"] = {piece: i for i, piece in enumerate([pieces[0], *pieces[:0:-1]])}
    return SubwordTokenizer(json.dumps(made))


TEXTS = ["the cat sat on the mat and the dog sat too, " * 3, "nobody knows why any of them sat. " * 3]


def test_fingerprints_tell_tokenizers_apart():
    """Equal for the same tokens in any layout of the file, and different for other ids, another end, other tokens."""
    tokenizer = train_tokenizer(TEXTS, 270)
    assert tokenizer.fingerprint == SubwordTokenizer(json.dumps(json.loads(tokenizer.json), indent=4)).fingerprint
    others = [
        renumbered(tokenizer),
        train_tokenizer(TEXTS[1:], 270),
        SubwordTokenizer(tokenizer.json, "!"),
        CharacterTokenizer(),
    ]
    assert len({tokenizer.fingerprint, *(other.fingerprint for other in others)}) == 5
    assert renumbered(tokenizer).size == tokenizer.size
    assert re.fullmatch(r"270 tokens \(SHA-256 \w{8}\)", tokenizer.fingerprint)


@pytest.mark.parametrize("earlier", ["", "other words", "no tokenizer"])
def test_another_tokenizer_is_refused(tmp_path, monkeypatch, capsys, earlier):
    """The weights belong to the ids of the tokens, also in checkpoints that name the tokenizer otherwise or not at all.

    A tokenizer with as many other tokens is refused, in one line, and nothing is trained.
    """
    from unnoise.experiments.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("\n".join(TEXTS * 30))
    tokenizer = train_tokenizer(TEXTS, 270)
    for name, pieces in (("a", tokenizer), ("b", renumbered(tokenizer)), ("c", train_tokenizer(TEXTS[1:], 270))):
        pieces.save(f"{name}.json")
    Tokenizer.from_file("a.json").save("again.json", pretty=True)
    train = ["train", "mdlm-smoke", "--data.name", "a.txt", "--out", "run", "--training.steps"]
    assert main([*train, "2", "--data.tokenizer", "a.json"]) == 0
    home = tmp_path / "run" / "checkpoints" / "00000002" / "checkpoint.json"
    if earlier:
        description = json.loads(home.read_text())
        fingerprint = description["batches"].pop("tokenizer")
        if earlier == "other words":
            description["batches"]["alphabet"] = fingerprint.replace("tokens", "pieces")
        del description["digest"]
        home.write_text(json.dumps(description))
    before = home.read_text()
    for other in ("b", "c"):
        capsys.readouterr()
        assert main([*train, "4", "--resume", "--data.tokenizer", f"{other}.json"]) == 2
        said = capsys.readouterr().err
        assert re.search(
            r"the data differ from the checkpoint's: (examples: .*)?tokenizer: was 270 tokens \(SHA-256 (\w{8})\), now "
            r"270 tokens \(SHA-256 (?!\2)\w{8}\): give the run's",
            said,
        )
        assert len(said) < 500
        assert [p.name for p in home.parent.parent.iterdir()] == ["00000002"]
    assert home.read_text() == before
    assert main([*train, "4", "--resume", "--data.tokenizer", "again.json"]) == 0
    assert "unnoise:" not in capsys.readouterr().err
