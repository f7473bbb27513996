"""Measures of images: direct computations, known limits, protocols, and bad input."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from unnoise.shared.errors import UsageError
from unnoise.shared.metrics.features import Features
from unnoise.shared.metrics.frechet import Moments, frechet_distance, frechet_of_moments
from unnoise.shared.metrics.images import image_measures, measures_on
from unnoise.shared.metrics.inception_score import inception_score
from unnoise.shared.metrics.kernel import drawn_subsets, kernel_distance, kernel_distance_of_subsets
from unnoise.shared.metrics.measurement import Origin
from unnoise.shared.metrics.neighbors import memorized, nearest_neighbors, neighbor_measures
from unnoise.shared.metrics.pixels import Pixels
from unnoise.shared.metrics.references import Reference, reference_of
from unnoise.shared.metrics.resizing import tensorflow_bilinear
from unnoise.shared.quantization import Quantization

Q = Quantization(16)


class Projection(Features):
    """Random projections of the pixels, with class logits and spatial features."""

    name, resize, size = "projection", "none", 5

    def __init__(self, d: int = 5) -> None:
        self.w = torch.randn(12, d, generator=torch.Generator().manual_seed(3)) / 10

    @property
    def digest(self) -> str:
        return f"w{self.w.shape[1]}"

    def of(self, k: Tensor, quantization: Quantization) -> Tensor:
        return k.flatten(1).float() @ self.w

    def with_spatial(self, k: Tensor, quantization: Quantization) -> tuple[Tensor, Tensor]:
        return self.of(k, quantization), k.flatten(1).float()[:, :4]

    def logits(self, features: Tensor) -> Tensor:
        return features[:, :3]


def images(count: int, seed: int, low: int = 0) -> Tensor:
    return torch.randint(low, 16, (count, 3, 2, 2), generator=torch.Generator().manual_seed(seed))


def features(count: int, seed: int, shift: float = 0.0, d: int = 4) -> Tensor:
    return shift + torch.randn(count, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


REAL, FAKE = features(40, 0), features(30, 1, 0.4)


def kernel(x: np.ndarray, y: np.ndarray) -> float:
    return (float(x @ y) / len(x) + 1) ** 3


def test_resize_by_loops():
    """Output pixel i is read at i * in / out; torch's own resize shifts it by half a pixel."""
    image = images(1, 5).float()
    found = tensorflow_bilinear(image, 5, 3)
    for c, y, x in np.ndindex(3, 5, 3):
        at_y, at_x = y * 2 / 5, x * 2 / 3
        weights = {}
        for i, j in np.ndindex(2, 2):
            near = max(0.0, 1 - abs(at_y - i)) if at_y < 1 else float(i == 1)
            beside = max(0.0, 1 - abs(at_x - j)) if at_x < 1 else float(j == 1)
            weights[i, j] = near * beside
        value = sum(w * image[0, c, i, j].item() for (i, j), w in weights.items())
        assert found[0, c, y, x].item() == pytest.approx(value, abs=1e-4)


