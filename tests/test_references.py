"""References of sets and of files, their cache, and the file of published weights."""

import hashlib
import http.client
import io
import urllib.error
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from unnoise.shared.errors import Notice, UsageError
from unnoise.shared.metrics import inception_weights as weights
from unnoise.shared.metrics import references
from unnoise.shared.metrics.features import Features
from unnoise.shared.metrics.frechet import Moments, frechet_of_moments
from unnoise.shared.metrics.images import image_measures
from unnoise.shared.metrics.inception import Inception, read_weights
from unnoise.shared.metrics.pixels import Pixels
from unnoise.shared.metrics.references import Reference, content_hash, read_reference, reference_of
from unnoise.shared.quantization import Quantization

Q = Quantization()


class Means(Features):
    """Means of the pixels of each channel, and four pixels as spatial features; counts the images it has seen."""

    name, resize, size = "means", "none", 3

    def __init__(self, digest: str = "0" * 12) -> None:
        self._digest, self.seen = digest, 0

    @property
    def digest(self) -> str:
        return self._digest

    def of(self, k: Tensor, quantization: Quantization) -> Tensor:
        self.seen += len(k)
        return k.float().mean((2, 3))

    def with_spatial(self, k: Tensor, quantization: Quantization) -> tuple[Tensor, Tensor]:
        return self.of(k, quantization), k[:, 0, :2, :2].flatten(1).float()


