"""improved- and guided-diffusion: what a file, its name and flags settle, and images of any number of channels."""

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from helpers import Fixture, assert_samples_close, mean_and_variance, peer_state
from hypothesis import strategies as st
from import_settings import Format, Setting, setting_tests
from pretrained_helpers import refused

from unnoise.continuous import clean, noise
from unnoise.experiments.pretrained import openai, openai_flags
from unnoise.experiments.pretrained.imported import imported, objective
from unnoise.shared.quantization import Quantization
from unnoise.shared.tensors import exact

STEM, OUT = "input_blocks.0.0.weight", ("out.2.weight", "out.2.bias")
GUIDED, IMPROVED, JUDGE = (
    Fixture(n) for n in ("guided_diffusion_unet", "improved_diffusion_unet", "guided_diffusion_classifier")
)
FLAGS = {
    "image_size": 16,
    "num_heads": 4,
    "use_new_attention_order": False,
    "noise_schedule": "cosine",
    "diffusion_steps": 50,
    "rescale_timesteps": False,
    "predict_xstart": False,
}
JUDGING = {"num_head_channels": 16, "noise_schedule": "linear", "diffusion_steps": 1000, "rescale_timesteps": False}
CHAIN = {
    "noise_schedule": Setting(st.sampled_from(["linear", "cosine"])),
    "diffusion_steps": Setting(st.sampled_from([50, 200])),
    "rescale_timesteps": Setting(st.booleans()),
}
MODEL = {
    "image_size": Setting(st.sampled_from([2, 4])),
    "num_heads": Setting(st.sampled_from([2, 4]), error="num_heads (or num_head_channels)"),
    "use_new_attention_order": Setting(st.booleans()),
    **CHAIN,
    "predict_xstart": Setting(st.booleans()),
}


def taking(state, into):
    """The network of the state for images `(B, c, H, W)` that stand for `into @ images`, `into` of shape `(3, c)`."""
    return state | {STEM: torch.einsum("oihw,ic->ochw", state[STEM], into)}


def giving(state, out):
    """The network that gives `out @` what this one gives, channel by channel."""
    return state | {OUT[0]: torch.einsum("nc,cihw->nihw", out, state[OUT[0]]), OUT[1]: out @ state[OUT[1]]}


def of_channels(fixture, channels, outputs=2, image=0):
    """A file of a network for images of so many channels, and the two maps that make it of the fixture's."""
    generator = torch.Generator().manual_seed(channels)
    state = peer_state(fixture)
    into = torch.randn(3, channels + image, generator=generator)
    out = torch.randn(outputs * channels, len(state[OUT[1]]), generator=generator)
    return giving(taking(state, into), out), into, out


def mixed(matrix, x):
    return torch.einsum("nc,bchw->bnhw", matrix, x)


def load(state, name="model.pt", **changes):
    return openai.denoiser(state, name, **{k: v for k, v in (FLAGS | changes).items() if v is not None}).eval()


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("outputs", [1, 2])
def test_images_of_any_number_of_channels(channels, outputs):
    """A network of other channels is the fixture's between two linear maps, and gives the fixture's numbers between
    them.
    """
    state, into, out = of_channels("improved_diffusion_unet", channels, outputs)
    ambiguous = {"learn_sigma": False} if outputs == 1 and channels % 2 == 0 else {}
    model = load(state, **ambiguous)
    assert (model.shape, model.network.outputs, model.network.image) == ((channels, 16, 16), outputs, 0)
    original = load(peer_state("improved_diffusion_unet")).network
    x, t = torch.randn(2, channels, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 40])
    with torch.no_grad():
        expected = mixed(out, original(mixed(into, x), t))
        assert_samples_close(model.network(x, t), expected)
        estimate, v = mean_and_variance(model, x, (t + 1).double() / 50)
    alpha, sigma = (c.float().view(-1, 1, 1, 1) for c in model.corruption((t + 1).double() / 50))
    assert_samples_close(estimate, (x - sigma * expected[:, :channels]) / alpha, 1e-3)
    assert (v is None) if outputs == 1 else torch.allclose(v, expected[:, channels:], atol=1e-4)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("predict_xstart", [False, True])
