"""Features of DINOv2 and CLIP, with tiny networks of random weights where `transformers` is installed."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unnoise.shared.errors import UsageError
from unnoise.shared.metrics.pixels import Pixels
from unnoise.shared.metrics.transformers_features import KINDS, TransformersFeatures, features_named
from unnoise.shared.quantization import Quantization

Q = Quantization()
IMAGES = torch.randint(0, 256, (3, 3, 40, 30), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module", params=list(KINDS))
def model(request, tmp_path_factory) -> tuple[str, Path]:
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    if request.param == "dinov2":
        network = transformers.Dinov2Model(transformers.Dinov2Config(patch_size=56, image_size=112, **SMALL))
    else:
        config = transformers.CLIPVisionConfig(
            patch_size=56, image_size=224, intermediate_size=32, projection_dim=8, **SMALL
        )
        network = transformers.CLIPVisionModelWithProjection(config)
    network.save_pretrained(folder)
    return request.param, folder


def test_features(model):
    """Images are resized as Pillow does, but for its rounding to 8 bits, and normalized."""
    kind, folder = model
    extractor = TransformersFeatures(kind, str(folder))
    found = extractor.of(IMAGES, Q)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()).resize((224, 224), Image.BICUBIC) for image in IMAGES]
    x = torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2) / 255
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in KINDS[kind][3:])
    outputs = extractor.network(pixel_values=(x - mean) / deviation)
    expected = outputs.last_hidden_state[:, 0] if kind == "dinov2" else outputs.image_embeds
    assert found.shape == (3, extractor.size)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 0.02 * (found - found.mean(0)).abs().max()
    assert (extractor.name, extractor.resize) == (kind, "bicubic to 224 x 224, with smoothing")
    assert TransformersFeatures(kind, str(folder)).digest == extractor.digest
    gray = extractor.of(IMAGES[:, :1], Q)
    assert torch.equal(gray, extractor.of(IMAGES[:, :1].expand(-1, 3, -1, -1), Q))


def test_a_model_that_is_not_there(tmp_path):
    pytest.importorskip("transformers", exc_type=ImportError)
    with pytest.raises(UsageError, match=r"cannot be read .*: fetch it elsewhere") as error:
        TransformersFeatures("dinov2", str(tmp_path))
    assert "\n" not in str(error.value)


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    for name in KINDS:
        with pytest.raises(UsageError, match=r"pip install 'unnoise\[features\]'"):
            features_named(name)


def test_names():
    assert isinstance(features_named("pixels"), Pixels)
    with pytest.raises(UsageError, match="dino is not the name of image features: choose from inception, dinov2, clip"):
        features_named("dino")