def images(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 4, 4), dtype=torch.uint8, generator=generator)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("UNNOISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(references, "SPATIAL_SIZE", 4)
    return tmp_path / "cache"


def test_content_hash_is_of_values():
    k = images(230, 0)
    assert content_hash(k) == content_hash(k.long()) == content_hash(k.int())
    changed = k.clone()
    changed[229, 0, 0, 0] ^= 1
    hashes = [content_hash(x) for x in (k, changed, k.flip(0), k.view(230, 3, 2, 8), k.long() + 256, k[:229])]
    assert len(set(hashes)) == 6
    assert len(hashes[0]) == 12


def test_features_are_computed_once(cache):
    first, again, other, levels = Means(), Means(), Means("1" * 12), Means()
    a = reference_of(first, images(120, 0), Q, "train")
    b = reference_of(again, images(120, 0).long(), Q, "train once more")
    assert (first.seen, again.seen) == (120, 0)
    assert torch.equal(a.features, images(120, 0).float().mean((2, 3)))
    assert (b.name, b.digest, b.count) == ("train once more", a.digest, 120)
    for one, two in ((a.moments, b.moments), (a.spatial, b.spatial)):
        assert torch.equal(one.mean, two.mean)
        assert torch.equal(one.factor, two.factor)
        assert one.count == two.count == 120
    assert torch.equal(a.features, b.features)
    assert torch.allclose(a.spatial.mean, images(120, 0)[:, 0, :2, :2].flatten(1).double().mean(0))
    reference_of(other, images(120, 0), Q, "train")
    reference_of(levels, images(120, 0), Quantization(300), "train")
    reference_of(changed := Means(), images(120, 1), Q, "train")
    assert (other.seen, levels.seen, changed.seen) == (120, 120, 120)
    assert len(list((cache / "references").glob("*.safetensors"))) == 4
    assert not list((cache / "references").glob("*.part"))


def test_damaged_features_are_computed_again(cache):
    reference_of(Means(), images(20, 0), Q, "train")
    (path,) = (cache / "references").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(Notice, match="the features of train: .* is damaged .* and computed again"):
        reference_of(extractor := Means(), images(20, 0), Q, "train")
    assert extractor.seen == 20
    reference_of(extractor := Means(), images(20, 0), Q, "train")
    assert extractor.seen == 0


def test_no_cache(cache, monkeypatch):
    (cache.parent / "file").write_text("")
    monkeypatch.setenv("UNNOISE_CACHE", str(cache.parent / "file" / "in"))
    with pytest.warns(Notice, match="features of train: computed at every start, because .* cannot be written"):
        found = reference_of(Means(), images(20, 0), Q, "train")
    monkeypatch.setenv("UNNOISE_CACHE", "none")
    for extractor in (Means(), Pixels()):
        reference_of(extractor, images(20, 0), Q, "train")
    assert torch.equal(reference_of(Means(), images(20, 0), Q, "train").moments.mean, found.moments.mean)
    assert not cache.exists()


def test_a_reference_has_two_images():
    with pytest.raises(UsageError, match="train: a reference needs at least 2 images, and this set has 1"):
        reference_of(Means(), images(1, 0), Q, "train")


def moments(seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    x = torch.randn(30, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x.mean(0).numpy(), x.T.cov().numpy()


def test_statistics_of_edm_and_pytorch_fid(tmp_path):
    path = tmp_path / "cifar10-32x32.npz"
    mu, sigma = moments(0, 3)
    np.savez(path, mu=mu, sigma=sigma)
    found = read_reference(path, Means())
    assert (found.name, found.count, found.features, found.spatial) == ("cifar10-32x32.npz", 0, None, None)
    assert np.allclose(found.moments.mean, mu, rtol=1e-12)
    assert np.allclose(found.moments.covariance, sigma, rtol=1e-8)
    np.savez_compressed(tmp_path / "again.npz", sigma=sigma, mu=mu, more=np.zeros(2))
    assert read_reference(tmp_path / "again.npz", Means()).digest == found.digest, "that of the statistics"
    np.savez(tmp_path / "other.npz", mu=mu + 1, sigma=sigma)
    assert read_reference(tmp_path / "other.npz", Means()).digest != found.digest
    (measured,) = image_measures(Means(), images(50, 1), Q, found)
    exact = frechet_of_moments(Moments.of(images(50, 1).float().mean((2, 3))), found.moments)
    assert measured.value == pytest.approx(exact, rel=1e-12)
    assert measured.protocol.reference == "cifar10-32x32.npz"


def test_statistics_and_images_of_adm(tmp_path):
    """Distances are to the statistics in the file, and the measures of neighbors to its images."""
    path, k = tmp_path / "VIRTUAL_lsun.npz", images(30, 5)
    (mu, sigma), (mu_s, sigma_s) = moments(0, 3), moments(1, 4)
    shown = k.permute(0, 2, 3, 1).numpy()
    np.savez(path, arr_0=shown, mu=mu, sigma=sigma, mu_s=mu_s, sigma_s=sigma_s)
    found = read_reference(path, Means())
    assert (found.count, found.moments.count) == (30, 0)
    assert torch.equal(found.features, k.float().mean((2, 3)))
    assert np.allclose(found.moments.mean, mu)
    assert np.allclose(found.spatial.mean, mu_s)
    names = {m.name: m.value for m in image_measures(Means(), k, Q, found)}
    assert {"frechet_means", "sfid_means", "kid_means", "recall_means"} <= names.keys()
    assert names["coverage_means"] == 1.0
    assert names["frechet_means"] > 1
    np.savez(tmp_path / "samples.npz", shown, np.arange(30))
    alone = read_reference(tmp_path / "samples.npz", Means())
    assert torch.allclose(alone.moments.mean, k.double().mean((0, 2, 3)))
    assert torch.allclose(alone.spatial.mean, k[:, 0, :2, :2].flatten(1).double().mean(0)), "rows and columns in order"
    assert alone.digest != found.digest


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros(3)}, "has x: reference statistics are mu and sigma, or images arr_0"),
        ({"mu": np.zeros(3)}, "has mu alone: reference statistics are mu and sigma"),
        ({"mu": np.zeros(7), "sigma": np.eye(7)}, r"shape \(7,\): statistics of features of size 3 are needed"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"mu and sigma in .*bad.npz: a mean of shape \(3,\)"),
        ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "mu and sigma in .* infinite or NaN"),
        ({"arr_0": np.zeros((4, 3, 8, 8), np.uint8)}, r"arr_0 in .* is uint8 of shape \(4, 3, 8, 8\)"),
        ({"arr_0": np.zeros((4, 8, 8, 3), np.float32)}, "arr_0 in .* is float32 .*: give at least 2 images"),
        ({"mu": np.array([{}]), "sigma": np.eye(3)}, "cannot be read .*: give the .npz file of ADM"),
    ],
)
def test_bad_statistics(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UsageError, match=message):
        read_reference(tmp_path / "bad.npz", Means())


