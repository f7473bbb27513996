"""Folders of diffusers: each entry of both configurations changes numbers, is refused, or is reported as not read."""

import inspect
import json
import math
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from helpers import assert_samples_close, mean_and_variance
from hypothesis import strategies as st
from import_settings import Format, Setting, answer, setting_tests
from pretrained_helpers import refused
from safetensors.torch import load_file, save_file

from unnoise.continuous import (
    Clipped,
    Learned,
    Tabulated,
    VariationalBound,
    clean,
    cosine_betas,
    large,
    learned_range,
    linear_betas,
    noise,
    small,
    velocity,
)
from unnoise.experiments import load as load_run
from unnoise.experiments import pretrained
from unnoise.experiments.code_lengths import Bound
from unnoise.experiments.parts import part
from unnoise.experiments.pretrained import diffusers_options as options
from unnoise.experiments.pretrained.exporting import Flags, bring
from unnoise.experiments.pretrained.imported import imported
from unnoise.shared.networks import UNet
from unnoise.shared.networks.unet_variants import DDPM
from unnoise.shared.progress import silent
from unnoise.shared.quantization import Quantization
from unnoise.shared.time_inputs import step_index

SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 50,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "variance_type": "fixed_large",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "prediction_type": "epsilon",
}


@cache
def network(outputs=1):
    torch.manual_seed(0)
    made = UNet((3, 8, 8), 32, (1, 2), 1, (2,), variant=DDPM, outputs=outputs)
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return made


@cache
def exported(outputs=1):
    """The files of a folder by name."""
    with tempfile.TemporaryDirectory() as home:
        folder = pretrained.export(
            Learned(network(outputs), Tabulated(linear_betas(50)), time_input=step_index), Path(home) / "out"
        )
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def written(folder, scheduler=None, config=None, outputs=1, without=()):
    """A folder whose configurations are these."""
    for name, content in exported(outputs).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    entries = json.loads((folder / "unet/config.json").read_text()) | (config or {})
    (folder / "unet/config.json").write_text(json.dumps({k: v for k, v in entries.items() if k not in without}))
    entries = SCHEDULER | (scheduler or {})
    (folder / "scheduler/scheduler_config.json").write_text(
        json.dumps({k: v for k, v in entries.items() if k not in without})
    )
    return folder


def opened(folder, **settings):
    return pretrained.load(written(folder, **settings))


@pytest.mark.parametrize(
    ("scheduler", "clip"),
    [
        ({}, 1.0),
        ({"clip_sample_range": 0.5, "variance_type": "fixed_small"}, 0.5),
        ({"clip_sample": False}, math.inf),
        ({"thresholding": True, "clip_sample_range": 3.0}, 1.0),
    ],
)
def test_estimates_are_clipped_as_the_library_clips_them(tmp_path, scheduler, clip):
    """The library's own estimate of x_0, and the bound of a run that comes back from its checkpoint."""
    library = pytest.importorskip("diffusers")
    folder = written(tmp_path / "in", scheduler)
    theirs = library.DDPMScheduler.from_pretrained(folder / "scheduler")
    bring(str(folder), tmp_path / "run", Flags())
    run = load_run(tmp_path / "run")
    denoiser, x, n = pretrained.load(tmp_path / "run"), 2 * torch.randn(4, 3, 8, 8), torch.tensor([0, 10, 30, 49])
    limit = None if clip == math.inf else part(Clipped, low=-clip, high=clip)
    assert (run.experiment.clip, run.experiment.code_length) == (limit, Bound(clip=limit))
    with torch.no_grad():
        ours = run.experiment.sampler_of(denoiser).denoiser(x, (n + 1).double() / 50)
        given = denoiser.network(x, n)
        expected = torch.cat([theirs.step(given[i : i + 1], n[i], x[i : i + 1]).pred_original_sample for i in range(4)])
    assert_samples_close(ours, expected, 1e-4)
    assert ours.abs().max() <= clip
    if clip == 0.5:
        k, code = torch.randint(0, 256, (1, 3, 8, 8)), torch.Generator().manual_seed(0)
        measured = run.experiment.code_length_of(denoiser, Quantization())(k, code, silent)
        bound = VariationalBound(Clipped(denoiser, -clip, clip), Quantization(), variance=small, terms=100)
        assert torch.equal(
            measured.path, bound(Quantization().continuous(k), generator=torch.Generator().manual_seed(0)).path
        )
    again = json.loads((pretrained.export(denoiser, tmp_path / "out") / "scheduler/scheduler_config.json").read_text())
    assert (again["clip_sample"], again["clip_sample_range"]) == (clip < math.inf, 1.0 if clip == math.inf else clip)


