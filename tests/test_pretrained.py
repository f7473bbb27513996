"""Pretrained checkpoints: each format is recognized, computes the reference's numbers, and becomes a run."""

import inspect
import json
from dataclasses import fields, replace

import pytest
import torch
from helpers import Fixture, assert_samples_close, peer_state
from pretrained_helpers import edm_file, refused, song_file
from safetensors.torch import save_file

from unnoise.experiments import pretrained
from unnoise.experiments.pretrained import loading, openai
from unnoise.experiments.pretrained.exporting import Flags, bring
from unnoise.experiments.pretrained.pesser import TRAINED

GUIDED = {
    "image_size": 16,
    "num_head_channels": 16,
    "use_new_attention_order": False,
    "noise_schedule": "linear",
    "diffusion_steps": 1000,
    "rescale_timesteps": False,
    "predict_xstart": False,
}
IMPROVED = GUIDED | {"num_heads": 4, "noise_schedule": "cosine", "diffusion_steps": 4000, "rescale_timesteps": True}
IMPROVED.pop("num_head_channels")
SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
}


def torch_file(folder, name, state):
    torch.save(state, folder / "model.pt")
    return folder / "model.pt"


def ermongroup(folder, name, state):
    """As its training writes it, with other raw weights, in torch's old format."""
    raw = {f"module.{k}": torch.zeros_like(v) for k, v in state.items()}
    torch.save([raw, {"state": {}}, 12, 790_000, state], folder / "ckpt.pth", _use_new_zipfile_serialization=False)
    return folder / "ckpt.pth"


def safetensors(folder, name, state):
    save_file(state, folder / "weights.safetensors")
    return folder / "weights.safetensors"


