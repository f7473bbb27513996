"""Writes files as other projects do, with stand-ins for their classes that are removed once the file is written."""

import collections
import contextlib
import io
import operator
import os
import pickle
import shutil
import subprocess
import sys
import types
import typing
import zipfile

import pytest
import torch
from safetensors.torch import save
from torch import nn

from unnoise.experiments.pretrained.files import read
from unnoise.shared.errors import UsageError

MODULE_SOURCE = "raise RuntimeError('the source in a pickle was run')"


@contextlib.contextmanager
def modules(**contents):
    """Modules that exist while a file is written: `modules(a__b={"f": f})` is `a.b`."""
    made = {name.replace("__", "."): types.ModuleType(name.replace("__", ".")) for name in contents}
    for name, content in zip(made, contents.values(), strict=True):
        for key, value in content.items():
            value.__module__, value.__qualname__ = name, key
            setattr(made[name], key, value)
    sys.modules.update(made)
    try:
        yield made
    finally:
        for name in made:
            del sys.modules[name]


def edm_pickle(build, *, protocol=4, easy=False):
    """The bytes of a network and what is pickled beside it, and the network's own state dict.

    Args:
        build: a network from a class decorator for its classes.
    """

    def reconstruct(meta):
        raise AssertionError("a pickle's function was called")

    class EasyDict(dict):
        pass

    def persistent(wrapped):
        class Decorated(wrapped):
            def __reduce__(self):
                meta = {
                    "type": "class",
                    "version": 6,
                    "module_src": MODULE_SOURCE,
                    "class_name": wrapped.__name__,
                    "state": self.__dict__,
                }
                return reconstruct, (EasyDict(meta) if easy else meta,), None

        return Decorated

    @persistent
    class EDMLoss:
        def __init__(self):
            self.P_mean, self.P_std, self.sigma_data = -1.2, 1.2, 0.5

    theirs = {"torch_utils": {}, "torch_utils__persistence": {"_reconstruct_persistent_obj": reconstruct}}
    with modules(**theirs, dnnlib={}, dnnlib__util={"EasyDict": EasyDict}):
        network = build(persistent)
        kwargs = EasyDict(path="cifar10.zip", resolution=32, xflip=False)
        data = {"ema": network, "loss_fn": EDMLoss(), "augment_pipe": None, "dataset_kwargs": kwargs}
        return pickle.dumps(data, protocol=protocol), network.state_dict()


def small_network(persistent):
    """A tree that has all that the networks of published pickles have."""

    @persistent
    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.norm = nn.GroupNorm(2, width)
            self.conv = nn.Conv2d(width, width, 3, bias=False)
            self.weight = nn.Parameter(torch.randn(width, 2).t())
            self.bias = None
            self.register_parameter("absent", None)
            self.register_buffer("filter", torch.ones(2, 2) / 4)
            self.register_buffer("passing", torch.zeros(1), persistent=False)
            self.register_buffer("none", None)
            self.activation = nn.functional.silu
            self.dtype, self.device, self.size = torch.float16, torch.device("cpu", 0), torch.Size((1, 2))

    @persistent
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self._init_kwargs = {"img_resolution": 32}
            self.enc = nn.ModuleDict({"32x32_conv": Block(4), "16x16_down": nn.Sequential(nn.BatchNorm2d(4), Block(2))})
            self.shared = self.enc["32x32_conv"]
            self.levels = {1, 2, 3}

    return Network()


def omegaconf_checkpoint(tensors):
    """The bytes of a Lightning checkpoint whose hyper-parameters are objects of another package."""

    class ContainerMetadata:
        pass

    class AnyNode:
        pass

    class DictConfig:
        pass

    theirs = {
        "base": {"ContainerMetadata": ContainerMetadata},
        "dictconfig": {"DictConfig": DictConfig},
        "nodes": {"AnyNode": AnyNode},
    }
    with modules(omegaconf={}, **{f"omegaconf__{name}": content for name, content in theirs.items()}):
        config, node, metadata = DictConfig(), AnyNode(), ContainerMetadata()
        metadata.__dict__ = {
            "ref_type": typing.Any,
            "object_type": dict,
            "resolver_cache": collections.defaultdict(dict),
        }
        node.__dict__ = {"_val": 1024, "_parent": config, "_metadata": metadata}
        config.__dict__ = {"_content": {"length": node}, "_metadata": metadata, "_parent": None}
        shadow = [t.clone() for t in tensors.values()]
        ema = {"decay": 0.9999, "num_updates": 7, "shadow_params": shadow}
        return torch_bytes(
            {"state_dict": dict(tensors), "ema": ema, "hyper_parameters": {"config": config}, "global_step": 3}
        )