def test_the_prediction_is_the_flag(learned, predict_xstart):
    """On the reference's own outputs: x_0 itself, or what the noise leaves of x_t; the variance is not touched."""
    state, x, y = peer_state("guided_diffusion_unet"), GUIDED["x"], GUIDED["y"]
    if not learned:
        state = state | {k: state[k][:3] for k in OUT}
    flags = {"num_heads": None, "num_head_channels": 16, "diffusion_steps": 1000, "noise_schedule": "linear"}
    model = load(state, **flags, predict_xstart=predict_xstart)
    assert model.predicts is (clean if predict_xstart else noise)
    t = (GUIDED["t"].double() + 1) / 1000
    with torch.no_grad():
        estimate, v = mean_and_variance(model, x, t, label=GUIDED["label"])
    alpha, sigma = (c.float().view(-1, 1, 1, 1) for c in model.corruption(t))
    assert_samples_close(estimate, y[:, :3] if predict_xstart else (x - sigma * y[:, :3]) / alpha, 1e-3)
    if learned:
        assert_samples_close(v, y[:, 3:])
    assert (v is not None) is learned


def test_a_classifier_of_four_channels():
    """Its logits and their gradient are the fixture's, seen through the map of the channels."""
    into = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))[0][:3]
    model = openai.denoiser(taking(peer_state("guided_diffusion_classifier"), into), "model.pt", **JUDGING).eval()
    assert model.shape == (4, 16, 16)
    x = mixed(into.T, JUDGE["x"])  # which `into` brings back
    with torch.no_grad():
        assert_samples_close(model.network(x, JUDGE["t"]), JUDGE["y"])


@pytest.mark.parametrize(("channels", "outputs"), [(3, 2), (3, 1), (1, 2), (1, 1), (4, 1), (4, 2)])
def test_an_upsampler_of_any_channels(channels, outputs):
    """It takes the small image, enlarged, behind the noisy one, as `SuperResModel` does.

    What is ambiguous is asked for.
    """
    state, into, out = of_channels("improved_diffusion_unet", channels, outputs, image=channels)
    if channels * outputs % 2 == 0:
        refused(
            lambda: load(state),
            "model.pt: the weights of this format do not determine learn_sigma, and",
            "such as learn_sigma=True",
        )
    model = load(state, learn_sigma=outputs == 2)
    assert (model.shape, model.network.outputs, model.network.image) == ((channels, 16, 16), outputs, channels)
    x, low, t = torch.randn(2, channels, 16, 16), torch.randn(2, channels, 4, 4), torch.tensor([3, 40])
    whole = torch.cat([x, F.interpolate(low, (16, 16), mode="bilinear")], 1)
    with torch.no_grad():
        expected = mixed(out, load(peer_state("improved_diffusion_unet")).network(mixed(into, whole), t))
        assert_samples_close(model.network(x, t, image=low), expected)


def test_six_in_and_six_out_are_two_networks(monkeypatch):
    state = of_channels("improved_diffusion_unet", 6, outputs=1)[0]
    plain, upsampler = load(state, learn_sigma=False), load(state, learn_sigma=True)
    assert (plain.shape, plain.network.image, plain.has_variance_output) == ((6, 16, 16), 0, False)
    assert (upsampler.shape, upsampler.network.image, upsampler.has_variance_output) == ((3, 16, 16), 3, True)
    refused(lambda: load(state), "do not determine learn_sigma")
    other = "the published 64_256_upsampler is another network"
    refused(
        lambda: openai.denoiser(state, "64_256_upsampler.pt", image_size=16), "do not determine", "learn_sigma", other
    )
    monkeypatch.setitem(openai_flags.SIZES, "64_256_upsampler", openai.sizes_of(state, ""))
    named = openai.denoiser(state, "64_256_upsampler.pt", image_size=16)
    assert named.network.image == 3
    assert named.assumed == (
        "settings without a flag are those of the published checkpoint 64_256_upsampler, recognized by the file name",
    )
    refused(
        lambda: openai.denoiser(state, "64_256_upsampler.pt", image_size=16, noise_schedule="cosine"),
        "do not determine",
        "learn_sigma",
    )


