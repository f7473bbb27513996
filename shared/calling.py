"""How a denoiser calls its network: in the network's own precision, and with one line for what does not fit."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from .errors import Notice, UsageError
from .tensors import refuse_unless

TRAINING = (
    "the network is in training mode, so its dropout or batch norm makes every call another: "
    "call denoiser.eval() before sampling, bounds and likelihoods"
)
WARNED: WeakSet[nn.Module] = WeakSet()
LONG = re.compile(r"indices.* (Long|Int)|indices must be long")
DEVICE = re.compile(r"same device|device type|torch\.cuda\.\w+Tensor")
RANGE = re.compile(r"^index .*out of (range|bounds)")
DTYPE = re.compile(
    r"same dtype|should be the same|expected scalar type|same data type|\bdtype\b.* (match|equal)|(Float|Half|Double|BFloat16)\b.*but"
)
REMEDY = "rows 0 to T - 1 of T steps are label=step_index, and rows 0 to 999 of any table label=thousandth_index"


class Asker(Protocol):
    """What asks a network: a denoiser, a classifier, a dequantizer.

    Attributes:
        network: `(x, time, **cond) -> out`.
    """

    network: nn.Module

    def time_inputs(self) -> Tensor:
        """The least and the largest number that the network is fed for a time, `(2,)`."""


def ask(asker: Asker, x: Tensor, time: Tensor, cond: dict[str, Any]) -> Tensor:
    """The network's output at `(x, time, **cond)`: a real tensor on the device of x.

    Where x and conditions are real they are cast to the precision of the network's first parameter, and left alone
    where they have it. The time input stays float32, which half precision would round: bfloat16 cannot represent 999.
    Before the first call of a network that looks something up in an `nn.Embedding`, the two ends of the time input are
    tried.

    Args:
        asker: has the network.
        x: `(B, ...)`.
        time: the time input, float32 `(B,)`.
        cond: conditions by name.

    Raises:
        UsageError: for a condition that the network does not take, a required condition that is missing, a time input
            outside of its embedding, and an output that is not a real tensor.
    """
    network = asker.network
    dtype = precision(network)
    if dtype is not None:
        x, cond = cast(x, dtype), {name: cast(value, dtype, name) for name, value in cond.items()}
    if "_tried" not in asker.__dict__:
        asker.__dict__["_tried"] = True
        try_ends(asker, x, cond)
    try:
        out = network(x, time, **cond)
    except (TypeError, IndexError, RuntimeError) as error:
        if (line := explained(error, asker, x, time, cond)) is None:
            raise
        raise UsageError(line) from error
    return refuse_no_tensor(out, x)


def try_ends(asker: Asker, x: Tensor, cond: dict[str, Any]) -> None:
    """Asks a network with an embedding for the least and the largest time input, so that one it has no row for is found
    before training.

    Networks that say which `conditions` they take are this package's, or made for it, and are not tried.

    Raises:
        UsageError: with what to do.
    """
    network = getattr(asker.network, "_orig_mod", asker.network)  # of a compiled one
    tables = {name: m for name, m in network.named_modules() if isinstance(m, nn.Embedding)}
    if not tables or getattr(network, "conditions", None) is not None or torch.compiler.is_compiling():
        return
    ends, batch = asker.time_inputs(), len(x)
    low, high = ends.tolist()

    def refuse_missing(name: str) -> Callable[[nn.Embedding, tuple[Tensor, ...]], None]:
        def hook(table: nn.Embedding, args: tuple[Tensor, ...]) -> None:
            if args[0].is_floating_point():
                return  # the call itself will say so
            for row in (int(args[0].min()), int(args[0].max())):
                if not 0 <= row < table.num_embeddings:
                    raise UsageError(
                        f"{name} of {type(network).__name__} has {table.num_embeddings} rows and is asked for row {row}, "
                        f"where the time input is {low:g} to {high:g}: {REMEDY}"
                    )

        return hook

    rows = {
        k: v[:1].expand(2, *v.shape[1:]) if isinstance(v, Tensor) and v.ndim and len(v) == batch else v
        for k, v in cond.items()
    }
    hooks = [table.register_forward_pre_hook(refuse_missing(name)) for name, table in tables.items()]
    modes = [(m, m.training) for m in network.modules()]
    try:
        with torch.no_grad(), torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
            network.eval()(x.new_zeros(2, *x.shape[1:]), ends.float().to(x.device), **rows)
    except UsageError:
        raise
    except Exception as error:  # what is wrong with the network itself its own call tells
        if isinstance(error, IndexError) and (line := explained(error, asker, x, ends.float(), cond)):
            raise UsageError(line) from error
    finally:
        for handle in hooks:
            handle.remove()
        for m, training in modes:
            m.training = training


def precision(module: nn.Module) -> torch.dtype | None:
    """The dtype of the module's first real parameter, or None; about a microsecond."""
    for p in module._parameters.values():
        if p is not None and p.is_floating_point():
            return p.dtype
    for child in module._modules.values():
        if child is not None and (dtype := precision(child)) is not None:
            return dtype
    return None


