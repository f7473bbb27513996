"""The same numbers as torchmetrics and torch-fidelity, where they can be imported."""

import pytest
import torch
from helpers import peer_state
from torch import Tensor, nn

from unnoise.shared.metrics.features import Features
from unnoise.shared.metrics.frechet import frechet_distance
from unnoise.shared.metrics.images import image_measures
from unnoise.shared.metrics.inception import Inception
from unnoise.shared.metrics.kernel import kernel_distance
from unnoise.shared.metrics.references import reference_of
from unnoise.shared.quantization import Quantization

Q = Quantization()
GENERATOR = torch.Generator().manual_seed(0)
REAL = torch.randint(0, 256, (60, 3, 4, 4), generator=GENERATOR).to(torch.uint8)
FAKE = (torch.randint(0, 256, (50, 3, 4, 4), generator=GENERATOR) // 2).to(torch.uint8)


class Means(Features):
    """Means of patches and logits of two classes."""

    name, resize, digest = "means", "", ""

    def of(self, k: Tensor, quantization: Quantization) -> Tensor:
        return k.float().unfold(3, 2, 2).mean((2, 4)).flatten(1) / 255


class Module(nn.Module):
    """The same as a network, as torchmetrics takes it."""

    num_features = 6

    def forward(self, k: Tensor) -> Tensor:
        return Means().of(k, Q)


def test_torchmetrics():
    image = pytest.importorskip("torchmetrics.image", exc_type=ImportError)
    distance = image.FrechetInceptionDistance(feature=Module())
    kernel = image.KernelInceptionDistance(feature=Module(), subsets=3, subset_size=50)
    for metric in (distance, kernel):
        metric.update(REAL[:50], real=True)
        metric.update(FAKE, real=False)
    reference = reference_of(Means(), REAL[:50], Q, "real")
    (found,) = image_measures(Means(), FAKE, Q, reference, which=["frechet"])
    assert found.value == pytest.approx(float(distance.compute()), rel=1e-3)  # it computes in float32
    of_all = kernel_distance(Means().of(REAL[:50], Q), Means().of(FAKE, Q))
    assert float(kernel.compute()[0]) == pytest.approx(of_all, rel=1e-4)


def test_torch_fidelity(tmp_path):
    pytest.importorskip("torch_fidelity", exc_type=ImportError)
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric

    state = peer_state("inception_fid")
    torch.save(state, tmp_path / "weights.pth")
    own = Inception(state)
    theirs = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(tmp_path / "weights.pth")
    )
    with torch.inference_mode():
        real, fake = (theirs.eval()(images[:10]) for images in (REAL, FAKE))
    assert torch.allclose(own.of(FAKE[:10], Q), fake[0], rtol=1e-4)
    few = [x[0][:, :8] for x in (fake, real)]  # it takes the roots of all eigenvalues
    expected = fid_statistics_to_metric(*map(fid_features_to_statistics, few), verbose=False)
    assert frechet_distance(*few) == pytest.approx(expected["frechet_inception_distance"], rel=1e-4)
    reference = reference_of(own, REAL[:10], Q, "real")
    (score,) = image_measures(own, FAKE[:10], Q, reference, which=["inception_score"])
    scores = isc_features_to_metric(fake[1], splits=10, shuffle=False)
    assert score.value == pytest.approx(scores["inception_score_mean"], rel=1e-5)
