"""`UNet2DModel` of diffusers, read and written through the importer.

Fixture, round trip, and the library itself as the oracle.
"""

import inspect
import json
from dataclasses import replace

import pytest
import torch
from helpers import Fixture, assert_samples_close, peer_state
from pretrained_helpers import refused
from safetensors.torch import save_file

from unnoise.continuous import (
    DDIM,
    Learned,
    LinearBetas,
    Tabulated,
    cosine_betas,
    linear_betas,
    noise,
    quadratic_betas,
    velocity,
    zero_terminal,
)
from unnoise.experiments.pretrained import diffusers as importer
from unnoise.experiments.pretrained import load
from unnoise.experiments.pretrained.diffusers_export import export
from unnoise.shared.errors import UsageError
from unnoise.shared.networks import DiT, UNet
from unnoise.shared.networks.embeddings import Sinusoidal
from unnoise.shared.networks.unet_variants import ADM, DDPM, DDPMPP, IMPROVED, NCSNPP, UNetVariant
from unnoise.shared.quantization import Quantization
from unnoise.shared.time_inputs import reversed_index, step_index, thousandth_index, thousandths

FIXTURE = Fixture("diffusers_unet2d_ddpm")
READS = ("x|t|y",)
X, T, Y = (FIXTURE[k] for k in ("x", "t", "y"))
SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
}


def written(folder, *, old=False, pipeline=False, drop=(), without=(), scheduled=None, **changes):
    """The fixture as a folder of the Hub; `drop` tensors, `without` options, `scheduled` as this says."""
    home = folder / "unet" if pipeline else folder
    home.mkdir(parents=True, exist_ok=True)
    config = {"_class_name": "UNet2DModel"} | FIXTURE.about["config"] | changes
    (home / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in without}))
    state = {k: v for k, v in peer_state("diffusers_unet2d_ddpm").items() if k not in drop}
    if old:
        names = {"to_q": "query", "to_k": "key", "to_v": "value"}
        state = {
            ".".join(names.get(p, p) for p in k.replace("to_out.0", "proj_attn").split("."))
            if "attentions" in k
            else k: v
            for k, v in state.items()
        }
        torch.save(state, home / "diffusion_pytorch_model.bin")
    else:
        save_file(state, home / "diffusion_pytorch_model.safetensors")
    scheduler = folder / "scheduler" if pipeline else folder
    scheduler.mkdir(exist_ok=True)
    (scheduler / "scheduler_config.json").write_text(json.dumps(scheduled or SCHEDULER))
    return folder


@pytest.mark.parametrize(("old", "pipeline"), [(False, False), (True, False), (False, True)])
def test_noise(tmp_path, old, pipeline):
    folder = written(tmp_path, old=old, pipeline=pipeline)
    assert importer.looks_like(folder)
    model = importer.denoiser(folder).eval()
    assert_samples_close(model.network(X, T), Y)
    assert_samples_close(model.estimate(X, (T.double() + 1) / 1000).out, Y)


@pytest.mark.parametrize(
    ("options", "betas", "predicts"),
    [
        ({"variant": DDPM}, linear_betas(50), noise),
        ({"variant": IMPROVED, "outputs": 2, "classes": 3, "null_label": False}, cosine_betas(20), noise),
        ({"variant": IMPROVED, "attention": (1, 2), "classes": 3}, cosine_betas(20), velocity),
    ],
)
def test_written_folders_are_the_same_in_diffusers_and_here(tmp_path, options, betas, predicts):
    """Equal to 1e-5 in `DDPMPipeline.from_pretrained(...).unet`, and after coming back."""
    library = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    network = UNet((3, 8, 12), 32, (1, 2), 1, **({"attention": (2,)} | options))
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.1)
    model = Learned(network, Tabulated(betas), predicts, step_index).eval()
    folder = export(model, tmp_path / "out")
    pipeline = library.DDPMPipeline.from_pretrained(folder)
    x, step = torch.randn(3, 3, 8, 12), torch.tensor([0, 1, len(betas) - 1])
    label = torch.tensor([0, 2, 1])
    cond, theirs = ({"label": label}, {"class_labels": label}) if network.classes else ({}, {})
    with torch.no_grad():
        ours = network(x, step, **cond)
        assert_samples_close(pipeline.unet(x, step, **theirs).sample, ours, 1e-5)
        again = importer.denoiser(folder).eval()
        assert_samples_close(
            again(x, (step.double() + 1) / len(betas), **cond), model(x, (step.double() + 1) / len(betas), **cond), 1e-5
        )
    torch.testing.assert_close(pipeline.scheduler.betas.double(), model.schedule.betas, rtol=1e-6, atol=0)
    assert again.predicts is predicts


