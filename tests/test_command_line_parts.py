"""Parts on the command line: legal combinations run to samples and evaluation, illegal ones are refused."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from unnoise import discrete
from unnoise.experiments import evaluation
from unnoise.experiments.categorical_builders import from_file
from unnoise.experiments.cli import main
from unnoise.experiments.cli.recipe_options import options_of, settings_of, with_parts
from unnoise.experiments.cli.sampling import settings_used, with_steps
from unnoise.experiments.gaussian_builders import churned_heun
from unnoise.experiments.notation import read as read_notation
from unnoise.experiments.parts import part
from unnoise.experiments.recipes import RECIPES, find
from unnoise.experiments.time_grids import adaptive
from unnoise.sde import Adaptive, ProbabilityFlow
from unnoise.shared.errors import UsageError
from unnoise.shared.quantization import Quantization
from unnoise.shared.training.checkpoint import newest, read


@pytest.fixture(autouse=True)
def quick_judge(monkeypatch):
    """The classifier that measures samples is trained for a moment only."""
    full = evaluation.judge_of
    monkeypatch.setattr(evaluation, "judge_of", lambda images, progress, steps=600: full(images, progress, 5))


def run(capsys, *arguments):
    status = main([str(a) for a in arguments])
    out = capsys.readouterr()
    return status, out.out, out.err


LEGAL = [
    (
        "ddpm-smoke --schedule cosine --predicts velocity --loss.weight min-snr(gamma=5) "
        "--sampler dpm-solver-pp(order=3)"
    ),
    "ddpm-smoke --schedule cosine-betas(steps=50,s=0.01) --variance learned-range --loss.objective hybrid(vlb=0.01)",
    "ddpm-smoke --loss.objective ImportanceSampling(Variational) --variance learned-range --schedule.steps 30",
    (
        "ddpm-smoke --schedule zero-terminal(LinearBetas(steps=100)) --predicts velocity --loss.weight truncated-snr "
        "--sampler ddim --sampler.eta 1 --spacing trailing"
    ),
    "ddpm-smoke --loss.drop-label 0.2 --guidance 1.5 --sampler unipc --clip thresholded(p=0.9)",
    "score-sde-smoke --schedule sub-vp --sampler CorrectorPredictor(EulerMaruyama,Langevin(snr=0.1))",
    (
        "score-sde-smoke --schedule ve(sigma_max=9) --predicts scaled-score --loss.times stratified(power=2) "
        "--sampler ProbabilityFlow(FixedSteps(rk4))"
    ),
    "edm-smoke --sampler churned-heun(churn=10) --spacing karras(rho=5)",
    (
        "flow-matching-smoke --loss.weight velocity-weight --spacing adaptive "
        "--sampler ProbabilityFlow(Adaptive(0.1,0.1),time_coordinates)"
    ),
    "ncsn-smoke --schedule.steps 5 --sampling-steps 5 --sampler.repeats 1",
    "d3pm-smoke --transition absorbing(schedule=reciprocal(steps=50)) --head residual --reverse product",
    (
        "d3pm-smoke --transition Uniform(LogLinearNoise) --loss.objective ContinuousBound --sampler tau-leaping "
        "--code-length.terms 3"
    ),
    "mdlm-smoke --schedule cosine-noise --sampler remasking --loss.times independent",
    "sedd-smoke --transition Uniform(geometric(low=0.001)) --sampler euler",
    "multinomial-smoke --transition MATRIX --loss.objective d3pm-loss(ce=0.1) --sampler ancestral",
]


@pytest.mark.parametrize("line", LEGAL)
def test_combinations_train_sample_and_evaluate(capsys, tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    rows = np.full((27, 27), 1 / 27)
    np.save("uniform.npy", rows)
    words = line.replace("MATRIX", "from-file(path='uniform.npy',schedule=cosine(20))").split()
    status, out, err = run(capsys, "train", *words, "--out", "run", "--training.steps", 2)
    assert status == 0, err
    status, out, err = run(capsys, "sample", "run", "--count", 2, "--seed", 3)
    assert status == 0, err
    written = [p for p in (tmp_path / "run").iterdir() if p.stem == "samples"]
    assert len(written) == 1
    status, out, err = run(capsys, "evaluate", "run", "--count", 2)
    assert status == 0, err
    results = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert any(key.startswith("bits_per") for key in results)


ILLEGAL = {
    "ddpm-smoke --schedule cosin": "--schedule: cosin is not a Schedule of this family: did you mean Cosine",
    "ddpm-smoke --schedule linear(stepps=3)": "LinearBetas has no argument stepps: did you mean steps",
    "ddpm-smoke --schedule linear(steps=": "is not in the notation of parts",
    "ddpm-smoke --schedule __import__('os').getcwd()": "give a number, a text in quotation marks, or a part by",
    "ddpm-smoke --schedule ddim": "ddim is not a Schedule of this family: choose from",
    "ddpm-smoke --schedule None": "--schedule=None: give the name of a part",
    "ddpm-smoke --schedule 3": "--schedule=3: give the name of a part",
    "ddpm-smoke --predicts noise --schedule zero-terminal(LinearBetas(steps=100))": "ends at zero SNR",
    "ddpm-smoke --loss.weight min-snr(gamma=-1)": "gamma=-1: give the largest weight",
    "ddpm-smoke --loss.objective MaximumLikelihood --loss.weight truncated-snr": "weight=truncated_snr has no effect",
    "ddpm-smoke --variance learned-range": "does not train the network's variance output",
    "ddpm-smoke --loss.objective hybrid": "the bound trains the variance alone",
    "ddpm-smoke --sampler langevin": "is a corrector, which does not move in time",
    "ddpm-smoke --sampler ddim(eta=-1)": "eta=-1",
    "ddpm-smoke --sampler ddim(denoiser=3)": "the recipe gives denoiser itself",
    "ddpm-smoke --guidance 2": "guidance=ClassifierFree(w=2) needs a network that was also trained without labels",
    "ddpm-smoke --data.classes None --loss.drop-label 0.1": "takes none",
    "ddpm-smoke --sampling-steps 0": "sampling_steps=0",
    "ddpm-smoke --sampling-steps 101": "101",
    "ddpm-smoke --network refine-net(width=8)": "RefineNet(width=8) has no argument classes",
    "ddpm-smoke --time-input nearest-index --schedule vp": "runs in continuous time, without steps to count",
    "ddpm-smoke --sampler.variance": "--sampler.variance",
    "score-sde-smoke --sampler AnnealedLangevin": "is a corrector",
    "score-sde-smoke --sampler annealed-langevin(1e-4)": "is for the schedule NoiseLevels",
    "tauldr-smoke --transition absorbing": "needs schedule: write Absorbing(schedule=...)",
    "d3pm-smoke --transition missing.npy": "missing.npy: give a .npy file with transition matrices",
    "d3pm-smoke --loss.objective ContinuousBound": "a table of steps has no rates",
    "d3pm-smoke --head carried": "head=carried takes an unmasked token for x_0",
    "d3pm-smoke --schedule velocity": "velocity is not a NoiseSchedule of this family",
    "ddpm-smoke --loss.weight min-snr(gamma=five)": "five stands where a number belongs",
    "ddpm-smoke --spacing trailing --schedule cosine": "spacing=trailing is for tables of steps",
    "ddpm-smoke --spacing adaptive": "spacing=adaptive is for ProbabilityFlow with an adaptive solver",
    "ddpm-smoke --range 0 1": "the data are in [0, 1], and estimates are limited by Clipped()",
    "score-sde-smoke --code-length bound": "is for data that are not dequantized",
    "edm-smoke --variance small": "variance=small has no effect on Heun()",
    "ddpm-smoke --spacing sections((2,1))": "do not add up to sampling_steps=4",
    "ddpm-smoke --sampler ddim(eta='a')": "DDIM(eta='a') cannot be built",
    "ddpm-smoke --network.dropout 2": "cannot be built: dropout probability has to be between 0 and 1",
    "mdlm-smoke --transition matrix.npz": "matrices are read from .npy files",
    "mdlm-smoke --transition uniform": "head=carried takes an unmasked token",  # its schedule is kept
    "mdlm-smoke --transition Uniform(LogLinearNoise)": "head=carried takes an unmasked token",
    "mdlm-smoke --loss.objective D3PMLoss": "runs in continuous time and has no L_n",
    "sedd-smoke --head residual": "head=residual has no effect",
    "sedd-smoke --sampler unmasking": "Unmasking",
}


@pytest.mark.parametrize("line", ILLEGAL)
def test_illegal_combinations_get_one_line_before_training(capsys, tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(capsys, "train", *line.split(" "), "--out", "run")
    assert status == 2
    assert ILLEGAL[line] in err, err
    if "unrecognized options" not in err.lower():  # which are shown in a box
        assert len(re.findall(r"^unnoise: .*\n", err, re.MULTILINE)) == 1, err
        assert err.endswith("\n")
        assert "Traceback" not in err
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_options_with_help(name):
    """The options of every recipe can be made, and each has a description."""
    recipe = find(name)
    assert with_parts(recipe, ["--sampling-steps", "3"]) == (recipe, ["--sampling-steps", "3"])
    assert options_of(recipe)
    for setting in settings_of(recipe, recipe.catalog):
        assert setting.help, f"{name}: {setting.path}"


@pytest.mark.filterwarnings("default::unnoise.shared.errors.Notice")
def test_resuming_takes_the_settings_of_the_run_and_prints_changes(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "train", "ddpm-smoke", "--out", "r", "--training.steps", 2, "--network.width", 16)[0] == 0
    status, out, err = run(capsys, "train", "ddpm-smoke", "--out", "r", "--resume", "--training.steps", 3)
    assert status == 0, err
    assert "resuming r: --training.steps 3 (was 2)" in out
    assert "width" not in out
    recipe = read(newest(tmp_path / "r"))[0]["experiment"]
    assert ["width", 16] in recipe["arguments"]["network"]["arguments"]["arguments"]
    assert "resuming r: no setting was changed" in run(capsys, "train", "ddpm-smoke", "--out", "r", "--resume")[1]
    status, out, err = run(capsys, "train", "r", "--resume", "--sampler", "ddim", "--training.steps", 4)
    assert status == 0, err
    assert "resuming r: --sampler DDIM() (was Ancestral())" in out
    status, out, err = run(capsys, "train", "r", "--resume", "--network.width", 8, "--training.steps", 5)
    assert status == 2
    assert "the run in r has other settings" in err
    status, out, err = run(capsys, "train", "r", "--out", "s")  # a new run with the settings of another
    assert status == 0, err
    assert read(newest(tmp_path / "s"))[0]["step"] == 4


def test_version_and_module(capsys):
    status, out, _ = run(capsys, "--version")
    assert status == 0
    assert re.fullmatch(r"unnoise \d+\.\d+\.\d+\n", out)


def test_a_new_part_keeps_what_it_needs_of_the_old_one():
    recipe, _ = with_parts(find("udlm-smoke"), ["--transition", "absorbing", "--sampler", "ancestral"])
    assert str(recipe.transition) == "Absorbing(schedule=LogLinearNoise())"
    recipe, rest = with_parts(find("mdlm-smoke"), ["--schedule", "cosine"])
    assert rest == ["--transition.schedule", "cosine"]
    assert read_notation("cosine", recipe.catalog, "NoiseSchedule") == discrete.CosineNoise()
    assert str(read_notation("cosine(steps=5)", recipe.catalog, "NoiseSchedule")) == "cosine(steps=5)"
    recipe, _ = with_parts(find("ddpm-smoke"), ["--clip", "none"])
    assert recipe.clip is None


def test_requested_steps_are_settings_of_the_sampler():
    """The churn of EDM is divided by the steps that are asked for, and what is recorded is what was done."""
    recipe = replace(find("edm-smoke"), sampler=part(churned_heun, churn=2.0))
    denoiser = recipe.objective((1, 8, 8), Quantization(17)).denoiser
    assert recipe.sampler_of(denoiser).gamma == pytest.approx(2.0 / 4, abs=0.1)  # at most sqrt(2) - 1
    assert with_steps(recipe, denoiser, "16").sampler_of(denoiser).gamma == pytest.approx(2.0 / 16)
    table = find("ddpm-smoke")
    denoiser = table.objective((1, 8, 8), Quantization(17)).denoiser
    for text, spacing in (("ddim10", "strided"), ("quad10", "quadratic"), ("trailing10", "trailing"), ("10", "even")):
        chosen = with_steps(table, denoiser, text)
        assert (settings_used(chosen, 3)["spacing"], chosen.sampling_steps) == (spacing, 10)
    assert settings_used(with_steps(table, denoiser, "5,3"), 3)["spacing"] == "Sections(counts=(5, 3))"
    flow = replace(find("score-sde-smoke"), spacing=adaptive, sampler=part(ProbabilityFlow, integrator=Adaptive(0.1)))
    with pytest.raises(UsageError, match="chooses its own steps"):
        with_steps(flow, flow.objective((1, 8, 8), Quantization(17)).denoiser, "10")


def test_earlier_results_are_kept(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "train", "d3pm-smoke", "--out", "r", "--training.steps", 1)[0] == 0
    for n, steps in enumerate((3, 2, 1)):
        assert run(capsys, "evaluate", "r", "--count", 2, "--steps", steps)[0] == 0
        assert len(list((tmp_path / "r").glob("evaluation*.json"))) == n + 1
    found = [json.loads((tmp_path / "r" / f"evaluation{n}.json").read_text()) for n in ("-1", "-2", "")]
    assert [results["sampling_steps"] for results in found] == [3, 2, 1]
    assert {results["sampler"] for results in found} == {"Ancestral()"}


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (np.full((27, 27), 1 / 26), "row 0 has the sum 1.038461538"),
        (np.eye(27) * 2 - np.full((27, 27), 1 / 27), "smallest entry -0.03704"),
        (np.stack([np.eye(27), np.eye(27) * 1.5]), "row 0 of matrix 1 has the sum 1.5"),
        (np.eye(27) * (1 + 0j), "numbers of type complex128: give real numbers"),
        (np.full((27, 27), np.nan), "has the sum nan"),
        (np.eye(20), "K at least 27"),
        (np.ones(27), "has shape (27,)"),
    ],
)
def test_matrices_that_are_no_transition_are_refused_as_they_are_in_the_file(matrix, words, tmp_path):
    np.save(tmp_path / "m.npy", matrix)
    with pytest.raises(UsageError, match=re.escape(words)):
        from_file(str(tmp_path / "m.npy"), 27)


def test_parts_lists_every_kind(capsys):
    status, out, _ = run(capsys, "parts")
    assert status == 0
    for words in ("MinSNR(gamma=5.0)", "Cosine(low=-20.0, high=20.0)", "Absorbing(schedule, mask=None)", "velocity"):
        assert words in out
    status, out, _ = run(capsys, "parts", "weight")
    assert "truncated_snr" in out
    assert "Cosine" not in out
    assert "there is no kind and no part color" in run(capsys, "parts", "color")[2]


def test_transition_of_a_file(capsys, tmp_path, monkeypatch):
    """One matrix with betas, and a table of matrices of which the last state is a mask."""
    monkeypatch.chdir(tmp_path)
    table = torch.eye(28, dtype=torch.float64).repeat(5, 1, 1)
    for n in range(5):
        beta = 1 / (5 - n)
        table[n, :27] *= 1 - beta
        table[n, :27, 27] += beta
    np.save("table.npy", table.numpy())
    line = "mdlm-smoke --transition table.npy --loss.objective d3pm-loss --sampler ancestral --training.steps 2"
    status, out, err = run(capsys, "train", *line.split(), "--head", "direct", "--out", "a", "--sampling-steps", 5)
    assert status == 0, err
    assert run(capsys, "sample", "a", "--count", 2)[0] == 0
    np.save("matrix.npy", np.full((27, 27), 1 / 27))
    line = "multinomial-smoke --transition matrix.npy --transition.schedule cosine(30) --training.steps 2"
    status, out, err = run(capsys, "train", *line.split(), "--out", "b")
    assert status == 0, err
    monkeypatch.chdir(tmp_path / "b")
    assert run(capsys, "sample", ".", "--count", 2)[0] == 0
    assert run(capsys, "train", ".", "--resume", "--training.steps", 3)[0] == 0