def test_kernel_distance_by_loops(monkeypatch):
    """In blocks of a few rows."""
    monkeypatch.setattr("unnoise.shared.metrics.kernel.BLOCK_BYTES", 8 * 40 * 7)
    a, b = REAL.numpy(), FAKE.numpy()
    within = [np.mean([kernel(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j]) for x in (a, b)]
    across = np.mean([kernel(x, y) for x in a for y in b])
    assert kernel_distance(REAL, FAKE) == pytest.approx(sum(within) - 2 * across, rel=1e-8)


def test_kernel_distance_is_zero_on_average_for_equal_distributions():
    values = [kernel_distance(features(60, 2 * i), features(40, 2 * i + 1)) for i in range(200)]
    assert abs(np.mean(values)) < 4 * np.std(values) / math.sqrt(200)


def test_subsets_are_drawn_without_replacement():
    rows = drawn_subsets(40, 30, torch.Generator().manual_seed(0), subsets=7, size=1000)
    assert len(rows) == 7
    assert all(len(a.unique()) == len(b.unique()) == 30 for a, b in rows), "as many as the smaller set has"
    assert len({tuple(a.tolist()) for a, _ in rows}) == 7
    values = [kernel_distance(REAL[a], FAKE[b]) for a, b in rows]
    found = kernel_distance_of_subsets(REAL, FAKE, rows)
    assert found == pytest.approx((np.mean(values), np.std(values)), rel=1e-10)


def test_inception_score_by_loops():
    logits = features(23, 4, d=6)
    p = np.exp(logits.numpy())
    p /= p.sum(1, keepdims=True)
    scores = []
    for i in range(4):
        part = p[i * 23 // 4 : (i + 1) * 23 // 4]
        scores.append(math.exp(np.mean([np.sum(q * np.log(q / part.mean(0))) for q in part])))
    assert inception_score(logits, 4) == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-8)
    sure = torch.eye(5).repeat(4, 1) * 1000
    assert inception_score(sure, 4).mean == pytest.approx(5), "each of 5 classes once: the largest score"


def distances(a: Tensor, b: Tensor) -> np.ndarray:
    return np.array([[math.dist(x, y) for y in b.tolist()] for x in a.tolist()])


def test_neighbor_measures_by_loops(monkeypatch):
    """In blocks of a few rows."""
    monkeypatch.setattr("unnoise.shared.metrics.neighbors.BLOCK_BYTES", 8 * 40 * 7)

    def ball(x: Tensor, k: int) -> np.ndarray:
        return np.sort(distances(x, x), 1)[:, k]  # column 0 is the point itself

    apart = distances(FAKE, REAL)
    real, fake, wide = ball(REAL, 3), ball(FAKE, 3), ball(REAL, 5)
    found = neighbor_measures(FAKE, REAL, 3, 5)
    assert found.precision == pytest.approx(np.mean([(row <= real).any() for row in apart]), abs=1e-12)
    assert found.recall == pytest.approx(np.mean([(row <= fake).any() for row in apart.T]), abs=1e-12)
    assert found.density == pytest.approx(np.sum(apart < wide) / (5 * len(FAKE)), abs=1e-12)
    assert found.coverage == pytest.approx(np.mean(apart.min(0) < wide), abs=1e-12)
    assert 0 < found.precision < 1
    assert 0 < found.recall < 1


def test_nearest_training_examples():
    found, rows = nearest_neighbors(FAKE, REAL, 2)
    apart = distances(FAKE, REAL)
    assert np.array_equal(rows.numpy(), np.argsort(apart, 1)[:, :2])
    assert np.allclose(found.numpy(), np.sort(apart, 1)[:, :2], rtol=1e-12)
    assert (nearest_neighbors(1e3 + REAL, 1e3 + REAL)[0] == 0).all(), "the distance of an equal example is zero"


def test_memorized_share():
    """The distance to the nearest training example is at most a third of that to the second."""
    training = torch.tensor([[0.0], [4.0]])
    assert memorized(torch.tensor([[0.99], [1.01], [2.0], [3.9], [8.1], [-1.9], [-2.1], [0.0]]), training) == 4 / 8
    new = memorized(features(200, 8), features(200, 7))
    assert new < 0.2
    assert memorized(features(200, 7)[:50] + 0.01 * features(50, 9), features(200, 7)) > 0.9


def test_frechet_distance_of_two_halves_falls_with_their_size():
    """The bias of two sets from one distribution is about proportional to 1 / N."""
    means = []
    for count in (200, 400, 800):
        values = [frechet_distance(features(count, 2 * i, d=6), features(count, 2 * i + 1, d=6)) for i in range(40)]
        means.append(np.mean(values))
    assert means[0] / means[1] == pytest.approx(2, rel=0.25)
    assert means[1] / means[2] == pytest.approx(2, rel=0.25)


def test_moments_of_covariances():
    """Those of features, and singular ones, of which rounding errors are left out."""
    for a, b in ((REAL, FAKE), (REAL[:3], FAKE[:4])):
        exact = frechet_distance(a, b)
        given = [Moments.of_covariance(x.mean(0), x.T.cov()) for x in (a, b)]
        assert frechet_of_moments(*given) == pytest.approx(exact, rel=1e-8)
    wrong = (
        (torch.eye(4) * math.nan, "infinite or NaN"),
        (torch.eye(3), r"a covariance of shape \(3, 3\)"),
        (torch.eye(4) * torch.tensor([1, 1, 1, -0.1]), "not symmetric with eigenvalues of at least zero"),
        (torch.ones(4, 4).triu(), "not symmetric"),
    )
    for covariance, message in wrong:
        with pytest.raises(UsageError, match=message):
            Moments.of_covariance(torch.zeros(4), covariance)
    with pytest.raises(UsageError, match="of sizes 3 and 4"):
        frechet_of_moments(Moments.of(REAL[:, :3]), Moments.of(REAL))


@pytest.fixture(scope="module")
def reference() -> Reference:
    return reference_of(Projection(), images(60, 0), Q, "squares, train, 60 images")


def test_all_measures_of_images(reference):
    extractor, k, held_out = Projection(), images(40, 1, low=4), images(50, 2)
    found = {
        m.name: m
        for m in image_measures(extractor, k, Q, reference, held_out=(held_out, Q), origin=Origin(seed=7), seed=5)
    }
    x, real = extractor.of(k, Q), extractor.of(images(60, 0), Q)
    of_neighbors = neighbor_measures(x, real)
    rows = drawn_subsets(40, 60, torch.Generator().manual_seed(5))
    shuffled = x[torch.randperm(40, generator=torch.Generator().manual_seed(5)), :3]
    expected = {
        "frechet_projection": frechet_distance(x, real),
        "sfid_projection": frechet_distance(k.flatten(1)[:, :4].float(), images(60, 0).flatten(1)[:, :4].float()),
        "kid_projection": kernel_distance_of_subsets(x, real, rows).mean,
        "inception_score_projection": inception_score(shuffled).mean,
        "precision_projection": of_neighbors.precision,
        "recall_projection": of_neighbors.recall,
        "density_projection": of_neighbors.density,
        "coverage_projection": of_neighbors.coverage,
        "memorized_projection": memorized(x, real),
    }
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, rel=1e-9), name
        assert found[name].protocol.samples == 40
        assert found[name].protocol.features_hash == "w5"
        assert found[name].origin == Origin(seed=7)
        assert found[name].held_out is not None
    score = found["inception_score_projection"]
    assert score.protocol.reference == "", "it has no reference"
    assert score.error == pytest.approx(inception_score(shuffled).deviation / 3, rel=1e-9)
    assert score.protocol.settings == "10 splits of shuffled images, seed 5"
    assert found["kid_projection"].protocol.settings == "100 subsets of 40, seed 5"
    assert found["precision_projection"].protocol.settings == "k=3"
    assert found["coverage_projection"].protocol.settings == "k=5"
    assert found["frechet_projection"].protocol.reference == "squares, train, 60 images"
    p = of_neighbors.precision
    assert found["precision_projection"].error == pytest.approx(math.sqrt(p * (1 - p) / 40))


