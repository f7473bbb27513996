"""Calls of a network by its denoiser: in the network's precision, and with one-line errors for what does not fit."""

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
from torch.utils.hooks import RemovableHandle

from .errors import Notice, UsageError
from .tensors import refuse_unless

TRAINING = (
    "the network is in training mode, where dropout and batch norm change its output from call to call: "
    "call denoiser.eval() before sampling, bounds and likelihoods"
)
WARNED: WeakSet[nn.Module] = WeakSet()
LONG = re.compile(r"indices.* (Long|Int)|indices must be long")
DEVICE = re.compile(r"same device|device type|torch\.cuda\.\w+Tensor")
RANGE = re.compile(r"^index .*out of (range|bounds)")
DTYPE = re.compile(
    r"same dtype|should be the same|expected scalar type|same data type|\bdtype\b.* (match|equal)"
    r"|(Float|Half|Double|BFloat16)\b.*but"
)
REMEDY = (
    "give time_input=step_index for rows 0 to T - 1 of a table of T steps, "
    "or time_input=thousandth_index for rows 0 to 999 of any table"
)


class HasNetwork(Protocol):
    """An object that calls a network: a denoiser, a classifier of noisy data or a dequantizer.

    Attributes:
        network: `(x, time, **cond) -> out`, with time the time input, float32 `(B,)`.
    """

    network: nn.Module

    def time_input_range(self) -> Tensor:
        """Returns the smallest and the largest time input that the network is fed, `(2,)`."""
        ...


def call_network(owner: HasNetwork, x: Tensor, time: Tensor, cond: dict[str, Any]) -> Tensor:
    """Returns the network's output at `(x, time, **cond)`: a floating-point tensor on the device of x.

    Its shape is not checked, and its dtype is the network's. Floating-point x and conditions are cast to the dtype of
    the network's first parameter. The time input stays float32, since half precision would round it: bfloat16 cannot
    represent 999. Before the first call of a network with an `nn.Embedding`, the smallest and the largest time input
    are tried.

    Args:
        owner: the object that has the network.
        x: `(B, ...)`, real numbers, or tokens as integers.
        time: the time input, float32 `(B,)`.
        cond: conditions by name.

    Raises:
        UsageError: for a condition that the network does not take, a required condition that is missing, a time input
            for which an embedding has no row, and an output that is not a floating-point tensor on the device of x.
    """
    network = owner.network
    dtype = precision(network)
    if dtype is not None:
        x = x.to(dtype) if x.dtype != dtype and x.is_floating_point() else x
        cond = {name: to_dtype(value, dtype, name) for name, value in cond.items()}
    if "_tried" not in owner.__dict__:
        owner.__dict__["_tried"] = True
        try_time_inputs(owner, x, cond)
    try:
        out = network(x, time, **cond)
    except (TypeError, IndexError, RuntimeError) as error:
        if (line := explanation(error, owner, x, time, cond)) is None:
            raise
        raise UsageError(line) from error
    if isinstance(out, Tensor) and out.is_floating_point() and out.device == x.device:
        return out
    return refuse_non_tensor(out, x)


def one_per_example(v: Tensor | float, x: Tensor) -> Tensor:
    """Returns `v`, a scalar or `(B,)`, as float32 `(B,)` on the device of `x`, without waiting for an accelerator.

    Args:
        v: the time inputs; `(1,)` stands for all examples too.
        x: `(B, ...)`.

    Raises:
        UsageError: for another shape of v.
    """
    if not isinstance(v, Tensor) or (v.ndim == 0 and v.device.type == "cpu"):
        return torch.full((len(x),), float(v), dtype=torch.float32, device=x.device)
    if v.ndim > 1 or (v.ndim and len(v) not in (1, len(x))):
        raise UsageError(
            f"times of shape {tuple(v.shape)} for {len(x)} examples: "
            f"give one time, or one for each example, ({len(x)},)"
        )
    return v.float().to(x.device).expand(len(x))