def test_a_published_name_on_another_network_is_ignored(monkeypatch):
    """It gives neither settings nor, for a classifier, the kind of model; in a network of its sizes it gives both."""
    state, judge = peer_state("improved_diffusion_unet"), peer_state("guided_diffusion_classifier")
    for name in openai_flags.PUBLISHED:
        missing = (
            "num_heads (or num_head_channels), use_new_attention_order, noise_schedule, diffusion_steps, "
            "rescale_timesteps, predict_x"
        )
        refused(
            lambda n=name: openai.denoiser(state, f"mine_{n}.pt"),
            missing,
            f"and the published {name} is another network",
        )
        missing = "num_heads (or num_head_channels), noise_schedule, diffusion_steps, rescale_timesteps, and"
        refused(
            lambda n=name: openai.denoiser(judge, f"mine_{n}.pt"), missing, f"the published {name} is another network"
        )
        assert openai.denoiser(judge, f"mine_{name}.pt", **JUDGING).assumed == ()
    own = openai.sizes_of(state, "")
    for changes in ({"channels": 8}, {"entries": 3}, {"classes": 9}, {"entering": 6}, {"leaving": 3}):
        monkeypatch.setitem(openai_flags.SIZES, "lsun_cat", own._replace(**changes))
        refused(
            lambda: openai.denoiser(state, "lsun_cat.pt", image_size=16), "the published lsun_cat is another network"
        )
    monkeypatch.setitem(openai_flags.SIZES, "lsun_cat", own)
    wide = {k: v for k, v in JUDGING.items() if k == "num_head_channels"}
    refused(
        lambda: openai.denoiser(state, "lsun_cat.pt", image_size=16, **wide),
        "the published lsun_cat has other flags than are given",
    )


LEVELS = {32: 4, 64: 4, 128: 5, 256: 6, 512: 7}
"""Resolutions by the size of images, as both projects have them; the upsampler to 512 has six."""


@pytest.mark.parametrize("name", openai_flags.PUBLISHED)
def test_the_published_networks_are_those_of_the_instructions(name):
    """`num_channels`, `num_res_blocks` (of classifiers `depth`) and `class_cond` of the projects' command lines."""
    size = 32 if "cifar" in name else openai_flags.PUBLISHED[name].image_size
    judges, upsampler, cond = "classifier" in name, "upsampler" in name, "uncond" not in name and "lsun" not in name
    blocks = {"64x64_classifier": 4}.get(name, 3 if size in (32, 64) else 2)
    narrow = judges or ("uncond_" in name)
    width = 128 if narrow else 192 if upsampler or size == 64 else 256
    entries = (6 if upsampler else LEVELS[size]) * (blocks + 1)
    expected = (
        width,
        entries,
        1000 if cond and "cifar" not in name else None,
        6 if upsampler else 3,
        None if judges else 6,
    )
    assert openai_flags.SIZES[name] == expected


@pytest.mark.parametrize(
    ("into", "out", "learn_sigma", "words"),
    [
        (3, 7, None, "the network has 3 input channels (input_blocks.0.0.weight) and 7 output channels (out.2.bias)"),
        (1, 4, None, "the network has 1 input channels (input_blocks.0.0.weight) and 4 output channels"),
        (3, 3, True, "learn_sigma=True does not fit: the network has 3 input channels"),
        (3, 6, False, "learn_sigma=False does not fit: the network has 3 input channels"),
    ],
)
def test_channels_that_no_network_has_are_named_with_the_file(into, out, learn_sigma, words):
    state = giving(taking(peer_state("improved_diffusion_unet"), torch.zeros(3, into)), torch.zeros(out, 6))
    refused(lambda: load(state, learn_sigma=learn_sigma), f"model.pt: {words}")