def test_files_that_are_no_statistics(tmp_path):
    (tmp_path / "bad.npz").write_bytes(b"PK\3\4 cut off")
    for name in ("bad.npz", "missing.npz"):
        with pytest.raises(UsageError, match=f"{name} cannot be read"):
            read_reference(tmp_path / name, Means())
    np.savez(tmp_path / "of_inception.npz", mu=np.zeros(100), sigma=np.eye(100))
    with pytest.raises(UsageError, match="has features of size 100, and pixels has 48"):
        image_measures(Pixels(), images(4, 0), Q, read_reference(tmp_path / "of_inception.npz", Pixels()))


class Answer(io.BytesIO):
    """What an address answers."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.headers = {"Content-Length": str(len(content))}


class CutOff(Answer):
    """An answer of which the connection breaks."""

    def read(self, *size: int) -> bytes:
        raise http.client.IncompleteRead(b"")


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(weights, "SHA256", hashlib.sha256(b"good").hexdigest())
    return tmp_path / "hub" / "checkpoints"


def test_weights_are_downloaded_once(cache, hub, monkeypatch):
    asked = []

    def open_(address: str, timeout: float) -> Answer:
        asked.append(address)
        if len(asked) == 1:
            raise urllib.error.URLError("no route to host")
        return Answer(b"good")

    monkeypatch.setattr(weights, "urlopen", open_)
    labels = []

    def progress(items, total, label):
        labels.append(label)
        return items

    path = weights.inception_weights(progress)
    assert asked == list(weights.ADDRESSES), "the second where the first does not answer"
    assert labels == ["downloading FID's Inception v3 (MB)"]
    assert path == cache / "metrics" / "pt_inception-2015-12-05-6726825d.pth"
    assert weights.inception_weights() == path
    assert len(asked) == 2
    path.write_bytes(b"bad")
    with pytest.raises(UsageError, match=f"pth has the SHA-256 {hashlib.sha256(b'bad').hexdigest()[:8]}.*: delete it"):
        weights.inception_weights()


def test_weights_of_other_packages_are_found(hub):
    hub.mkdir(parents=True)
    path = hub / "weights-inception-2015-12-05-6726825d.pth"
    path.write_bytes(b"good")
    assert weights.inception_weights() == path


def test_no_network(cache, hub, monkeypatch):
    """One line says what to fetch, where to put it, and what needs no weights."""
    monkeypatch.setattr(weights, "urlopen", lambda *a, **k: (_ for _ in ()).throw(urllib.error.URLError("no network")))
    with pytest.raises(UsageError) as error:
        Inception()
    message = str(error.value)
    assert "\n" not in message
    for part in (*weights.ADDRESSES, str(cache / "metrics"), "(no network)", "--features judge"):
        assert part in message
    monkeypatch.setattr(weights, "urlopen", lambda *a, **k: CutOff(b""))
    with pytest.raises(UsageError, match=r"cannot be downloaded \(IncompleteRead"):
        weights.inception_weights()
    monkeypatch.setattr(weights, "urlopen", lambda *a, **k: Answer(b"a page to log in"))
    with pytest.raises(UsageError, match=r"cannot be downloaded \(a file with the SHA-256"):
        weights.inception_weights()
    assert not list((cache / "metrics").iterdir()), "nothing is left behind"
    monkeypatch.setenv("UNNOISE_CACHE", "none")
    with pytest.raises(UsageError, match=str(hub)):
        weights.inception_weights()


def test_a_file_of_code_is_not_run(tmp_path, hub):
    """Only tensors are read of the file of weights."""

    class Hostile:
        def __reduce__(self):
            return (warnings.warn, ("ran",))

    torch.save(Hostile(), tmp_path / "bad.pth")
    with pytest.raises(UsageError, match=r"bad.pth cannot be read"):
        read_weights(tmp_path / "bad.pth")


def test_moments_are_computed_on_demand(monkeypatch):
    reference = reference_of(Pixels(), images(20, 0), Q, "train")
    assert isinstance(reference, Reference)
    assert reference.known is None
    monkeypatch.setattr(references.Moments, "of", lambda x: pytest.fail("the memorized share needs no moments"))
    image_measures(Pixels(), images(5, 1), Q, reference, which=["memorized"])
