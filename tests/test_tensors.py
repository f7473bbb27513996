"""Real-valued data: files of arrays, their scale, their splits, and batches of them."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from unnoise.shared.code_length import total_nats
from unnoise.shared.data import Batches
from unnoise.shared.data.array_files import arrays_in
from unnoise.shared.data.tensors import TensorDataset, pooled, pooled_size, standardization_of, tensor_dataset
from unnoise.shared.errors import UsageError
from unnoise.shared.serialization import deserialize, serialize
from unnoise.shared.standardization import Standardization

X = (5 + 3 * torch.randn(40, 2, 3, 4, generator=torch.Generator().manual_seed(0))).half()
LABEL = torch.arange(40) % 3


def write_npy(path: Path) -> Path:
    np.save(path / "x.npy", X.numpy())
    return path / "x.npy"


def write_npz(path: Path) -> Path:
    np.savez(path / "x.npz", x=X.numpy(), label=LABEL.numpy())
    return path / "x.npz"


def write_samples(path: Path) -> Path:
    np.savez(path / "s.npz", X.numpy(), LABEL.numpy())
    return path / "s.npz"


def write_safetensors(path: Path) -> Path:
    save_file({"label": LABEL, "latents": X, "ids": torch.arange(40)}, path / "x.safetensors")
    return path / "x.safetensors"


def write_arrow(path: Path, name: str = "x.arrow", stream: bool = False) -> Path:
    import pyarrow as pa

    kind = pa.float16()
    for size in reversed(X.shape[1:]):
        kind = pa.list_(kind, size)
    flat = pa.array(X.flatten().numpy())
    for size in reversed(X.shape[1:]):
        flat = pa.FixedSizeListArray.from_arrays(flat, size)
    table = pa.table({"x": pa.chunked_array([flat[:7], flat[7:]]), "label": LABEL.numpy()})
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(str(path / name), table.schema) as file:
        file.write_table(table)
    return path / name


def write_parquet(path: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet

    table = pa.table({"x": X.float().tolist(), "label": LABEL.numpy()})
    pyarrow.parquet.write_table(table, path / "x.parquet")
    return path / "x.parquet"


FORMATS = [write_npy, write_npz, write_samples, write_safetensors, write_arrow, write_parquet]


@pytest.mark.parametrize("write", FORMATS)
def test_rows_of_every_format_are_those_that_were_written(write, tmp_path: Path) -> None:
    array, label = arrays_in(str(write(tmp_path)))
    assert tuple(array.shape) == X.shape
    rows = torch.tensor([3, 39, 0, 1, 2, 2, -1])
    for found, expected in ((array[rows], X[rows]), (array[5:9], X[5:9]), (array[:], X), (array[rows[:0]], X[:0])):
        assert torch.equal(found, expected.to(found.dtype))
        assert found.shape == expected.shape
    if write is not write_npy:
        assert label is not None
        assert torch.equal(label, LABEL)
    again = copy.deepcopy(array)  # as worker processes get it
    assert torch.equal(again[rows], array[rows])


def test_arrow_streams_are_read_too(tmp_path: Path) -> None:
    array, _ = arrays_in(str(write_arrow(tmp_path, stream=True)))
    assert torch.equal(array[:], X)


def test_rows_beyond_the_end_are_refused(tmp_path: Path) -> None:
    array, _ = arrays_in(str(write_safetensors(tmp_path)))
    with pytest.raises(IndexError):
        array[torch.tensor([40])]


def test_what_is_not_an_array_of_real_numbers_is_refused_in_one_line(tmp_path: Path) -> None:
    def refused(match: str, name: str | None = None, path: Path = tmp_path / "a.npy") -> None:
        with pytest.raises(UsageError, match=match) as error:
            arrays_in(str(path), name)
        assert "\n" not in str(error.value)

    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    refused("contains Python objects, which are not read")
    np.save(tmp_path / "a.npy", np.arange(6).reshape(3, 2))
    refused(r"x in .*a.npy is int64 of shape \(3, 2\): give real numbers")
    np.save(tmp_path / "a.npy", np.asfortranarray(X[0, 0].float().numpy()))
    refused("not in C order: save np.ascontiguousarray")
    np.save(tmp_path / "a.npy", X.numpy().astype(">f4"))
    refused("not in C order")
    np.save(tmp_path / "a.npy", X.numpy())
    whole = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(whole[:-1])
    refused("it is cut off")
    (tmp_path / "a.npy").write_bytes(b"no array")
    refused("a.npy cannot be read")
    (tmp_path / "a.safetensors").write_bytes(b"\xff" * 100)
    refused("no header of a safetensors file", path=tmp_path / "a.safetensors")
    save_file({"a": X, "b": X.clone()}, tmp_path / "b.safetensors")
    refused("has a, b, and not x: name the examples with --data.array", path=tmp_path / "b.safetensors")
    refused("has a, b, and not c", "c", path=tmp_path / "b.safetensors")
    assert torch.equal(arrays_in(str(tmp_path / "b.safetensors"), "b")[0][:], X)
    np.savez(tmp_path / "c.npz", x=X.numpy(), label=LABEL.numpy()[:7])
    refused(
        r"label in .*c.npz is int64 of shape \(7,\): give one whole number for each of the 40", None, tmp_path / "c.npz"
    )
    (tmp_path / "a.pt").write_bytes(b"")
    refused("arrays are read from files that end in .npy, .npz", path=tmp_path / "a.pt")
    (tmp_path / "d.arrow").write_bytes(b"no table")
    refused("d.arrow cannot be read", path=tmp_path / "d.arrow")


def test_mean_and_standard_deviation_are_those_of_all_values_or_of_each_channel() -> None:
    x = X.double()
    x[:, 1] = 1000 + 7 * x[:, 1]
    both = standardization_of(x)
    assert both.mean[0] == pytest.approx(float(x.mean()), rel=1e-12)
    assert both.std[0] == pytest.approx(float(x.std(correction=0)), rel=1e-12)
    each = standardization_of(x, "channels")
    assert each.mean == pytest.approx(x.mean((0, 2, 3)).tolist(), rel=1e-12)
    assert each.std == pytest.approx(x.std((0, 2, 3), correction=0).tolist(), rel=1e-12)
    z = each.standardized(x)
    assert z.dtype == torch.float32
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(z.std((0, 2, 3), correction=0), torch.ones(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(each.restored(z).double(), x, atol=1e-3, rtol=0)


def test_parts_of_the_data_give_the_sums_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    x = X.double() + 1e6
    whole = standardization_of(x)
    monkeypatch.setattr("unnoise.shared.data.tensors.AT_ONCE", 50)
    parts = standardization_of(x)
    assert parts.std == pytest.approx(whole.std, rel=1e-9)
    assert parts.mean == pytest.approx(whole.mean, rel=1e-12)


def test_the_density_of_data_and_of_standardized_data_differ_by_the_volume() -> None:
    scale = Standardization((1.0, -2.0), (0.5, 3.0))
    x = scale.restored(torch.randn(4, 2, 5, generator=torch.Generator().manual_seed(1)))
    mean, std = torch.tensor([1.0, -2.0])[:, None], torch.tensor([0.5, 3.0])[:, None]
    expected = -total_nats(torch.distributions.Normal(mean, std).log_prob(x))
    of_z = -total_nats(torch.distributions.Normal(0, 1).log_prob(scale.standardized(x)))
    torch.testing.assert_close(of_z + scale.log_volume((2, 5)), expected, rtol=1e-6, atol=0)


def test_a_scale_is_serialized_and_refuses_what_it_cannot_be() -> None:
    scale = Standardization((1.0, 2.0), (3.0, 4.0))
    assert deserialize(serialize(scale)) == scale
    with pytest.raises(UsageError, match="finite means and positive standard deviations"):
        Standardization((0.0,), (0.0,))
    with pytest.raises(UsageError, match="as many means as standard deviations"):
        Standardization((0.0, 1.0), (1.0,))
    with pytest.raises(UsageError, match="for 2 channels, and the data have 3"):
        scale.standardized(torch.zeros(1, 3, 4))


def test_constant_data_and_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(UsageError, match=r"the data are constant \(2\): leave it out, or give scale=none"):
        standardization_of(torch.full((5, 2), 2.0))
    x = torch.randn(5, 2, 3)
    x[3, 1, 1] = torch.nan
    with pytest.raises(UsageError, match="example 3 has NaN or infinity"):
        standardization_of(x)
    x[3], x[:, 1] = 0.5, 0.5
    with pytest.raises(UsageError, match="some channel of the data is constant"):
        standardization_of(x, "channels")


def test_a_file_is_divided_by_the_number_of_the_example_alone(tmp_path: Path) -> None:
    path = write_npz(tmp_path)
    train, test = (tensor_dataset(str(path), split=split, held_out=0.25) for split in ("train", "test"))
    assert len(train.k) + len(test.k) == 40
    assert 4 <= len(test.k) <= 17
    both = torch.cat([train.k[:], test.k[:]]).flatten(1)
    assert torch.equal(both.float().sort(0).values, X.flatten(1).float().sort(0).values)
    assert train.quantization == test.quantization == standardization_of(train.k[:])
    assert train.label is not None
    longer = tmp_path / "longer.npz"
    np.savez(longer, x=torch.cat([X, X]).numpy())
    more = tensor_dataset(str(longer), split="test", held_out=0.25)
    assert torch.equal(more.k[:][: len(test.k)], test.k[:])  # a longer file holds out the same examples
    assert "of 40 examples are held out (held_out=0.25)" in train.summary
    assert train.summary.startswith(f"{len(train.k)} examples of 2x3x4, float16; 3 classes: 0 ")


def test_a_folder_has_a_file_for_each_split(tmp_path: Path) -> None:
    np.save(tmp_path / "train.npy", X.numpy())
    np.save(tmp_path / "test.npy", X[:3].numpy())
    train, test = (tensor_dataset(str(tmp_path), split=split) for split in ("train", "test"))
    assert (len(train.k), len(test.k)) == (40, 3)
    assert test.quantization == train.quantization == standardization_of(X)
    with pytest.raises(UsageError, match="has no split validation: it has test.npy, train.npy"):
        tensor_dataset(str(tmp_path), split="validation")


def test_names_and_shares_that_cannot_be_are_refused(tmp_path: Path) -> None:
    path = str(write_npz(tmp_path))
    with pytest.raises(UsageError, match=r"there is no file .*y.npz: did you mean .*x.npz"):
        tensor_dataset(str(tmp_path / "y.npz"))
    with pytest.raises(UsageError, match="held_out=1.5: give a share between 0 and 1"):
        tensor_dataset(path, held_out=1.5)
    with pytest.raises(UsageError, match="holds out 0 of 40 examples"):
        tensor_dataset(path, split="test", held_out=1e-9)
    with pytest.raises(UsageError, match="whose splits are train and test, and not validation"):
        tensor_dataset(path, split="validation")
    with pytest.raises(UsageError, match="classes=2: the labels of"):
        tensor_dataset(path, classes=2)
    with pytest.raises(UsageError, match="has no labels: there is no array label"):
        tensor_dataset(str(write_npy(tmp_path)), classes=2)


def test_batches_read_rows_from_the_file_and_are_those_of_memory(tmp_path: Path) -> None:
    scale = standardization_of(X)
    array, _ = arrays_in(str(write_npy(tmp_path)))
    of_file, of_memory = (
        iter(Batches(k, 16, scale, Standardization.standardized_form, {"label": LABEL}, seed=3)) for k in (array, X)
    )
    for _ in range(4):
        one, other = next(of_file), next(of_memory)
        assert torch.equal(one["x0"], other["x0"])
        assert torch.equal(one["label"], other["label"])


def test_evenly_spaced_examples() -> None:
    data = TensorDataset(X, LABEL, Standardization())
    few = data.subset(4)
    assert torch.equal(few.k[:], X[::10])
    assert few.label is not None
    assert torch.equal(few.label, LABEL[::10])
    assert data.subset(99) is data


def test_features_are_means_over_blocks() -> None:
    x = torch.randn(3, 4, 32, 32)
    assert pooled_size((4, 32, 32)) == 4
    blocks = torch.nn.functional.avg_pool2d(x, 4).flatten(1)
    torch.testing.assert_close(pooled(x, 4), blocks)
    assert pooled_size((2, 3, 4)) == 1
    assert torch.equal(pooled(x, 1), x.flatten(1))
    assert pooled_size((900,)) == 1