def test_a_pipeline_samples(tmp_path):
    library = pytest.importorskip("diffusers")
    model = importer.denoiser(written(tmp_path / "in"))
    pipeline = library.DDPMPipeline.from_pretrained(export(model, tmp_path / "out"))
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(batch_size=1, num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 32, 32, 3)
    assert DDIM(model.eval())(shape=(1, 3, 32, 32), steps=2).isfinite().all()


def test_what_diffusers_cannot_express_is_said(tmp_path):
    model = Learned(UNet((3, 9, 8), 32, (1, 2), 1, variant=ADM), Tabulated(linear_betas(50)), time_input=reversed_index)
    with pytest.raises(
        UsageError,
        match=r"size \(9, 8\) must be a multiple of 2.*; .*inside residual blocks.*; .*time input is reversed_index",
    ):
        export(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


KEPT = {"variant": DDPM, "heads": 2}  # two heads of 32 channels in each attention layer: one number of channels


@pytest.mark.parametrize(
    ("label", "steps", "options", "learned"),
    [
        (thousandths, 1000, KEPT, False),
        (thousandths, 1000, KEPT | {"variant": replace(DDPM, time=Sinusoidal(False, False))}, False),
        (thousandths, 1000, KEPT | {"variant": replace(IMPROVED, time=Sinusoidal(True, True))}, False),
        (thousandths, 1000, KEPT | {"variant": IMPROVED, "classes": 3}, False),
        (thousandth_index, 1000, KEPT, False),
        (thousandths, 100, KEPT, True),
        (thousandth_index, 50, KEPT | {"variant": IMPROVED}, True),
    ],
)
def test_any_label_is_the_same_in_diffusers_and_here(tmp_path, label, steps, options, learned):
    """By another first layer of the time perceptron where the label is the index and a constant, and by a table of
    features elsewhere.
    """
    library = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    network = UNet((3, 8, 8), 32, (1, 2), 1, **options)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.1)
    model = Learned(network, Tabulated(linear_betas(steps)), time_input=label).eval()
    folder = export(model, str(tmp_path / "out"))
    pipeline = library.DDPMPipeline.from_pretrained(folder)
    assert pipeline.unet.config.time_embedding_type == ("learned" if learned else "positional")
    assert pipeline.unet.config.attention_head_dim == 32
    x, step = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, steps // 2, steps - 1])
    named = torch.tensor([0, 2, 1, 3])
    cond, theirs = ({"label": named}, {"class_labels": named}) if network.classes else ({}, {})
    t = (step.double() + 1) / steps
    with torch.no_grad():
        ours = model.estimate(x, t, **cond).out
        assert_samples_close(pipeline.unet(x, step, **theirs).sample, ours, 1e-5)
        again = importer.denoiser(folder).eval()
        assert_samples_close(again.estimate(x, t, **cond).out, ours, 1e-5)
    assert again.time_input is (label if learned else step_index)


def test_a_network_of_thousandths_samples_in_a_pipeline(tmp_path):
    library = pytest.importorskip("diffusers")
    model = Learned(UNet((1, 4, 4), 32, (1,), 1, (), variant=DDPM), Tabulated(linear_betas(100)))
    pipeline = library.DDPMPipeline.from_pretrained(export(model, tmp_path))
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(batch_size=2, num_inference_steps=3, output_type="np").images.shape == (2, 4, 4, 1)


def test_a_table_by_its_settings_is_written_as_its_betas(tmp_path):
    network = UNet((1, 4, 4), 32, (1,), 1, (), variant=DDPM)
    for name, schedule in (("settings", LinearBetas(100)), ("table", Tabulated(linear_betas(100)))):
        export(Learned(network, schedule), tmp_path / name)
    one, other = ((tmp_path / n / "scheduler/scheduler_config.json").read_text() for n in ("settings", "table"))
    assert one == other
    assert importer.denoiser(tmp_path / "settings").schedule == Tabulated(linear_betas(100))


def test_a_table_of_other_features_is_refused(tmp_path):
    model = Learned(UNet((1, 4, 4), 32, (1,), 1, (), variant=DDPM), Tabulated(linear_betas(100)))
    path = export(model, tmp_path) / "unet" / "diffusion_pytorch_model.safetensors"
    state = importer.read(path)
    save_file(state | {"time_proj.weight": state["time_proj.weight"] + 0.01}, path)
    refused(lambda: importer.denoiser(tmp_path), "table of time features (time_proj.weight)")