def test_real_data_are_measured_by_the_same_protocol(reference):
    """As many held-out images as samples, or a note."""
    extractor, held_out = Projection(), images(50, 2)
    (same,) = image_measures(extractor, held_out, Q, reference, held_out=(held_out, Q), which=["frechet"])
    assert same.value == pytest.approx(same.held_out, rel=1e-12)
    assert same.note == ""
    (few,) = image_measures(extractor, images(60, 1), Q, reference, held_out=(held_out, Q), which=["frechet"])
    assert few.held_out == pytest.approx(same.value, rel=1e-12)
    assert few.note == "real data: 50 images"
    (more,) = image_measures(extractor, images(30, 1), Q, reference, held_out=(held_out, Q), which=["frechet"], seed=4)
    chosen = held_out[torch.randperm(50, generator=torch.Generator().manual_seed(4))[:30]]
    assert more.held_out == pytest.approx(frechet_distance(extractor.of(chosen, Q), reference.features), rel=1e-6)
    assert more.note == ""
    (none,) = image_measures(extractor, images(60, 1), Q, reference, which=["frechet"])
    assert none.held_out is None


def test_distances_of_few_samples_are_marked(reference):
    (found,) = image_measures(Projection(), images(4, 1), Q, reference, which=["frechet"])
    assert found.note == "biased: fewer samples than features"
    small = reference_of(Projection(), images(4, 0), Q, "four")
    (found,) = image_measures(Projection(), images(4, 1), Q, small, which=["frechet"])
    assert found.note == "biased: fewer samples and reference examples than features"
    (found,) = image_measures(Projection(), images(5, 1), Q, reference, which=["frechet"])
    assert found.note == ""