def test_a_scheduler_that_does_not_say_whether_it_clips(tmp_path):
    model = opened(
        tmp_path,
        scheduler={"_class_name": "PNDMScheduler"},
        without=("clip_sample", "clip_sample_range", "variance_type"),
    )
    assert imported(model).clip == part(Clipped, low=-1.0, high=1.0)
    assert "estimates are clipped to [-1, 1], as a PNDMScheduler has no such setting" in model.assumed
    model = opened(tmp_path, scheduler={"_class_name": "HeunDiscreteScheduler"}, without=("clip_sample",))
    assert imported(model).clip is None


@pytest.mark.parametrize("kind", options.SCHEDULERS)
def test_a_scheduler_that_does_not_say_its_variance(tmp_path, kind):
    """The code length depends on it, so the one that is used is reported, unless the network predicts it."""
    model = opened(tmp_path, scheduler={"_class_name": kind}, without=("variance_type",))
    reported = f"the code length uses the variance beta_t, as a {kind} has no such setting" in model.assumed
    assert (imported(model).variance is large, reported) == (
        (False, False) if kind == "DDPMScheduler" else (True, True)
    )
    assert not any(
        "the code length" in line
        for line in opened(tmp_path, scheduler={"variance_type": "learned_range"}, outputs=2).assumed
    )


@pytest.mark.parametrize(
    ("scheduler", "defaults"),
    [
        (
            {"trained_betas": [0.1, 0.2, 0.3]},
            "prediction_type='epsilon', variance_type='fixed_small', clip_sample=True, clip_sample_range=1.0",
        ),
        (
            {"beta_schedule": "squaredcos_cap_v2"},
            "num_train_timesteps=1000, prediction_type='epsilon', variance_type='fixed_small', clip_sa",
        ),
        (
            {"clip_sample": False, "beta_end": 0.01},
            "num_train_timesteps=1000, beta_start=0.0001, prediction_type='epsilon', variance_type='f",
        ),
        (
            {
                "thresholding": True,
                "variance_type": "fixed_large",
                "prediction_type": "sample",
                "trained_betas": [0.1, 0.3],
            },
            None,
        ),
        (
            {
                "clip_sample": False,
                "variance_type": "fixed_large",
                "prediction_type": "sample",
                "trained_betas": [0.1, 0.3],
            },
            None,
        ),
    ],
)
def test_defaults_without_effect_are_not_reported(tmp_path, scheduler, defaults):
    model = opened(
        tmp_path,
        scheduler=scheduler,
        without=[k for k in SCHEDULER if k not in (*scheduler, "_class_name", "beta_schedule")],
    )
    start = "scheduler_config.json leaves out entries, for which the library's defaults are used: "
    lines = [line for line in model.assumed if line.startswith(start)]
    assert len(lines) == (defaults is not None)
    assert all(line.startswith(f"{start}{defaults}") for line in lines)
    assert not any("clip_sample_range" in line for line in lines) or "clip_sample" not in scheduler


@pytest.mark.parametrize(
    ("scheduler", "words"),
    [
        ({"rescale_betas_zero_snr": True}, "the schedule ends at zero SNR"),
        ({"beta_end": 1.0}, "the schedule ends at zero SNR"),
        ({"beta_start": 0.0, "beta_end": 0.0}, "betas[0]=0"),
        ({"trained_betas": [0.0] * 50}, "betas[0]=0"),
        (
            {"rescale_betas_zero_snr": True, "num_train_timesteps": 1, "prediction_type": "v_prediction"},
            "a table of one step",
        ),
    ],
)
def test_schedules_that_are_none_are_refused_with_the_file(tmp_path, scheduler, words):
    refused(lambda: opened(tmp_path, scheduler=scheduler), f"{tmp_path}: scheduler_config.json: {words}")