def small(variant=DDPM, shape=(3, 8, 8), multipliers=(1, 2), **options):
    return UNet(shape, 32, multipliers, 1, **({"attention": (2,)} | options), variant=variant)


def test_each_reason_is_said_with_what_is_expressible(tmp_path):
    table = Tabulated(linear_betas(50))
    scaled = Learned(small(), table)
    scaled.quantization = Quantization(256, 0.0, 1.0)
    for denoiser, words in (
        (Learned(small(), table, sigma_data=0.5), "c_in x_t of sigma_data=0.5, but c_in must be 1"),
        (scaled, "data are in [0, 1], but must be in [-1, 1]"),
        (
            Learned(small(heads=4, attention=(1, 2)), table),
            "heads have [8, 16] channels, but must all have one number",
        ),
        (
            Learned(small(variant=UNetVariant()), table),
            "norms have [8, 16, 24, 32] groups, but must all have one number, as after training here with "
            "--network.variant ddpm",
        ),
        (Learned(small(variant=DDPMPP), table), "joined as in NCSN++, DDPM++ or EDM"),
        (Learned(small(variant=NCSNPP), table), "Fourier features"),
        (Learned(small(multipliers=(2, 2)), table), "its multipliers must begin with 1"),
        (Learned(small(vector=3), table), "takes vector, but can only take a class label"),
        (Learned(small(shape=(3, 8)), table), "must be images of real numbers"),
        (Learned(small(), table).on(Tabulated(cosine_betas(50))), "another schedule than its network's"),
        (
            Learned(small(), table, lambda a, s: (1 / a, s / a)),
            "prediction must be one of noise, clean, velocity",
        ),
        (Learned(DiT(5, 4, 8, 1, 2), table), "it is a Learned (DiT), but must be a Learned denoiser of a UNet"),
        ("runs/x", "it is a str, but must be a Learned denoiser of a UNet: load it first"),
    ):
        refused(lambda d=denoiser: export(d, tmp_path / "out"), words)
    assert not (tmp_path / "out").exists()
    export(Learned(small(), table, sigma_data=0.5, scaled=False), tmp_path / "out")


BETAS = {
    "linear": linear_betas(1000, 0.001, 0.012),
    "scaled_linear": quadratic_betas(1000, 0.001, 0.012),
    "squaredcos_cap_v2": cosine_betas(1000),
}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # the library's own
@pytest.mark.parametrize("kind", importer.SCHEDULERS)
def test_tables_are_those_of_the_librarys_schedulers(kind):
    library = pytest.importorskip("diffusers")
    for name, betas in BETAS.items():
        scheduler = {"num_train_timesteps": 1000, "beta_start": 0.001, "beta_end": 0.012, "beta_schedule": name}
        table = importer.table(scheduler | {"_class_name": kind}, "here")
        torch.testing.assert_close(table.betas, betas, rtol=1e-12, atol=0)
        torch.testing.assert_close(
            table.betas, getattr(library, kind)(**scheduler).betas.double(), rtol=1e-5, atol=1e-9
        )
    left_out = importer.table({"_class_name": kind, "beta_schedule": "linear"}, "here")
    torch.testing.assert_close(
        left_out.betas, getattr(library, kind)(beta_schedule="linear").betas.double(), rtol=1e-5, atol=0
    )
    trained = {"_class_name": kind, "trained_betas": [0.1, 0.3], "beta_schedule": "linear"}
    assert importer.table(trained, "here").betas.tolist() == [0.1, 0.3]


