"""The Inception v3 of FID and the resize before it, of torch-fidelity, at the real size."""

import pytest
import torch
from helpers import Fixture, assert_samples_close, peer_state

from unnoise.shared.errors import UsageError
from unnoise.shared.metrics.inception import Inception, InceptionV3
from unnoise.shared.metrics.resizing import tensorflow_bilinear
from unnoise.shared.quantization import Quantization

FIXTURE = Fixture("inception_fid")
READS = (r".*",)
GROUPS = ("32x32", "20x45", "310x360")
KEPT = FIXTURE.about["config"]["rows_and_columns_kept"]


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return peer_state("inception_fid")


@pytest.fixture(scope="module")
def inception(state) -> Inception:
    return Inception(state, device="cpu")


@pytest.mark.parametrize("group", GROUPS)
def test_resize(group):
    found = tensorflow_bilinear(FIXTURE[f"images_{group}"], 299, 299)
    for part, name in ((found[:, :, KEPT], "rows"), (found[..., KEPT], "columns")):
        assert (part - FIXTURE[f"{group}.resized_{name}"]).abs().max() <= 1e-6 * 255
    moments = torch.stack([found.double().mean((2, 3)), found.double().square().mean((2, 3))], -1)
    assert torch.allclose(moments, FIXTURE[f"{group}.resized_moments"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("group", GROUPS)
def test_features(group, inception):
    with torch.inference_mode():
        found = inception.network(FIXTURE[f"images_{group}"])
    for name in ("64", "192", "768", "2048"):
        assert_samples_close(found[name], FIXTURE[f"{group}.{name}"])
    logits = inception.logits(found["2048"])
    assert_samples_close(logits, FIXTURE[f"{group}.logits_unbiased"])
    assert_samples_close(logits + inception.network.fc.bias, FIXTURE[f"{group}.logits"])


def test_published_file_loads(state, inception):
    """It has a counter for each normalization, and its keys and shapes are all that the network has."""
    about = FIXTURE.about
    assert len(state) == about["tensors_in_state_dict"] == 472
    assert sum(p.numel() for p in inception.network.parameters()) == about["parameters"]
    with torch.device("meta"):
        names = InceptionV3().state_dict()
    counters = {name: torch.tensor(0) for name in names if name.endswith("num_batches_tracked")}
    assert len(state | counters) == 566, "the number of tensors in pt_inception-2015-12-05-6726825d.pth"
    assert Inception(state | counters, device="cpu").digest == inception.digest
    for wrong in ({name: value for name, value in state.items() if name != "fc.bias"}, state | {"more": torch.ones(1)}):
        with pytest.raises(UsageError, match="not the weights of FID's Inception v3"):
            Inception(wrong)


def test_spatial_features(inception):
    """Seven channels of the 1x1 branch of Mixed_6d at 17 x 17 positions, channel last, and gray images as RGB."""
    images, branch, rounded = FIXTURE["images_32x32"][:1, :1], [], []

    def record(network, x, out):
        branch.append(out)
        rounded.append(torch.backends.cudnn.allow_tf32)

    hook = inception.network.Mixed_6d.branch1x1.register_forward_hook(record)
    pooled, spatial = inception.with_spatial(images.long() // 17, Quantization(16))
    hook.remove()
    assert rounded == [False], "TF32 on a GPU would change features by 1e-3"
    assert pooled.shape == (1, 2048)
    assert spatial.shape == (1, 17 * 17 * 7)
    assert torch.equal(spatial.view(17, 17, 7)[3, 5], branch[0][0, :7, 3, 5])
    with torch.inference_mode():
        same = inception.network((images // 17 * 17).expand(-1, 3, -1, -1))
    assert torch.equal(pooled, same["2048"])


@pytest.mark.device
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no NVIDIA GPU")
def test_features_on_a_gpu(state):
    inception = Inception(state)
    assert inception.device.type == "cuda"
    for group in GROUPS:
        found = inception.of(FIXTURE[f"images_{group}"], Quantization())
        assert_samples_close(found, FIXTURE[f"{group}.2048"])
        assert_samples_close(inception.logits(found), FIXTURE[f"{group}.logits_unbiased"])