def cast(value: Any, dtype: torch.dtype, name: str = "x") -> Any:
    """A real tensor of another precision in this one; all else as it is, but for arrays.

    Raises:
        UsageError: for an array of another library.
    """
    if not isinstance(value, Tensor):
        if hasattr(value, "__array__"):
            raise UsageError(f"{name} is a {type(value).__name__}: give a tensor, such as torch.as_tensor({name})")
        return value
    return value.to(dtype) if value.dtype != dtype and value.is_floating_point() else value


def refuse_no_tensor(out: Any, x: Tensor) -> Tensor:
    """The output, refused unless it is a real tensor on the device of x.

    Raises:
        UsageError: with what to do.
    """
    if not isinstance(out, Tensor):
        held, take = "None" if out is None else f"an object of type {type(out).__name__}", "the tensor"
        if isinstance(out, dict):
            held, take = (
                f"a dict of {', '.join(map(str, list(out)[:4])) or 'nothing'}",
                f"[{next(iter(out), 'sample')!r}]",
            )
        if isinstance(getattr(out, "sample", None), Tensor):
            take = ".sample"
        elif isinstance(out, tuple | list):
            take = "[0]"
        raise UsageError(
            f"the network gave {held}, and a tensor is read: wrap it in an nn.Module whose forward(self, x, time, **cond) returns "
            f"{'it' if out is None else f'net(x, time, **cond){take}' if take != 'the tensor' else 'the tensor in it'}"
        )
    if not out.is_floating_point():
        raise UsageError(
            f"the network gave {out.dtype}, and real numbers are read: return floats, such as logits before their argmax"
        )
    if out.device != x.device:
        raise UsageError(
            f"the network gave an output on {out.device} for an input on {x.device}: bring it whole to one of them"
        )
    return out


def refuse_signature(network: Any) -> None:
    """Refuses a network that does not take an input and a time, when a denoiser is built of it.

    Raises:
        UsageError: with what to do.
    """
    if not isinstance(network, nn.Module):
        raise UsageError(f"network={network!r}: give an nn.Module, called as network(x, time, **conditions)")
    # What has no parameters may stand for a network that is not called.
    signature = None if next(network.parameters(), None) is None else signature_of(network)
    if signature is not None and (line := timeless(signature, type(network).__name__)):
        raise UsageError(line)


def timeless(signature: inspect.Signature, name: str) -> str | None:
    """One line for a forward that does not take an input and a time."""
    try:
        signature.bind_partial(None, None)
    except TypeError:
        return (
            f"{name} takes ({', '.join(signature.parameters)}), and is called as network(x, time, **conditions): "
            "give its forward a second argument for the time, (B,), be it unused"
        )
    return None


def signature_of(network: nn.Module) -> inspect.Signature | None:
    """What its forward takes; None where that cannot be told."""
    try:
        return inspect.signature(network.forward)
    except (TypeError, ValueError):
        return None


