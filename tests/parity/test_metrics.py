"""The Frechet distance of toshas/torch-fidelity and layer6ai-labs/dgm-eval, in float64."""

import pytest
import torch
from helpers import Fixture, assert_close

from unnoise.shared.metrics import frechet_distance

FIXTURE = Fixture("metrics")
READS = (
    "real|fake",
    r"fid\.(mean|cov)_(real|fake)",
    r"fid\.(eigenvalues|matrix_root|few\.eigenvalues|same\.(eigenvalues|matrix_root))",
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
    """Other features with the peer's means and covariances are as far apart."""
    made = []
    for name, features in (("real", REAL), ("fake", FAKE)):
        mean, covariance = FIXTURE[f"fid.mean_{name}"], FIXTURE[f"fid.cov_{name}"]
        assert_close(features.mean(0), mean, 1e-10)
        assert_close(features.T.cov(), covariance, 1e-10)
        draws = torch.randn(40, len(mean), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        white = torch.linalg.qr(draws - draws.mean(0)).Q * 39**0.5  # mean 0 and covariance I
        made.append(mean + white @ torch.linalg.cholesky(covariance).T)
    assert frechet_distance(*made) == pytest.approx(float(FIXTURE["fid.eigenvalues"]), rel=1e-10)
