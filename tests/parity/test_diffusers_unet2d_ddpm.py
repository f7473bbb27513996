"""`UNet2DModel` of diffusers, read and written through the importer: fixture, round trip, and the library itself as the oracle."""

import json

import pytest
import torch
from helpers import Fixture, assert_samples_close, peer_state
from safetensors.torch import save_file

from unnoise.continuous import DDIM, Learned, Tabulated, cosine_betas, linear_betas, noise, velocity
from unnoise.experiments.released import diffusers as importer
from unnoise.shared.errors import UsageError
from unnoise.shared.labels import step_index
from unnoise.shared.networks import UNet
from unnoise.shared.networks.style import ADM, DDPM, IMPROVED

FIXTURE = Fixture("diffusers_unet2d_ddpm")
X, T, Y = (FIXTURE[k] for k in "xty")
SCHEDULER = {"_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}


def written(folder, *, old=False, pipeline=False, drop=(), **changes):
    """The fixture as a folder of the Hub."""
    home = folder / "unet" if pipeline else folder
    home.mkdir(parents=True, exist_ok=True)
    (home / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"} | FIXTURE.about["config"] | changes))
    state = {k: v for k, v in peer_state("diffusers_unet2d_ddpm").items() if k not in drop}
    if old:
        names = {"to_q": "query", "to_k": "key", "to_v": "value"}
        state = {
            ".".join(names.get(p, p) for p in k.replace("to_out.0", "proj_attn").split(".")) if "attentions" in k else k: v
            for k, v in state.items()
        }
        torch.save(state, home / "diffusion_pytorch_model.bin")
    else:
        save_file(state, home / "diffusion_pytorch_model.safetensors")
    scheduler = folder / "scheduler" if pipeline else folder
    scheduler.mkdir(exist_ok=True)
    (scheduler / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    return folder


@pytest.mark.parametrize(("old", "pipeline"), [(False, False), (True, False), (False, True)])
def test_noise(tmp_path, old, pipeline):
    folder = written(tmp_path, old=old, pipeline=pipeline)
    assert importer.looks_like(folder)
    model = importer.denoiser(folder).eval()
    assert_samples_close(model.network(X, T), Y)
    assert_samples_close(model.raw(X, (T.double() + 1) / 1000)[0], Y)


@pytest.mark.parametrize(
    ("options", "betas", "predicts"),
    [
        ({"style": DDPM}, linear_betas(50), noise),
        ({"style": IMPROVED, "outputs": 2, "classes": 3, "null_label": False}, cosine_betas(20), noise),
        ({"style": IMPROVED, "attention": (1, 2), "classes": 3}, cosine_betas(20), velocity),
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
    folder = importer.export(model, tmp_path / "out")
    pipeline = library.DDPMPipeline.from_pretrained(folder)
    x, step = torch.randn(3, 3, 8, 12), torch.tensor([0, 1, len(betas) - 1])
    label = torch.tensor([0, 2, 1])
    cond, theirs = ({"label": label}, {"class_labels": label}) if network.classes else ({}, {})
    with torch.no_grad():
        ours = network(x, step, **cond)
        assert_samples_close(pipeline.unet(x, step, **theirs).sample, ours, 1e-5)
        again = importer.denoiser(folder).eval()
        assert_samples_close(again(x, (step.double() + 1) / len(betas), **cond), model(x, (step.double() + 1) / len(betas), **cond), 1e-5)
    torch.testing.assert_close(pipeline.scheduler.betas.double(), model.schedule.betas, rtol=1e-6, atol=0)
    assert again.predicts is predicts


def test_a_pipeline_samples(tmp_path):
    library = pytest.importorskip("diffusers")
    model = importer.denoiser(written(tmp_path / "in"))
    pipeline = library.DDPMPipeline.from_pretrained(importer.export(model, tmp_path / "out"))
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(batch_size=1, num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 32, 32, 3)
    assert DDIM(model.eval())(shape=(1, 3, 32, 32), steps=2).isfinite().all()


def test_what_diffusers_cannot_express_is_said(tmp_path):
    model = Learned(UNet((3, 9, 8), 32, (1, 2), 1, style=ADM), Tabulated(linear_betas(50)))
    with pytest.raises(UsageError, match=r"sizes \(9, 8\) do not halve evenly; .*inside residual blocks; .*label=step_index"):
        importer.export(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_options_that_no_network_here_has_are_named(tmp_path):
    with pytest.raises(UsageError, match="act_fn='gelu'"):
        importer.denoiser(written(tmp_path / "a", act_fn="gelu"))
    with pytest.raises(UsageError, match=r"down_block_types=\['SkipDownBlock2D'"):
        importer.denoiser(written(tmp_path / "b", down_block_types=["SkipDownBlock2D"] * 4))
    with pytest.raises(UsageError, match="1 tensors are missing: conv_in.bias"):
        importer.denoiser(written(tmp_path / "c", drop=["conv_in.bias"]))