def test_a_learned_variance_is_the_librarys(tmp_path):
    """`learned_range` between the two fixed ones, by the library's own function at each step."""
    library = pytest.importorskip("diffusers")
    folder = written(tmp_path / "in", {"variance_type": "learned_range"}, outputs=2)
    theirs, model = library.DDPMScheduler.from_pretrained(folder / "scheduler"), pretrained.load(folder)
    x, n = torch.randn(3, 3, 8, 8), torch.tensor([1, 20, 49])
    with torch.no_grad():
        v = network(2)(x, n)[:, 3:]
        for i, step in enumerate(n.tolist()):
            t = torch.tensor((step + 1) / 50, dtype=torch.float64)
            ours = learned_range(model.schedule, t, t - 1 / 50, mean_and_variance(model, x[i : i + 1], t)[1])
            expected = theirs._get_variance(step, predicted_variance=v[i : i + 1])
            torch.testing.assert_close(ours.log(), expected, rtol=1e-4, atol=1e-4)
    written(tmp_path / "other", {"variance_type": "fixed_small"}, outputs=2)
    for wrong, outputs in (("fixed_small", 2), (None, 2), ("learned_range", 1)):
        channels = f"in_channels=3 and out_channels={3 * outputs} in config.json"
        words = f"variance_type={wrong!r} in scheduler_config.json and {channels}"
        refused(lambda w=wrong, o=outputs: opened(tmp_path / "x", scheduler={"variance_type": w}, outputs=o), words)
    for outputs in (1, 2):
        refused(
            lambda o=outputs: opened(tmp_path / "x", scheduler={"variance_type": "learned"}, outputs=o),
            "variance_type='learned'",
        )


@pytest.mark.parametrize(
    ("name", "variance"), [("fixed_small", small), ("fixed_small_log", small), ("fixed_large", large)]
)
def test_the_fixed_variance_is_that_of_the_bound(tmp_path, name, variance):
    folder = written(tmp_path / "in", {"variance_type": name})
    bring(str(folder), tmp_path / "run", Flags())
    assert load_run(tmp_path / "run").experiment.variance is variance
    out = pretrained.export(pretrained.load(tmp_path / "run"), tmp_path / "out")
    assert json.loads((out / "scheduler/scheduler_config.json").read_text())["variance_type"] == name.removesuffix(
        "_log"
    )


@pytest.mark.parametrize("predicts", [noise, clean, velocity])
@pytest.mark.parametrize("outputs", [1, 2])
def test_what_is_written_is_read_again(tmp_path, predicts, outputs):
    model = Learned(network(outputs), Tabulated(cosine_betas(20)), predicts, step_index).eval()
    again = pretrained.load(pretrained.export(model, tmp_path / "out"))
    x, t = torch.randn(3, 3, 8, 8), torch.tensor([0.05, 0.5, 1.0], dtype=torch.float64)
    assert again.predicts is predicts
    with torch.no_grad():
        for ours, theirs in zip(mean_and_variance(again, x, t), mean_and_variance(model, x, t), strict=True):
            assert ours is theirs or torch.equal(ours, theirs)


def test_the_prediction_of_old_configurations(tmp_path):
    """`predict_epsilon`, before version 0.10."""
    for entries, predicts in ((False, clean), (True, noise)):
        model = opened(tmp_path, scheduler={"predict_epsilon": entries}, without=("prediction_type",))
        assert model.predicts is predicts


def test_entries_of_unknown_names_are_refused(tmp_path):
    refused(
        lambda: opened(tmp_path, scheduler={"snr_shift": 3.0}),
        "scheduler_config.json: snr_shift=3.0 is not known",
        "remove it",
    )
    refused(lambda: opened(tmp_path, config={"cross": [1]}), "unet/config.json: cross=a list is not known")
    opened(tmp_path, scheduler={"_note": 1}, config={"_note": 1})
    refused(
        lambda: opened(tmp_path, scheduler={"thresholding": True, "sample_max_value": 1.5}),
        "thresholding=True with sample_max_value=1.5",
    )
    trained = {"trained_betas": [0.1, 0.2]}
    refused(lambda: opened(tmp_path, scheduler=trained), "num_train_timesteps=50, but trained_betas has 2")
    refused(lambda: opened(tmp_path, scheduler={"timestep_type": "continuous"}), "timestep_type='continuous'")


def test_every_entry_of_the_library_is_known():
    library = pytest.importorskip("diffusers")
    for kind in options.SCHEDULERS:
        theirs = inspect.signature(getattr(library, kind).__init__).parameters
        entries = options.SCHEDULER_DEFAULTS.get(kind, {})
        for name, parameter in theirs.items():
            if name in options.TABLE:
                assert entries.get(name, options.TABLE[name][0]) == parameter.default, (kind, name)
            elif name != "self":
                assert parameter.default is None or parameter.default in options.SAMPLING[name], (kind, name)
    theirs = inspect.signature(library.UNet2DModel.__init__).parameters
    assert {*theirs} - {"self"} == {*options.OPTIONS, *options.BESIDE}


