"""Settings of the test run."""

import os
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"  # the tests need no network
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="unnoise-hf-")
os.environ["UNNOISE_CACHE"] = tempfile.mkdtemp(prefix="unnoise-cache-")
os.environ["MPLBACKEND"] = "agg"

import pytest
import torch
from decoded_once import decoded_once

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def digits_decoded_once():
    with decoded_once("digits"):
        yield
