"""The published networks of ermongroup/ncsnv2, read from a state dict by our importer."""

import math

import pytest
import torch
from helpers import Fixture, assert_samples_close, peer_state
from pretrained_helpers import refused

from unnoise.experiments.pretrained.ncsnv2 import denoiser, looks_like, size_of
from unnoise.experiments.pretrained.settings import Settings
from unnoise.shared.errors import UsageError
from unnoise.shared.networks.refinenet import RefineNet
from unnoise.shared.quantization import Quantization
from unnoise.shared.serialization import deserialize, serialize

FIXTURE = Fixture("ncsnv2")
READS = (
    "x|level|y",
    "state:.+",
)
STATE = peer_state("ncsnv2")
SIGMAS = STATE["module.sigmas"]
PLAIN = {name.removeprefix("module."): value for name, value in STATE.items()}
AVERAGE = {name: value for name, value in PLAIN.items() if name != "sigmas"}
RAW = {name: value if name == "module.sigmas" else torch.zeros_like(value) for name, value in STATE.items()}
FORMS = {
    "list with averages": [RAW, {"state": {}, "param_groups": []}, 12, 3400, AVERAGE],
    "list without": [STATE, {"state": {}, "param_groups": []}, 12, 3400],
    "with module.": STATE,
    "without": PLAIN,
}


@pytest.mark.parametrize("form", FORMS)
def test_score_at_each_level(form):
    assert looks_like(FORMS[form])
    model = denoiser(FORMS[form], "file.pth", image_size=16).eval()
    t = (len(SIGMAS) - FIXTURE["level"]).double() / len(SIGMAS)  # index 0 is the largest sigma, and t = 1
    alpha, sigma = model.corruption(t)
    assert torch.equal(alpha, torch.ones_like(alpha))
    torch.testing.assert_close(sigma, SIGMAS[FIXTURE["level"]].double(), rtol=1e-9, atol=0)
    torch.testing.assert_close(model.time_input(model.schedule, t), FIXTURE["level"].double(), rtol=0, atol=0)
    with torch.no_grad():
        assert_samples_close(model.score(FIXTURE["x"], t), FIXTURE["y"])
        for i in range(len(t)):
            assert_samples_close(model.score(FIXTURE["x"][i : i + 1], t[i]), FIXTURE["y"][i : i + 1])
            mean = FIXTURE["x"][i].double() + sigma[i] ** 2 * FIXTURE["y"][i].double()  # Tweedie's formula
            assert_samples_close(model(FIXTURE["x"][i : i + 1], t[i]), mean[None].float())


def test_what_the_denoiser_says_of_itself():
    model = denoiser(STATE, "file.pth", image_size=16)
    assert (model.quantization, model.shape, model.conditions, model.has_variance_output) == (
        Quantization(256, 0.0, 1.0),
        (3, 16, 16),
        (),
        False,
    )
    again = deserialize(serialize(model))
    again.load_state_dict(model.state_dict())
    x, t = FIXTURE["x"], torch.tensor(0.5)
    with torch.no_grad():
        assert torch.equal(again.score(x, t), model.score(x, t))


def foreign(network, stages, order):
    """A state of the published form, from the order in which a network of ours computes.

    It has the names of the published modules.
    """
    ours, kinds = dict(network.named_parameters()), []
    for stage in stages:
        i = stages.index(stage)
        for block in (0, 1):
            mean = ".conv" if block == 0 and 0 < i < len(stages) - 2 else ""
            kinds += [(f"stages.{i}.{block}.norm{n}", f"res{stage}.{block}.normalize{n}") for n in (1, 2)]
            kinds += [
                (f"stages.{i}.{block}.conv1", f"res{stage}.{block}.conv1"),
                (f"stages.{i}.{block}.conv2", f"res{stage}.{block}.conv2{mean}"),
            ]
            kinds += [(f"stages.{i}.{block}.skip", f"res{stage}.{block}.shortcut{mean}")]
    for i, name in enumerate(order):
        here, there = f"refinements.{i}", f"refine{name}"
        kinds += [
            (f"{here}.adapt.{a}.{u}.conv{c}", f"{there}.adapt_convs.{a}.{u + 1}_{c}_conv")
            for a in (0, 1)
            for u in (0, 1)
            for c in (1, 2)
        ]
        kinds += [
            (f"{here}.out.{u}.conv{c}", f"{there}.output_convs.{u + 1}_{c}_conv") for u in range(3) for c in (1, 2)
        ]
        kinds += [(f"{here}.fuse.convs.{k}", f"{there}.msf.convs.{k}") for k in (0, 1)]
        kinds += [(f"{here}.pool.convs.{k}", f"{there}.crp.convs.{k}") for k in (0, 1)]
    kinds += [("stem", "begin_conv"), ("head", "end_conv"), ("norm", "normalizer")]
    found = {"module.sigmas": SIGMAS}
    for here, there in kinds:
        for part in ("weight", "bias", "alpha", "gamma", "beta"):
            if f"{here}.{part}" in ours:
                found[f"module.{there}.{part}"] = ours[f"{here}.{part}"].detach()
    assert len(found) == len(ours) + 1
    return found


