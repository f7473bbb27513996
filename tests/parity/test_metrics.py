"""Measures of torch-fidelity, dgm-eval and prdc on the same features and logits, in float64."""

import pytest
import torch
from helpers import Fixture, assert_close

from unnoise.shared.metrics import frechet_distance
from unnoise.shared.metrics.frechet import Moments, frechet_of_moments
from unnoise.shared.metrics.inception_score import inception_score
from unnoise.shared.metrics.kernel import kernel_distance, kernel_distance_of_subsets
from unnoise.shared.metrics.neighbors import neighbor_measures, radii

FIXTURE = Fixture("metrics")
READS = (
    "real|fake|logits|(real|fake)_lattice",
    r"fid\.(mean|cov)_(real|fake)",
    r"fid\.(eigenvalues|matrix_root|few\.eigenvalues|same\.(eigenvalues|matrix_root))",
    r"kid\.(subset_values|subset_rows_(real|fake)|mean|std)",
    r"kid\.whole\.unbiased(\.dgm_eval)?",
    r"isc\.splits\d+\.(in_order|shuffled)\.(mean|std)",
    r"isc\.permutation",
    r"prdc\.(lattice\.)?k\d\.((precision|recall)\.torch_fidelity|(density|coverage)\.prdc|radii_(real|fake))",
    r"prdc\.k\d\.(precision|recall)\.prdc",
)
REAL, FAKE = FIXTURE["real"], FIXTURE["fake"]


def test_frechet_distance():
    """By the eigenvalues of the product of the covariances, and by the root of that matrix."""
    found = frechet_distance(REAL, FAKE)
    for way in ("eigenvalues", "matrix_root"):
        assert found == pytest.approx(float(FIXTURE[f"fid.{way}"]), rel=1e-10)
        assert frechet_distance(REAL, REAL) == pytest.approx(float(FIXTURE[f"fid.same.{way}"]), abs=1e-6)
    assert frechet_distance(REAL[:12], FAKE[:12]) == pytest.approx(float(FIXTURE["fid.few.eigenvalues"]), abs=1e-6)


def test_it_is_a_function_of_mean_and_covariance():
    """Other features with the peer's means and covariances are as far apart, and so are these numbers themselves."""
    made, moments = [], []
    for name, features in (("real", REAL), ("fake", FAKE)):
        mean, covariance = FIXTURE[f"fid.mean_{name}"], FIXTURE[f"fid.cov_{name}"]
        assert_close(features.mean(0), mean, 1e-10)
        assert_close(Moments.of(features).covariance, covariance, 1e-10)
        draws = torch.randn(40, len(mean), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        white = torch.linalg.qr(draws - draws.mean(0)).Q * 39**0.5  # mean 0 and covariance I
        made.append(mean + white @ torch.linalg.cholesky(covariance).T)
        moments.append(Moments.of_covariance(mean, covariance))
    assert frechet_distance(*made) == pytest.approx(float(FIXTURE["fid.eigenvalues"]), rel=1e-10)
    assert frechet_of_moments(*moments) == pytest.approx(float(FIXTURE["fid.eigenvalues"]), rel=1e-10)


def test_kernel_distance():
    rows = list(zip(FIXTURE["kid.subset_rows_real"], FIXTURE["kid.subset_rows_fake"], strict=True))
    values = torch.tensor([kernel_distance(REAL[a], FAKE[b]) for a, b in rows], dtype=torch.float64)
    assert_close(values, FIXTURE["kid.subset_values"], 1e-10)
    found = kernel_distance_of_subsets(REAL, FAKE, rows)
    assert found.mean == pytest.approx(float(FIXTURE["kid.mean"]), rel=1e-10)
    assert found.deviation == pytest.approx(float(FIXTURE["kid.std"]), rel=1e-10)
    count = len(FAKE)  # both sets have as many rows there
    for name in ("unbiased", "unbiased.dgm_eval"):
        assert kernel_distance(REAL[:count], FAKE) == pytest.approx(float(FIXTURE[f"kid.whole.{name}"]), rel=1e-10)


@pytest.mark.parametrize("splits", [1, 5, 10])
def test_inception_score(splits):
    """Of 203 images, which neither 5 nor 10 divide."""
    for order, rows in (("in_order", torch.arange(203)), ("shuffled", FIXTURE["isc.permutation"])):
        found = inception_score(FIXTURE["logits"][rows], splits)
        assert found.mean == pytest.approx(float(FIXTURE[f"isc.splits{splits}.{order}.mean"]), rel=1e-10)
        assert found.deviation == pytest.approx(float(FIXTURE[f"isc.splits{splits}.{order}.std"]), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("k", [3, 5])
@pytest.mark.parametrize("lattice", [False, True])
def test_neighbors(lattice, k):
    """On the integer lattice many distances are equal, and the border of a ball counts."""
    real, fake = (FIXTURE["real_lattice"], FIXTURE["fake_lattice"]) if lattice else (REAL, FAKE)
    where = f"prdc.lattice.k{k}" if lattice else f"prdc.k{k}"
    assert_close(radii(real, k), FIXTURE[f"{where}.radii_real"], 1e-10)
    assert_close(radii(fake, k), FIXTURE[f"{where}.radii_fake"], 1e-10)
    found = neighbor_measures(fake, real, k, k)
    for name, peer in (("precision", "torch_fidelity"), ("recall", "torch_fidelity"), ("density", "prdc")):
        of_peer = float(FIXTURE[f"{where}.{name}.{peer}"])  # torch-fidelity averages in float32
        assert getattr(found, name) == pytest.approx(of_peer, abs=1e-7 if peer == "torch_fidelity" else 1e-12)
    assert found.coverage == pytest.approx(float(FIXTURE[f"{where}.coverage.prdc"]), abs=1e-12)
    if not lattice:  # prdc leaves the border out
        for name in ("precision", "recall"):
            assert getattr(found, name) == pytest.approx(float(FIXTURE[f"{where}.{name}.prdc"]), abs=1e-12)