def torch_bytes(content, *, legacy=False):
    """The bytes of a file of torch."""
    out = io.BytesIO()
    torch.save(content, out, _use_new_zipfile_serialization=not legacy)
    return out.getvalue()


def zip_bytes(members, compression=zipfile.ZIP_STORED):
    """The bytes of a zip file."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


class Calls:
    """Is pickled as a call."""

    def __init__(self, what, *arguments):
        self.made = what, arguments

    def __reduce__(self):
        return self.made


def system(marker):
    """Is pickled as a command that makes the file `marker`."""
    return Calls(os.system, f"touch '{marker}'")


def text(value):
    """The instruction that pushes a short string."""
    return b"\x8c" + bytes([len(value)]) + value.encode()


def called(module, name, argument):
    """A pickle of protocol 4 that calls `module`'s `name`, dots and all, with one string."""
    return b"\x80\x04" + text(module) + text(name) + b"\x93" + text(argument) + b"\x85R."


def dangerous(marker):
    """By the name of what they call, objects whose pickles run code."""
    command = f"touch '{marker}'"
    return {
        "posix.system": system(marker),
        "builtins.eval": Calls(eval, f"__import__('os').system({command!r})"),
        "builtins.exec": Calls(exec, f"__import__('os').system({command!r})"),
        "builtins.getattr": Calls(getattr, Calls(__import__, "os"), "system"),
        "builtins.__import__": Calls(__import__, "os"),
        "io.open": Calls(open, str(marker), "w"),
        "subprocess.check_output": Calls(subprocess.check_output, ["touch", str(marker)]),
        "operator.methodcaller": Calls(operator.methodcaller, "x"),
        "torch.serialization.load": Calls(torch.load, "x"),
        "shutil.rmtree": Calls(shutil.rmtree, str(marker)),
    }


def valid():
    """The bytes of a small file of each kind."""
    torch.manual_seed(0)
    small = {"a": torch.randn(3, 2), "b": torch.arange(3), "epoch": 3, "nested": [(1, "x"), {2.5: None}]}
    return {
        "safetensors": save({"a": torch.randn(3, 2), "b": torch.arange(3)}),
        "zip": torch_bytes(small),
        "legacy": torch_bytes(small, legacy=True),
        "plain": edm_pickle(small_network)[0],
        "lightning": omegaconf_checkpoint({"a": torch.randn(2)}),
    }


def tensors():
    """Tensors of every layout and of most kinds of numbers."""
    torch.manual_seed(0)
    base, tied = torch.randn(3, 4), nn.Parameter(torch.randn(2, 3))
    attributed = nn.Parameter(torch.randn(2))
    attributed.no_decay = True
    return collections.OrderedDict(
        base=base,
        row=base[1:, 2:],
        turned=base.t(),
        spread=torch.tensor([1.5]).expand(4, 1),
        scalar=torch.tensor(2.5),
        empty=torch.empty(0, 3),
        tied=tied,
        again=tied,
        attributed=attributed,
        **{
            f"{d}": torch.randn(5).to(d)
            for d in (torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.float8_e4m3fn)
        },
        **{
            f"{d}": torch.arange(6).to(d)
            for d in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16)
        },
        bool=torch.tensor([True, False]),
    )


def assert_same(actual, expected):
    """Holds the dtype, the layout and every bit."""
    if isinstance(expected, torch.Tensor):
        assert type(actual) is torch.Tensor
        assert actual.dtype == expected.dtype
        assert actual.shape == expected.shape
        assert actual.stride() == expected.stride()
        assert torch.equal(
            actual.contiguous().view(-1).view(torch.uint8), expected.detach().contiguous().view(-1).view(torch.uint8)
        )
    elif isinstance(expected, dict):
        assert list(actual) == list(expected)
        for key in expected:
            assert_same(actual[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected)
        for a, e in zip(actual, expected, strict=True):
            assert_same(a, e)
    else:
        assert actual == expected


CONTAINERS = {
    "plain": lambda x: pickle.dumps(x, protocol=4),
    "protocol 2": lambda x: pickle.dumps(x, protocol=2),
    "legacy": lambda x: torch_bytes(x, legacy=True),
    "zip": torch_bytes,
}
in_every_container = pytest.mark.parametrize("container", CONTAINERS.values(), ids=CONTAINERS)


def writer(folder):
    """A function that writes bytes to a file in the folder and returns its path."""

    def write(content):
        path = folder / "weights.bin"
        path.write_bytes(content)
        return path

    return write


def refuser(folder):
    """A function that checks that bytes are refused with one line that contains the words."""

    def refuse(content, *words):
        with pytest.raises(UsageError) as caught:
            read(writer(folder)(content))
        message = str(caught.value)
        assert "\n" not in message
        for word in ("weights.bin", *words):
            assert word in message
        return message

    return refuse