def test_a_table_that_ends_in_noise():
    library = pytest.importorskip("diffusers")
    options = {"beta_start": 0.001, "beta_end": 0.012, "beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True}
    table = importer.table({"_class_name": "DDIMScheduler"} | options, "here")
    assert table.betas[-1] == 1
    torch.testing.assert_close(table.betas, zero_terminal(BETAS["scaled_linear"]))
    torch.testing.assert_close(table.betas, library.DDIMScheduler(**options).betas.double(), rtol=2e-3, atol=1e-6)


def test_schedulers_that_are_not_read_are_named():
    for changes, words in (
        ({"_class_name": "ScoreSdeVeScheduler"}, "a ScoreSdeVeScheduler is not supported; these are: DDPMScheduler"),
        ({"_class_name": "EDMEulerScheduler"}, "a EDMEulerScheduler is not supported"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "is not supported"),
        ({"_class_name": None}, "a None is not supported"),
        ({"beta_schedule": None}, "neither beta_schedule nor trained_betas"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule='sigmoid'"),
        ({"prediction_type": "flow_prediction"}, "prediction_type='flow_prediction'"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas=True"),
        ({"num_train_timesteps": "1000", "beta_end": "0.02"}, "num_train_timesteps='1000', beta_end='0.02'"),
        ({"trained_betas": ["a"]}, "trained_betas=['a']"),
    ):
        refused(lambda c=changes: importer.table(SCHEDULER | c, "here"), "here: ", words)


def test_models_of_another_kind_are_named(tmp_path):
    """A pipeline of latents, another class, and a folder without weights.

    Each with its own reason, and the first one first.
    """
    for coder in ("vae", "vqvae"):
        folder = written(tmp_path / coder, pipeline=True)
        index = {"_class_name": "LDMPipeline", coder: ["diffusers", "VQModel"], "unet": ["diffusers", "UNet2DModel"]}
        (folder / "model_index.json").write_text(json.dumps(index))
        refused(lambda f=folder: load(f), f"generates latents, which its {coder} decodes")
    other = written(tmp_path / "other", _class_name="UNet2DConditionModel")
    refused(lambda: load(other), "a UNet2DConditionModel is not supported; a UNet2DModel is")
    (tmp_path / "dit").mkdir()
    (tmp_path / "dit" / "model_index.json").write_text('{"_class_name": "DiTPipeline", "vae": [null, null]}')
    refused(lambda: load(tmp_path / "dit"), "a DiTPipeline without unet/config.json is not supported")
    bare = written(tmp_path / "bare")
    for name in ("diffusion_pytorch_model.safetensors", "scheduler_config.json"):
        (bare / name).unlink()
    refused(
        lambda: load(bare),
        "there are no weights in",
        "diffusion_pytorch_model.safetensors or diffusion_pytorch_model.bin",
    )
    (bare / "config.json").write_bytes(b"\xff{")
    refused(lambda: load(bare), "config.json cannot be read as JSON")


@pytest.mark.parametrize("content", [[1, 2], {1: torch.zeros(1)}, {"attentions": torch.zeros(1)}])
def test_weights_that_are_no_state_dict(tmp_path, content):
    folder = written(tmp_path)
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(content, folder / "diffusion_pytorch_model.bin")
    refused(lambda: load(folder), "diffusion_pytorch_model.bin")


def test_options_that_are_left_out_are_the_librarys_own(tmp_path):
    """Those of `UNet2DModel.__init__`; the widths, with which nothing fits then, show in the shapes."""
    library = pytest.importorskip("diffusers")
    theirs = library.UNet2DModel.__init__.__wrapped__ if hasattr(library.UNet2DModel.__init__, "__wrapped__") else None
    defaults = {k: p.default for k, p in inspect.signature(theirs or library.UNet2DModel.__init__).parameters.items()}
    assert {name: default for name, (default, _) in importer.OPTIONS.items()} == {
        name: defaults[name] for name in importer.OPTIONS
    }
    kept = [
        k
        for k in ("in_channels", "out_channels", "norm_eps", "dropout")
        if FIXTURE.about["config"].get(k, 0) == defaults[k]
    ]
    assert_samples_close(importer.denoiser(written(tmp_path / "a", without=kept)).eval().network(X, T), Y)
    refused(lambda: load(written(tmp_path / "b", without=["sample_size"])), "sample_size=None is not an image size")
    refused(
        lambda: load(written(tmp_path / "c", without=["block_out_channels"], down_block_types=["DownBlock2D"])),
        "must mirror",
    )


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("freq_shift", 0.5),
        ("downsample_padding", 2),
        ("resnet_time_scale_shift", "ada_group"),
        ("layers_per_block", "2"),
        ("in_channels", None),
        ("block_out_channels", 32),
        ("block_out_channels", [0, 32]),
        ("norm_num_groups", None),
        ("attention_head_dim", 0),
        ("time_embedding_type", "fourier"),
        ("time_embedding_dim", 100),
        ("down_block_types", [["DownBlock2D"]]),
        ("out_channels", 5),
    ],
)
def test_values_that_no_network_here_has_are_named(tmp_path, option, value):
    refused(lambda: load(written(tmp_path, **{option: value})), f"{option}={value!r}")


def test_options_that_no_network_here_has_are_named(tmp_path):
    with pytest.raises(UsageError, match="act_fn='gelu'"):
        importer.denoiser(written(tmp_path / "a", act_fn="gelu"))
    with pytest.raises(UsageError, match=r"down_block_types=\['SkipDownBlock2D'"):
        importer.denoiser(written(tmp_path / "b", down_block_types=["SkipDownBlock2D"] * 4))
    with pytest.raises(UsageError, match="1 tensors are missing: conv_in.bias"):
        importer.denoiser(written(tmp_path / "c", drop=["conv_in.bias"]))