@pytest.mark.parametrize("null", [False, True])
def test_classes_and_the_one_that_stands_for_none_come_back(tmp_path, null):
    """So that a run which comes back samples the classes alone, and is guided as before."""
    made = UNet((3, 8, 8), 32, (1,), 1, (), variant=DDPM, classes=3, null_label=null)
    folder = pretrained.export(Learned(made, Tabulated(linear_betas(50)), time_input=step_index), tmp_path / "out")
    again = pretrained.load(folder).network
    assert (again.classes, again.null_label) == (3, null)
    assert torch.equal(again.label.table.weight, made.label.table.weight)
    library = pytest.importorskip("diffusers")
    assert library.UNet2DModel.from_pretrained(folder / "unet").config.num_class_embeds == 3 + null


def test_averaged_weights_come_first(tmp_path):
    """As the library's training keeps them, beside the raw ones."""
    folder = written(tmp_path)
    entries = json.loads((folder / "unet/config.json").read_text()) | {
        "decay": 0.9999,
        "optimization_step": 7,
        "power": 0.75,
    }
    (folder / "unet_ema").mkdir()
    (folder / "unet_ema/config.json").write_text(json.dumps(entries))
    averages = {
        name: 2 * value for name, value in load_file(folder / "unet/diffusion_pytorch_model.safetensors").items()
    }
    save_file(averages, folder / "unet_ema/diffusion_pytorch_model.safetensors")
    assert torch.equal(pretrained.load(folder).network.stem.weight, 2 * network().stem.weight)


def test_settings_that_are_not_read_are_reported(tmp_path):
    scheduler = {
        "_class_name": "DPMSolverMultistepScheduler",
        "use_karras_sigmas": True,
        "solver_order": 3,
        "steps_offset": 0,
    }
    model = opened(tmp_path, scheduler=scheduler)
    assert model.assumed == (
        "samples are drawn by DDIM on evenly spaced steps, not by the DPMSolverMultistepScheduler "
        "(solver_order=3, use_karras_sigmas=True)",
    )


TABLE = {
    "num_train_timesteps": Setting(st.sampled_from([40, 50]), note="num_train_timesteps=1000"),
    "beta_start": Setting(st.sampled_from([1e-4, 1e-3]), note="beta_start=0.0001"),
    "beta_end": Setting(st.sampled_from([0.02, 0.03]), note="beta_end=0.02"),
    "beta_schedule": Setting(st.sampled_from(["linear", "scaled_linear"])),
    "prediction_type": Setting(st.sampled_from([*options.PREDICTIONS]), note="prediction_type='epsilon'"),
    "variance_type": Setting(st.sampled_from(["fixed_small", "fixed_large"]), note="variance_type='fixed_small'"),
    "clip_sample_range": Setting(st.sampled_from([1.0, 2.0]), note="clip_sample_range=1.0"),
}
NETWORK = {
    "sample_size": Setting(st.sampled_from([4, 8]), error="sample_size"),
    "attention_head_dim": Setting(st.sampled_from([8, 16, 32]), note="attention_head_dim=8"),
    "downsample_padding": Setting(st.sampled_from([0, 1]), note="downsample_padding=1"),
    "flip_sin_to_cos": Setting(st.booleans(), note="flip_sin_to_cos=True"),
    "freq_shift": Setting(st.sampled_from([0, 1]), note="freq_shift=0"),
    "norm_eps": Setting(st.sampled_from([1e-6, 1e-2]), note="norm_eps=1e-05"),
    "norm_num_groups": Setting(st.sampled_from([16, 32]), note="norm_num_groups=32"),
}


def whole_answer(denoiser):
    """With how its run samples and is coded."""
    run = imported(denoiser)
    return answer(denoiser) | {"clip": run.clip, "variance": run.variance}


def form(settings, **fixed):
    """Folders whose configurations have these entries, and none of the settings that are left out."""

    def load(values):
        entries, without = fixed | values, tuple(settings.keys() - values.keys())
        config = {k: v for k, v in entries.items() if k in (*options.OPTIONS, "sample_size")}
        with tempfile.TemporaryDirectory() as home:
            scheduler = {k: v for k, v in entries.items() if k not in config}
            return opened(Path(home), config=config, scheduler=scheduler, without=without)

    return Format(load, settings, answer=whole_answer, examples=1)


FORMATS = {
    "scheduler": form(TABLE),
    "network": form(NETWORK),
    "clipping": form({"clip_sample": Setting(st.booleans(), note="clip_sample=True")}, clip_sample_range=2.0),
    "threshold": form({"thresholding": Setting(st.booleans(), always=True)}, clip_sample_range=2.0),
    "end": form({"rescale_betas_zero_snr": Setting(st.booleans(), always=True)}, prediction_type="v_prediction"),
}
test_dropped, test_changed, test_more = setting_tests(FORMATS)
