"""Names of sets: bundled, a folder, on the Hub, or none of these, which is said at once."""

import shutil
import time

import datasets
import pytest
from PIL import Image

from unnoise.shared.data import image_dataset, sources
from unnoise.shared.errors import UsageError


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("photo", "there is no folder photo, and the Hub, .* cannot be reached .*: did you mean photos"),
        ("photos/cots", "there is no folder photos/cots, and .*: did you mean photos/cats"),
        (
            "nobody/nothing",
            "there is no folder nobody/nothing, and .*: give the path of an existing one, or a bundled data set",
        ),
        ("digit", "there is no folder digit, and .*: did you mean digits"),
        ("some thing", "there is no folder some thing, and the Hub has no data set of that name"),
        ("a/b/c", "there is no folder a/b/c: give the path of one that exists"),
        ("./gone", "there is no folder ./gone: give the path"),
        ("a\\b", r"there is no folder a\\b: give the path"),
        ("gone.zip", "there is no file gone.zip, and"),
    ],
)
def test_a_name_that_nothing_has_is_said_at_once(tmp_path, monkeypatch, capfd, name, said):
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    start = time.perf_counter()
    with pytest.raises(UsageError, match=f"^{said}"):
        image_dataset(name)
    assert time.perf_counter() - start < 5
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("online", "cached"), [(True, True), (False, True), (False, False)])
def test_the_hub_is_asked_once_and_the_cache_else(monkeypatch, online, cached):
    """A set that the Hub has is loaded as ever; if it cannot be reached, from the cache."""
    offline = []

    def load(name, split):
        offline.append(datasets.config.HF_HUB_OFFLINE)
        if not cached:
            raise ConnectionError(name)
        return name, split

    def info(self, name, timeout):
        if not online:
            raise OSError("no route\nto host")

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", info)
    if cached:
        assert sources.load("some/set", "test") == ("some/set", "test")
    else:
        with pytest.raises(
            sources.Absent, match=r"there is no folder some/set, and the Hub, .* cannot be reached \(no route\): give"
        ):
            sources.load("some/set", "test")
    assert offline == [not online]
    assert datasets.config.HF_HUB_OFFLINE is False


def test_bundled_sets_load_wherever_the_package_lies(tmp_path, monkeypatch):
    home = tmp_path / "[a] b*"
    shutil.copytree(sources.BUNDLED, home)
    whole = image_dataset("digits", split="test")
    monkeypatch.setattr(sources, "BUNDLED", home)
    monkeypatch.chdir(tmp_path)
    again = image_dataset("digits", split="test")
    assert (again.k == whole.k).all()
    assert again.summary == whole.summary
    (tmp_path / "digits").mkdir()
    Image.new("L", (1, 1)).save(tmp_path / "digits" / "a.png")
    assert (
        "the local folder digits is not read; give ./digits to read it" in image_dataset("digits", split="test").summary
    )
    assert image_dataset("./digits").k.tolist() == [[[[0]]]]