def test_a_condition_image_of_other_channels_is_said():
    """Four in and two out, as a mask beside a colored image: two readings, and whose channels come first is assumed."""
    state = giving(taking(peer_state("improved_diffusion_unet"), torch.randn(3, 4)), torch.randn(2, 6))
    refused(lambda: load(state), "do not determine learn_sigma")
    model = load(state, learn_sigma=True)
    assert (model.shape, model.network.image) == ((1, 16, 16), 3)
    assert "the first 1 input channels are the noisy image's, the other 3 a condition image's" in model.assumed


def test_what_is_assumed_is_said():
    state = peer_state("improved_diffusion_unet")
    note = "attention on the way up has 4 heads, as on the way down (num_heads_upsample -1)"
    assert load(state).assumed == (note,)
    assert load(state, num_heads=None, num_head_channels=16).assumed == ()
    fixed = load(state | {k: state[k][:3] for k in OUT}).assumed
    assert (
        fixed[1] == "the code length uses the variance beta_t (sigma_small False); samples of DDIM do not depend on it"
    )


def test_sizes_that_do_not_halve_and_other_poolings_are_refused():
    state = peer_state("improved_diffusion_unet")
    refused(
        lambda: load(state, image_size=17),
        "model.pt: image_size=17 cannot be halved 1 times: give a multiple of 2",
    )
    refused(
        lambda: load(state, noise_schedule="linear", diffusion_steps=10),
        "model.pt: noise_schedule='linear', diffusion_steps=10",
    )
    pooled = {k: v for k, v in peer_state("guided_diffusion_classifier").items() if not k.startswith("out.2")}
    refused(
        lambda: load(pooled),
        "model.pt has neither output_blocks",
        "another classifier_pool than attention are not supported",
    )
    odd = peer_state("guided_diffusion_classifier")
    odd["out.2.positional_embedding"] = odd["out.2.positional_embedding"][:, :-3]
    refused(lambda: openai.denoiser(odd, "model.pt", **JUDGING), "model.pt", "positional_embedding")


def test_pictures_say_which_channel_they_show(tmp_path):
    for channels, note in ((1, ""), (2, "  only the first of 2 channels is shown\n"), (3, "")):
        state = of_channels("improved_diffusion_unet", channels)[0]
        shown = imported(load(state)).show(
            tmp_path / "a.png", torch.zeros(2, channels, 16, 16, dtype=torch.int64), Quantization(), 2
        )
        assert shown == note


def test_training_goes_on_with_the_error_of_what_is_predicted():
    """Of x_0 where that is predicted, as in the projects' own training."""
    for learned in (False, True):
        state = peer_state("improved_diffusion_unet")
        model = load(state if learned else state | {k: state[k][:3] for k in OUT}, predict_xstart=True)
        x0, t = torch.randn(2, 3, 16, 16), torch.tensor([0.3, 1.0])
        loss = objective(model).at(x0, t, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            estimate = model(
                model.corruption.corrupt(x0, exact(t), generator=torch.Generator().manual_seed(0)), exact(t)
            )
        torch.testing.assert_close(loss.parts["mse"], ((estimate - x0) ** 2).flatten(1).mean(1))


state_of = cache(peer_state)
six = cache(lambda: of_channels("improved_diffusion_unet", 6, 1)[0])
FORMATS = {
    "model": Format(
        lambda values: load(state_of("improved_diffusion_unet"), **dict.fromkeys(FLAGS) | values),
        MODEL,
        more={"num_head_channels": (16,), "learn_sigma": (False,)},
        examples=2,
    ),
    "either": Format(
        lambda values: load(six(), **{"image_size": 4} | values), {"learn_sigma": Setting(st.booleans())}, examples=1
    ),
    "classifier": Format(
        lambda values: openai.denoiser(state_of("guided_diffusion_classifier"), "model.pt", **values).eval(),
        {"num_head_channels": Setting(st.sampled_from([16, 32])), **CHAIN},
        more={
            "predict_xstart": (True,),
            "learn_sigma": (True,),
            "use_new_attention_order": (True,),
            "image_size": (8, 15),
        },
        examples=2,
    ),
}
test_dropped, test_changed, test_more = setting_tests(FORMATS)