def try_time_inputs(owner: HasNetwork, x: Tensor, cond: dict[str, Any]) -> None:
    """Calls a network with an embedding at the smallest and the largest time input, to find a missing row early.

    The call is in evaluation mode, without gradients, on two examples of zeros, and does not change the state of the
    random number generators. Networks with an attribute `conditions` are of this package, or written for it, and are
    not called.

    Args:
        owner: the object that has the network.
        x: `(B, ...)`, of which only the shape, dtype and device are used.
        cond: conditions by name; of those with a row for each example the first row is used.

    Raises:
        UsageError: if an embedding has no row for one of the two.
    """
    network = getattr(owner.network, "_orig_mod", owner.network)  # the module that torch.compile wrapped
    tables = {name: m for name, m in network.named_modules() if isinstance(m, nn.Embedding)}
    if not tables or getattr(network, "conditions", None) is not None or torch.compiler.is_compiling():
        return
    ends, batch = owner.time_input_range(), len(x)
    low, high = ends.tolist()

    def refuse_missing(name: str) -> Callable[[nn.Embedding, tuple[Tensor, ...]], None]:
        def hook(table: nn.Embedding, args: tuple[Tensor, ...]) -> None:
            if args[0].is_floating_point():
                return  # the call itself raises then
            for row in (int(args[0].min()), int(args[0].max())):
                if not 0 <= row < table.num_embeddings:
                    raise UsageError(
                        f"the embedding {name} of {type(network).__name__} has {table.num_embeddings} rows, but row "
                        f"{row} is looked up, where the time input is {low:g} to {high:g}: {REMEDY}"
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
            # not a call: hooks count those
            network.eval().forward(x.new_zeros(2, *x.shape[1:]), ends.float().to(x.device), **rows)
    except UsageError:
        raise
    except Exception as error:  # other errors are raised again by the call itself
        if isinstance(error, IndexError) and (line := explanation(error, owner, x, ends.float(), cond)):
            raise UsageError(line) from error
    finally:
        for handle in hooks:
            handle.remove()
        for m, training in modes:
            m.training = training


def precision(module: nn.Module) -> torch.dtype | None:
    """Returns the dtype of the first floating-point parameter, None if all are integers; takes about a microsecond."""
    for p in module._parameters.values():
        if p is not None and p.is_floating_point():
            return p.dtype
    for child in module._modules.values():
        if child is not None and (dtype := precision(child)) is not None:
            return dtype
    return None


def to_dtype(value: Any, dtype: torch.dtype, name: str = "x") -> Any:
    """Returns a floating-point tensor in the given dtype, and other values as they are; `name` is for the message.

    Raises:
        UsageError: for an array of another library.
    """
    if not isinstance(value, Tensor):
        if hasattr(value, "__array__"):
            raise UsageError(f"{name} is a {type(value).__name__}: give a tensor, such as torch.as_tensor({name})")
        return value
    return value.to(dtype) if value.dtype != dtype and value.is_floating_point() else value


def refuse_non_tensor(out: Any, x: Tensor) -> Tensor:
    """Returns a network's output, and raises unless it is a floating-point tensor on the device of x.

    Args:
        out: the output.
        x: the input that the network was called with.

    Raises:
        UsageError: for anything else, with a remedy for outputs in a tuple, a dict or an object with `sample`.
    """
    if not isinstance(out, Tensor):
        kind, returns = f"an object of type {type(out).__name__}", "the tensor in it"
        if out is None:
            kind, returns = "None", "a tensor"
        elif isinstance(getattr(out, "sample", None), Tensor):
            returns = "net(x, time, **cond).sample"
        elif isinstance(out, tuple | list):
            returns = "net(x, time, **cond)[0]"
        elif isinstance(out, dict):
            kind = f"a dict of {', '.join(map(str, list(out)[:4]))}" if out else "an empty dict"
            returns = f"net(x, time, **cond)[{next(iter(out), 'sample')!r}]"
        raise UsageError(
            f"the network returned {kind} instead of a tensor: "
            f"wrap it in an nn.Module whose forward(self, x, time, **cond) returns {returns}"
        )
    if not out.is_floating_point():
        raise UsageError(
            f"the network returned {out.dtype} instead of floating-point numbers: "
            "return floats, such as logits before their argmax"
        )
    if out.device != x.device:
        raise UsageError(
            f"the network returned an output on {out.device} for an input on {x.device}: "
            "move the whole network to one device"
        )
    return out


def refuse_signature(network: Any) -> None:
    """Raises unless `network` is an `nn.Module` whose `forward` accepts two positional arguments, input and time.

    Denoisers, classifiers of noisy data and dequantizers call it when they are constructed. Only the signature is read,
    the network is not called. A network without parameters, which may be a placeholder, is not checked, nor is one
    whose signature cannot be read.

    Raises:
        UsageError: for another network, and for an object that is not an `nn.Module`.
    """
    if not isinstance(network, nn.Module):
        raise UsageError(f"network={network!r} is not an nn.Module: give one, called as network(x, time, **conditions)")
    # A module without parameters may be a placeholder that is never called.
    signature = None if next(network.parameters(), None) is None else signature_of(network)
    if signature is not None and (line := missing_time_argument(signature, type(network).__name__)):
        raise UsageError(line)


def missing_time_argument(signature: inspect.Signature, name: str) -> str | None:
    """Returns the error message for a `forward` that does not take an input and a time, None if it does.

    Args:
        signature: of `forward`, without self.
        name: the class of the network, for the message.
    """
    try:
        signature.bind_partial(None, None)
    except TypeError:
        return (
            f"{name} takes ({', '.join(signature.parameters)}), but is called as network(x, time, **conditions): "
            "give its forward a second argument for the time, (B,), even if it does not use it"
        )
    return None


def signature_of(network: nn.Module) -> inspect.Signature | None:
    """Returns the signature of `forward`, of the `inner` network if it passes all conditions on; None if unreadable."""
    try:
        signature = inspect.signature(network.forward)
    except (TypeError, ValueError):
        return None
    passes = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    inner = getattr(network, "inner", None)
    return signature_of(inner) if passes and isinstance(inner, nn.Module) else signature


def explanation(error: Exception, owner: HasNetwork, x: Tensor, time: Tensor, cond: dict[str, Any]) -> str | None:
    """Returns the message for an error that the call caused, None for an error of the network itself.

    Recognized are conditions that do not fit the signature, indices that are not integers or have no row in an
    embedding, inputs on another device than the network, and mixed precisions.

    Args:
        error: raised by `owner.network(x, time, **cond)`.
        owner: the object that has the network.
        x, time, cond: the arguments of the call.
    """
    network = owner.network
    name, reported = type(network).__name__, str(error).splitlines()[0] if str(error) else ""
    if isinstance(error, TypeError):
        return condition_mismatch(signature_of(network), name, cond)
    if LONG.search(reported) or RANGE.search(reported):
        low, high = owner.time_input_range().tolist()
        inputs = f"the time input is {time.dtype}, here {low:g} to {high:g}"
        if LONG.search(reported):
            return f"{name} indexes with numbers that are not integers: {inputs}; index with time.round().long()"
        if not x.is_floating_point() and x.device.type == "cpu" and x.numel():
            inputs = f"x holds tokens up to {int(x.max())} (a mask token, if there is one, is the last), and {inputs}"
        for key, value in cond.items():
            if (
                isinstance(value, Tensor)
                and not value.is_floating_point()
                and value.device.type == "cpu"
                and value.numel()
            ):
                inputs = f"{key} holds {int(value.min())} to {int(value.max())}, and {inputs}"
        return f"{name} looked up a row that does not exist ({reported}): {inputs}; {REMEDY}"
    if isinstance(error, RuntimeError) and DEVICE.search(reported):
        device = next((p.device for p in network.parameters()), "cpu")
        return (
            f"{name} is on {device}, but not all of its inputs are ({reported}): "
            f"move signals and conditions there, .to({str(device)!r})"
        )
    if isinstance(error, RuntimeError) and DTYPE.search(reported):
        return (
            f"{name} mixes precisions ({reported}): x is fed in {precision(network)}, as its first parameter is, and "
            f"the time input is {time.dtype}: cast what is computed from the time, .to(x.dtype)"
        )
    return None


def condition_mismatch(signature: inspect.Signature | None, name: str, cond: dict[str, Any]) -> str | None:
    """Returns the error message for conditions that do not fit the signature, None if they fit.

    Its first two parameters, x and the time, are skipped; a signature without them gives a message of its own. The
    message names the conditions that `forward` does not take or, if it takes all of them, those that it needs and that
    are missing.

    Args:
        signature: of the network's `forward`, without self; if it is None, unknown, the result is None.
        name: the class of the network, for the message.
        cond: conditions by name.
    """
    if signature is None:
        return None
    if line := missing_time_argument(signature, name):
        return line
    try:
        signature.bind(None, None, **cond)
    except TypeError:
        own = list(signature.parameters.values())[2:]
        names = [p.name for p in own if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        takes = f"it takes {', '.join(names)}" if names else "it takes none"
        if others := [key for key in cond if key not in names]:
            return (
                f"{name} takes no condition {', '.join(others)} ({takes}): leave it out; for guidance by a classifier, "
                f"give the network the attribute conditions = {tuple(names)!r}"
            )
        absent = [p.name for p in own if p.name in names and p.default is p.empty and p.name not in cond]
        missing = ", ".join(f"{a}=..." for a in absent)
        return f"{name} needs the condition {', '.join(absent)}: give {missing}, one row for each example"
    return None


def networks_of(denoiser: nn.Module) -> list[nn.Module]:
    """Returns the networks that a denoiser calls, each once.

    These are the attributes `network` of the denoiser and of all modules inside it: inner denoisers, classifiers.
    """
    found = (getattr(m, "network", None) for m in denoiser.modules())
    return list(dict.fromkeys(network for network in found if isinstance(network, nn.Module)))


def warn_in_training(denoiser: nn.Module) -> None:
    """Gives a `Notice`, once for each network, if a dropout or batch norm layer of it is in training mode."""
    for m in denoiser.modules():
        if m.training and (isinstance(m, _BatchNorm) or (isinstance(m, _DropoutNd) and m.p > 0)) and m not in WARNED:
            WARNED.update(denoiser.modules())
            warnings.warn(Notice(TRAINING), stacklevel=3)
            return


@contextmanager
def refusing_nan(denoiser: nn.Module) -> Iterator[None]:
    """Raises at the end of the block if a network whose input is tokens, which do not show it, returned NaN within it.

    Raises:
        UsageError: if there was one.
    """
    found: list[Tensor] = []

    def watched(network: nn.Module) -> RemovableHandle:
        def note(_: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            if isinstance(args[0], Tensor) and args[0].is_floating_point():
                handle.remove()  # its output is seen in the samples, and a hook costs time
            elif isinstance(out, Tensor) and isinstance(args[0], Tensor):
                found[:] = [torch.isnan(out).any() | found[0] if found else torch.isnan(out).any()]

        handle = network.register_forward_hook(note)
        return handle

    hooks = [watched(network) for network in networks_of(denoiser)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    if found:
        what = "the network returned NaN, from which no token can be sampled: check its weights and the conditions"
        refuse_unless(~found[0], what, wait=True)