def test_a_reference_of_statistics_has_distances_alone():
    moments = Moments.of(features(20, 0, d=5))
    reference = Reference("file.npz", "abc", 0, None, moments)
    assert measures_on(Projection(), reference) == ("frechet", "inception_score")
    (found, _) = image_measures(Projection(), images(40, 1), Q, reference)
    exact = frechet_of_moments(Moments.of(Projection().of(images(40, 1), Q)), moments)
    assert found.value == pytest.approx(exact, rel=1e-12)
    assert "sfid" not in measures_on(Pixels(), reference)
    assert measures_on(Pixels(), reference) == ("frechet",), "no logits"


def test_pixels_find_copies():
    training = images(60, 0)
    reference = reference_of(Pixels(), training, Q, "squares")
    given = torch.cat([training[:10], images(30, 1)])
    (found,) = image_measures(Pixels(), given, Q, reference, held_out=(images(50, 2), Q), which=["memorized"])
    assert (found.name, found.value, found.held_out) == ("memorized_pixels", 0.25, 0.0)
    assert Pixels().of(training, Q).max() == 1


@pytest.mark.parametrize(
    ("count", "which", "message"),
    [
        (0, None, "there are no images to measure"),
        (1, ["frechet"], "frechet needs at least 2 images, and there is 1: draw more"),
        (3, ["recall"], "recall needs at least 4 images, and there are 3"),
        (9, ["inception_score"], "inception_score needs at least 10 images"),
        (40, ["presicion"], "presicion is not a measure of images: did you mean precision"),
    ],
)
def test_bad_input(reference, count, which, message):
    with pytest.raises(UsageError, match=message):
        image_measures(Projection(), images(count, 1), Q, reference, which=which)


def test_bad_features(reference):
    class Broken(Projection):
        def with_spatial(self, k: Tensor, quantization: Quantization) -> tuple[Tensor, Tensor]:
            x, spatial = super().with_spatial(k, quantization)
            return x.log(), spatial

    with pytest.raises(UsageError, match="projection features of the images from number 0 are infinite or NaN"):
        image_measures(Broken(), images(40, 1), Q, reference)
    with pytest.raises(UsageError, match="has features of size 5, and projection has 6"):
        image_measures(Projection(6), images(40, 1), Q, reference)
    with pytest.raises(UsageError, match="kid cannot be measured on projection features against file.npz"):
        image_measures(
            Projection(), images(40, 1), Q, Reference("file.npz", "", 0, None, reference.moments), which=["kid"]
        )
    few = reference_of(Projection(), images(5, 0), Q, "five")
    with pytest.raises(UsageError, match="density needs at least 6 reference images, and five has 5"):
        image_measures(Projection(), images(40, 1), Q, few, which=["density"])