def explained(error: Exception, asker: Asker, x: Tensor, time: Tensor, cond: dict[str, Any]) -> str | None:
    """One line for an error of the call, None for one of the network's own."""
    network = asker.network
    name, said = type(network).__name__, str(error).splitlines()[0] if str(error) else ""
    if isinstance(error, TypeError):
        return misfit(signature_of(network), name, cond)
    if LONG.search(said) or RANGE.search(said):
        low, high = asker.time_inputs().tolist()
        fed = f"the time input is {time.dtype}, here {low:g} to {high:g}"
        if LONG.search(said):
            return f"{name} looks up what is not an integer: {fed}; index with time.round().long()"
        if not x.is_floating_point() and x.device.type == "cpu" and x.numel():
            fed = f"x holds tokens up to {int(x.max())} (a mask, where there is one, is the last), and {fed}"
        for key, value in cond.items():
            if (
                isinstance(value, Tensor)
                and not value.is_floating_point()
                and value.device.type == "cpu"
                and value.numel()
            ):
                fed = f"{key} holds {int(value.min())} to {int(value.max())}, and {fed}"
        return f"{name} looked up what it does not have ({said}): {fed}; {REMEDY}"
    if isinstance(error, RuntimeError) and DEVICE.search(said):
        held = next((p.device for p in network.parameters()), "cpu")
        return f"{name} is on {held}, and not all of what it was given ({said}): bring signals and conditions there, .to({str(held)!r})"
    if isinstance(error, RuntimeError) and DTYPE.search(said):
        return (
            f"{name} mixes precisions ({said}): its first parameter is {precision(network)}, in which x is fed, and the time input is "
            f"{time.dtype}: cast what is made of it, .to(x.dtype)"
        )
    return None


def misfit(signature: inspect.Signature | None, name: str, cond: dict[str, Any]) -> str | None:
    """What of the conditions does not fit the signature; None where they do."""
    if signature is None:
        return None
    if line := timeless(signature, name):
        return line
    try:
        signature.bind(None, None, **cond)
    except TypeError:
        own = list(signature.parameters.values())[2:]
        names = [p.name for p in own if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        takes = f"it takes {', '.join(names)}" if names else "it takes none"
        if others := [key for key in cond if key not in names]:
            said = f"its attribute `conditions` = {tuple(names)!r} tells guidance so"
            return f"{name} takes no condition {', '.join(others)} ({takes}): leave it out; {said}"
        absent = [p.name for p in own if p.name in names and p.default is p.empty and p.name not in cond]
        return f"{name} needs the condition {', '.join(absent)}: give {', '.join(f'{a}=...' for a in absent)}, one row for each example"
    return None


def networks_of(denoiser: nn.Module) -> list[nn.Module]:
    """The networks that a denoiser asks, those of the denoisers that it wraps too."""
    return list(
        dict.fromkeys(m.network for m in denoiser.modules() if isinstance(getattr(m, "network", None), nn.Module))
    )


def warn_in_training(denoiser: nn.Module) -> None:
    """Warns, once for each network, of dropout and batch norms that are left in training mode."""
    for m in denoiser.modules():
        if m.training and (isinstance(m, _BatchNorm) or (isinstance(m, _DropoutNd) and m.p > 0)) and m not in WARNED:
            WARNED.update(denoiser.modules())
            warnings.warn(Notice(TRAINING), stacklevel=3)
            return


@contextmanager
def refusing_nan(denoiser: nn.Module) -> Iterator[None]:
    """Notes on the device whether a network of tokens gives NaN within the block, and looks once at its end: tokens are
    drawn of NaN too.

    Raises:
        UsageError: with what to do.
    """
    found: list[Tensor] = []

    def note(network: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        if isinstance(out, Tensor) and isinstance(args[0], Tensor) and not args[0].is_floating_point():
            found[:] = [torch.isnan(out).any() | found[0] if found else torch.isnan(out).any()]

    hooks = [network.register_forward_hook(note) for network in networks_of(denoiser)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    if found:
        refuse_unless(
            ~found[0],
            "the network gave NaN, of which no token follows: look for it in the weights or the conditions",
            wait=True,
        )
