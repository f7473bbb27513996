import math
import re

import pytest
import torch

from unnoise.shared.errors import UsageError
from unnoise.shared.metrics.mauve import area_under, components, divergence_curve, k_means, mauve


def curve_of(p, q, points=25, scale=5.0):
    p, q = (torch.tensor(x, dtype=torch.float64) for x in (p, q))
    return divergence_curve(p, q, scale, points)


def test_the_curve_is_that_of_the_paper():
    p, q = [0.5, 0.3, 0.2], [0.1, 0.6, 0.3]
    curve = curve_of(p, q, points=5, scale=2.0)
    assert curve[0].tolist() == [1, 0]
    assert curve[-1].tolist() == [0, 1]
    for row, w in zip(curve[1:-1], torch.linspace(1e-6, 1 - 1e-6, 5).tolist(), strict=True):
        r = [w * a + (1 - w) * b for a, b in zip(p, q, strict=True)]
        inner = [sum(x * math.log(x / m) for x, m in zip(xs, r, strict=True)) for xs in (q, p)]
        assert row.tolist() == pytest.approx([math.exp(-2 * kl) for kl in inner], rel=1e-6)


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_closed_forms(scale):
    equal = [0.2, 0.0, 0.8]
    assert area_under(curve_of(equal, equal, scale=scale)) == pytest.approx(1)
    # Of disjoint distributions the curve is ((1 - w)^c, w^c), with the area Gamma(c + 1)^2 / Gamma(2 c + 1).
    limit = math.gamma(scale + 1) ** 2 / math.gamma(2 * scale + 1)
    assert area_under(curve_of([1.0, 0, 0], [0, 0.5, 0.5], 20_000, scale)) == pytest.approx(limit, rel=1e-5)
    assert area_under(curve_of([1.0, 0, 0], [0, 0.5, 0.5], 25, scale)) == pytest.approx(limit, rel=0.08)


def test_symmetric_and_monotone():
    p, q = [0.5, 0.3, 0.2], [0.1, 0.6, 0.3]
    assert area_under(curve_of(p, q)) == pytest.approx(area_under(curve_of(q, p)))
    mixed = [[a * x + (1 - a) * y for x, y in zip(p, q, strict=True)] for a in (0, 0.25, 0.5, 0.75, 1)]
    areas = [area_under(curve_of(m, p)) for m in mixed]
    assert areas == sorted(areas)
    assert areas[-1] == pytest.approx(1)
    assert areas[0] < 0.9


def blobs(count, centers, generator):
    places = torch.tensor(centers, dtype=torch.float64)[torch.arange(count) % len(centers)]
    return places + 0.01 * torch.randn(count, 2, generator=generator, dtype=torch.float64)


def test_clusters_are_found(generator):
    x = blobs(60, [(0, 1), (1, 0), (1, 1)], generator)
    labels, inertia = min((k_means(x, 3, generator) for _ in range(5)), key=lambda found: found[1])
    assert all(len(labels[i::3].unique()) == 1 for i in range(3))
    assert len(labels.unique()) == 3
    means = torch.stack([x[labels == k].mean(0) for k in range(3)])
    assert inertia == pytest.approx(float(((x - means[labels]) ** 2).sum()))


def test_features(generator):
    a, b = (blobs(100, [(0, 1), (1, 0)], generator) for _ in range(2))
    assert mauve(a, a).area == pytest.approx(1)
    assert mauve(a, b, clusters=2).area == pytest.approx(1)  # half in each cluster, in both
    far = blobs(100, [(-1, -1)], generator)
    found = mauve(far, a, clusters=3)
    assert found.area == pytest.approx(area_under(curve_of([1.0, 0, 0], [0, 0.5, 0.5])))
    assert mauve(far, a, clusters=3).area == found.area
    half = torch.cat([far[:50], a[:50]])
    assert found.area < mauve(half, a, clusters=3).area < 1
    assert mauve(a, b).clusters == 10
    assert mauve(a, torch.cat([a, b]), clusters=2).area == pytest.approx(1)  # frequencies, whatever the sizes
    # Clusters are those of directions, since features are scaled to length one.
    assert mauve(100 * a, b, clusters=2).area == pytest.approx(1)


def test_the_best_of_the_restarts_is_taken(generator, monkeypatch):
    labels = torch.arange(8) % 2
    found = iter([(labels * 0, 3.0), (labels, 1.0), (torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), 2.0)])
    monkeypatch.setattr("unnoise.shared.metrics.mauve.k_means", lambda x, number, generator: next(found))
    x = torch.randn(4, 3, generator=generator)
    p = [0.5, 0.5]
    assert mauve(x, x, clusters=2, restarts=3).area == pytest.approx(area_under(curve_of(p, p)))
    assert next(found, None) is None
    found = iter([(torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), 1.0), (labels, 2.0)])
    assert mauve(x, x, clusters=2, restarts=2).area < 0.01


def test_components_keep_the_share_of_the_variance(generator):
    x = torch.randn(50, 4, generator=generator, dtype=torch.float64) * torch.tensor([5.0, 1, 0.1, 0.01])
    scaled = x / x.norm(dim=1, keepdim=True)
    assert components(x, 0.5).shape == (50, 1)
    everything = components(x, 1.0)
    torch.testing.assert_close(torch.cdist(everything, everything), torch.cdist(scaled, scaled))


@pytest.mark.parametrize(
    ("samples", "options", "words"),
    [
        (torch.zeros(1, 2), {}, r"samples of shape \(1, 2\): give features"),
        (torch.zeros(3, 5), {}, r"reference of shape \(3, 2\)"),
        (torch.full((3, 2), math.nan), {}, "samples contain NaN or infinity"),
        (torch.zeros(3, 2), {"clusters": 7}, "clusters=7: give a number from 1 to 6"),
    ],
)
def test_bad_features_are_refused_in_one_line(samples, options, words):
    with pytest.raises(UsageError, match=words) as error:
        mauve(samples, torch.ones(3, 2), **options)
    assert re.fullmatch(".*", str(error.value))