def diffusers(folder, name, state):
    config = {"_class_name": "UNet2DModel"} | Fixture(name).about["config"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    save_file(state, folder / "diffusion_pytorch_model.safetensors")
    return folder


def of_song(folder, name, state):
    """Under the path of the published file, which determines the process."""
    path = folder / "vp" / "cifar10_ddpmpp_continuous" / "checkpoint_8.pth"
    path.parent.mkdir(parents=True)
    torch.save(song_file(state), path)
    return path


def ncsnv2(folder, name, state):
    averaged = {k.removeprefix("module."): v for k, v in state.items() if k != "module.sigmas"}
    raw = {k: v if k == "module.sigmas" else torch.zeros_like(v) for k, v in state.items()}
    return torch_file(folder, name, [raw, {"state": {}}, 12, 3400, averaged])


def pickled(folder, name, state):
    edm_file(folder / "edm.pkl", state, "EDMPrecond", sigma_data=0.5)
    return folder / "edm.pkl"


def hub_folder(folder, name, state):
    """Weights beside their configuration, in both of the Hub's forms."""
    (folder / "config.json").write_text(json.dumps(Fixture(name).about["config"]))
    save_file(state, folder / "model.safetensors")
    torch.save({k: torch.zeros_like(v) for k, v in state.items()}, folder / "pytorch_model.bin")
    return folder


def lightning(folder, name, state):
    return torch_file(folder, name, {"state_dict": state, "global_step": 3})


CASES = {
    "pesser / ermongroup DDPM": (
        "ddim_model",
        ermongroup,
        {"image_size": 16, **TRAINED},
        lambda m, f: (m.network(f["x"], f["t"]), f["y"]),
    ),
    "diffusers": (
        "diffusers_unet2d_ddpm",
        diffusers,
        {},
        lambda m, f: (m.estimate(f["x"], (f["t"].double() + 1) / 1000).out, f["y"]),
    ),
    "improved-diffusion / guided-diffusion": (
        "guided_diffusion_unet",
        safetensors,
        GUIDED,
        lambda m, f: (torch.cat(m.estimate(f["x"], (f["t"].double() + 1) / 1000, label=f["label"])[2:], 1), f["y"]),
    ),
    "improved": ("improved_diffusion_unet", torch_file, IMPROVED, lambda m, f: (m.network(f["x"], f["t"]), f["y"])),
    "classifier": (
        "guided_diffusion_classifier",
        torch_file,
        GUIDED,
        lambda m, f: (m(f["x"], (f["t"].double() + 1) / 1000), f["y"].log_softmax(-1)),
    ),
    "score_sde": ("score_sde_ddpmpp_vp", of_song, {}, lambda m, f: (m.network(f["x"], 999 * f["t"]), f["y"])),
    "NCSNv2": (
        "ncsnv2",
        ncsnv2,
        {"image_size": 16},
        lambda m, f: (m.score(f["x"], (10 - f["level"]).double() / 10), f["y"]),
    ),
    "EDM": (
        "edm_ddpmpp",
        pickled,
        {},
        lambda m, f: (
            m(f["x"], m.schedule.time(-2 * f["sigma"].double().log()), label=f["class_labels"].argmax(1)),
            f["D_edm"],
        ),
    ),
    "MDLM": (
        "mdlm_dit",
        hub_folder,
        {"parameterization": "subs", "time_conditioning": False, "noise": "loglinear"},
        lambda m, f: (m.network(f["tokens"], f["sigma"]), f["y"]),
    ),
    "SEDD": (
        "sedd_absorb",
        lightning,
        {"uniform": False, "noise": "loglinear", "scale_by_sigma": True, "length": 24},
        lambda m, f: (m.log_ratio(f["tokens"], m.corruption.noise.time(f["sigma"])), f["log_score"]),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_file_computes_the_references_numbers_and_so_does_its_run(tmp_path, case):
    """To 1e-4 of each sample as a file, and bit for bit after `unnoise import`, without flags."""
    name, write, flags, outputs = CASES[case]
    (tmp_path / "in").mkdir()
    path, fixture = write(tmp_path / "in", name, peer_state(name)), Fixture(name)
    read = loading.opened(path, flags)
    assert read.format == (case if case not in ("improved", "classifier") else "improved-diffusion / guided-diffusion")
    assert not read.denoiser.training
    with torch.no_grad():
        actual, expected = outputs(read.denoiser, fixture)
        assert_samples_close(actual, expected)
        bring(str(path), tmp_path / "run", Flags(**flags))
        again = pretrained.load(tmp_path / "run")
        assert torch.equal(outputs(again, fixture)[0], actual)
    assert (again.quantization, again.shape) == (read.denoiser.quantization, read.denoiser.shape)
    assert type(again) is type(read.denoiser)
    contents = None if path.is_dir() else loading.files.read(path)
    assert [f.name for f in loading.FORMATS if f.looks_like(contents)] in ([], [read.format])


def test_options_are_the_flags_of_all_formats():
    parameters = (p for f in loading.FORMATS for p in inspect.signature(f.denoiser).parameters.values())
    taken = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert {f.name for f in fields(Flags)} == taken - {"config"}


def guided(tmp_path, **changes):
    state = peer_state("guided_diffusion_classifier") | changes
    return torch_file(tmp_path, "", {k: v for k, v in state.items() if v is not None})


def test_flags_that_are_missing_or_not_taken_are_named(tmp_path):
    path = guided(tmp_path)
    some = {k: v for k, v in GUIDED.items() if k not in ("image_size", "num_head_channels", "noise_schedule")}
    refused(
        lambda: pretrained.load(path, **some),
        "model.pt",
        "do not determine num_heads (or num_head_channels), noise_schedule, and",
    )
    refused(lambda: pretrained.load(path, **GUIDED, sde="vp"), "do not take sde: leave it out", "image_size, num_heads")
    refused(
        lambda: pretrained.load(path, **GUIDED | {"noise_schedule": "sigmoid"}),
        "noise_schedule='sigmoid'",
        "linear, cosine",
    )
    refused(
        lambda: pretrained.load(diffusers(tmp_path, "diffusers_unet2d_ddpm", {"a": torch.zeros(1)}), fir=True),
        "do not take fir",
        "none",
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cifar10_uncond_50M_500K.pt", openai.Flags(32, 4, None, False, "cosine", 4000, True, False, True)),
        ("64x64_diffusion.pt", openai.Flags(64, None, 64, True, "cosine", 1000, False, False, True)),
        ("models/256x256_diffusion_uncond.pt", openai.Flags(256, None, 64, False, "linear", 1000, False, False, True)),
        ("ema_0.9999_lsun_bedroom.pt", openai.Flags(256, None, 64, False, "linear", 1000, False, False, True)),
        ("128x128_classifier.pt", openai.Flags(128, None, 64, False, "linear", 1000, False, False, False)),
    ],
)
def test_published_names_determine_their_flags(name, expected):
    assert openai.complete(openai.Flags(), name, "classifier" in name) == expected
    given = openai.complete(openai.Flags(image_size=48), name, "classifier" in name)
    assert given == replace(expected, image_size=48)
    refused(
        lambda: openai.complete(openai.Flags(num_heads=2), name, False),
        "noise_schedule, diffusion_steps",
        "has other flags",
    )


def test_a_state_dict_alone_in_a_dictionary_is_unwrapped(tmp_path):
    torch.save({"state_dict": peer_state("guided_diffusion_unet")}, tmp_path / "model.pt")
    fixture, model = Fixture("guided_diffusion_unet"), pretrained.load(tmp_path / "model.pt", **GUIDED)
    with torch.no_grad():
        assert_samples_close(model.network(fixture["x"], fixture["t"], label=fixture["label"]), fixture["y"])
    torch.save({"state_dict": peer_state("guided_diffusion_unet"), "epoch": 3}, tmp_path / "model.pt")
    refused(
        lambda: pretrained.load(tmp_path / "model.pt", **GUIDED),
        "does not contain a known network (2 entries: state_dict, epoch)",
    )
    torch.save({"state_dict": [1]}, tmp_path / "model.pt")
    refused(lambda: pretrained.load(tmp_path / "model.pt", **GUIDED), "does not contain a known network (a list)")


def test_names_of_unknown_files_are_shortened():
    """Only names that are text are shown: that of tuples within tuples has no end."""
    nested = ()
    for _ in range(60):  # as text 2^60 long
        nested = (nested, nested)

    class Keys(dict):
        def __iter__(self):
            return iter([nested, "x" * 10_000, 3])

        def __len__(self):
            return 3

    assert loading.summary(Keys()) == f"3 entries: a tuple, {'x' * 80}, a int"
    assert loading.summary({str(n): n for n in range(7)}) == "7 entries: 0, 1, 2, 3, 4, ..."
    assert loading.summary([nested]) == "a list"


def test_tensors_that_do_not_fit_are_named(tmp_path):
    inner = [k for k in peer_state("guided_diffusion_classifier") if k.startswith("middle_block")][:12]
    refused(
        lambda: pretrained.load(guided(tmp_path, **dict.fromkeys(inner)), **GUIDED),
        "12 tensors are missing: middle_block",
        ", and 2 more",
    )
    more = {f"extra.{n:02d}": torch.zeros(1) for n in range(11)}
    refused(
        lambda: pretrained.load(guided(tmp_path, **more), **GUIDED),
        "11 tensors are unexpected: extra.00, extra.01",
        "extra.09, and 1 more",
    )
    other = {"time_embed.2.bias": torch.zeros(3)}
    refused(
        lambda: pretrained.load(guided(tmp_path, **other), **GUIDED),
        "1 tensors have the wrong shape",
        "time_embed.2.bias is (3,), expected (128,)",
    )


def test_folders_and_files_without_a_network_are_refused(tmp_path):
    refused(lambda: pretrained.load(tmp_path), "there are no weights in", "*.safetensors", "checkpoints/")
    for name in "ab":
        save_file({"weight": torch.zeros(1), "bias": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    refused(lambda: pretrained.load(tmp_path), "several weight files", "a.safetensors", "b.safetensors")
    refused(
        lambda: pretrained.load(tmp_path / "a.safetensors"),
        "does not contain a known network (2 entries: ",
        "bias",
        "EDM",
        "diffusers folders",
    )
    torch.save([1, 2], tmp_path / "c.pt")
    refused(lambda: pretrained.load(tmp_path / "c.pt"), "does not contain a known network (a list)")
    refused(lambda: pretrained.load(str(tmp_path / "none.pt")), "there is no file", "none.pt")
    (tmp_path / "hub").mkdir()
    hub_folder(tmp_path / "hub", "mdlm_dit", peer_state("mdlm_dit"))
    for content, message in (("{", "cannot be read as JSON"), ("[]", "does not contain a JSON object")):
        (tmp_path / "hub" / "config.json").write_text(content)
        refused(lambda s=message: pretrained.load(tmp_path / "hub"), "config.json", message)