@pytest.mark.parametrize(
    ("stages", "order", "multipliers", "dilations"),
    [
        (("1", "2", "3", "4"), ("4", "3", "2", "1"), (1, 2, 2, 2), (1, 1, 2, 4)),
        (("1", "2", "3", "4", "5"), ("5", "4", "3", "2", "1"), (1, 2, 2, 4, 4), (1, 1, 1, 2, 4)),
        (("1", "2", "3", "31", "4", "5"), ("5", "4", "3", "31", "2", "1"), (1, 2, 2, 2, 4, 4), (1, 1, 1, 1, 2, 4)),
    ],
)
def test_each_depth_is_read_from_the_names(stages, order, multipliers, dilations):
    """`order` names the refinements of the stages in turn.

    The first three names are NCSNv2, NCSNv2Deeper and NCSNv2Deepest.
    """
    torch.manual_seed(0)
    network = RefineNet((1, 16, 16), 4, multipliers, dilations)
    model = denoiser(foreign(network, stages, order), "file.pth", image_size=16)
    read = model.network.inner
    assert (read.width, read.multipliers, read.dilations, read.shape) == (4, multipliers, dilations, (1, 16, 16))
    x = torch.rand(2, 1, 16, 16)
    with torch.no_grad():
        assert torch.equal(model.network(x, torch.zeros(2)), network(2 * x - 1, torch.zeros(2)))


@pytest.mark.parametrize(
    ("depth", "levels", "largest", "size"),
    [(4, 232, 50, 32), (4, 500, 90, 64), (5, 1086, 190, 128), (6, 2311, 348, 256)],
)
def test_depth_and_noise_levels_of_the_published_networks_determine_the_size(depth, levels, largest, size):
    def image_size(depth, levels, largest):
        sigmas = torch.logspace(math.log10(largest), -2, levels)
        return size_of(Settings("file.pth", {}), depth, sigmas)

    assert image_size(depth, levels, largest) == size
    for other in ((depth % 6 + 1, levels, largest), (depth, levels + 1, largest), (depth, levels, largest + 2)):
        refused(lambda o=other: image_size(*o), "file.pth", "the size of the images", "image_size=32")


def test_another_size_is_asked_for():
    refused(lambda: denoiser(STATE, "file.pth"), "file.pth", "the size of the images", "image_size=32")
    levels = torch.logspace(math.log10(50), -2, 232)
    assert denoiser(STATE | {"module.sigmas": levels}, "file.pth").shape == (3, 32, 32)
    for wrong in ([50.0], [50.0, 1.0, -1.0], [50.0, 1.0, 0.0], [math.inf, 1.0, 0.1], [50.0, math.nan, 0.1]):
        state = STATE | {"module.sigmas": torch.tensor(wrong)}
        refused(
            lambda s=state: denoiser(s, "file.pth", image_size=16),
            "file.pth: sigmas",
            "must decrease to a smallest one above 0",
        )


@pytest.mark.parametrize("name", [name for name in list(STATE)[::9] if name != "module.sigmas"])
def test_a_missing_tensor_is_refused(name):
    state = {k: v for k, v in STATE.items() if k != name}
    with pytest.raises(UsageError, match="file.pth") as error:
        denoiser(state, "file.pth", image_size=16)
    assert name.removeprefix("module.") in str(error.value) or not looks_like(state)


def test_what_does_not_fit_is_refused():
    cases = [
        ({k: v for k, v in STATE.items() if k != "module.sigmas"}, "sigmas is missing"),
        (STATE | {"module.res3.0.extra": torch.zeros(2)}, "1 tensors are unexpected: res3.0.extra"),
        (STATE | {"module.res6.0.conv1.weight": torch.zeros(2)}, "stages res1 to res4, .* not 1, 2, 3, 4, 6"),
        (STATE | {"module.res4.0.conv1.weight": torch.zeros(32, 32, 1, 1)}, r"res4.0.conv1.weight is \(32, 32, 1, 1\)"),
        (STATE | {"module.begin_conv.weight": torch.zeros(16, 3)}, r"begin_conv.weight is a tensor \(16, 3\)"),
        (STATE | {"module.sigmas": SIGMAS.flip(0)}, "must decrease"),
        ([STATE, {}, 1, 2, {k: v for k, v in AVERAGE.items() if k != "end_conv.bias"}], "missing: end_conv.bias"),
        ({"weight": torch.zeros(2)}, "does not contain an NCSNv2: its names are weight"),
        ([], "its names are none"),
    ]
    for state, said in cases:
        with pytest.raises(UsageError, match=f"file.pth.*{said}"):
            denoiser(state, "file.pth", image_size=16)
    with pytest.raises(UsageError, match="image_size=0"):
        denoiser(STATE, "file.pth", image_size=0)


@pytest.mark.parametrize("name", ["ddim_model", "score_sde_ncsnpp_ve", "guided_diffusion_unet"])
def test_other_files_do_not_look_like_it(name):
    assert not looks_like(dict.fromkeys(Fixture(name).about["state_dict_order"]))
    assert not looks_like("module.begin_conv.weight")
    assert not looks_like(None)
