"""An emulated device without float64, as MPS is: real numbers on the CPU whose tensors report another device."""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("mps")
UNKNOWN = (torch.special.ndtri,)
"""Functions that the device does not have."""


def on_device(x):
    return isinstance(x, torch.Tensor) and getattr(x, "emulated", False)


def mark(x):
    """Marks a tensor as one of the device."""
    if isinstance(x, torch.Tensor):
        if x.dtype in (torch.float64, torch.complex128):
            raise TypeError(f"a tensor of {x.dtype} on {DEVICE}, which has none")
        x.emulated = True
    return x


class WithoutFloat64(TorchFunctionMode):
    """Within it `device="mps"` is a device that refuses float64, and tensors of the CPU that are not scalars."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in (torch.Tensor.dtype.__get__, torch.Tensor.shape.__get__):
            return func(*args)
        if func == torch.Tensor.device.__get__:
            return DEVICE if on_device(args[0]) else func(*args)
        if func is torch.Tensor.to:
            return self._to(func, *args, **kwargs)
        if func is torch.Tensor.cpu:
            return args[0].clone() if on_device(args[0]) else func(*args, **kwargs)
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        asked = kwargs.get("device")
        target = None if asked is None else torch.device(asked)
        here = any(map(on_device, given))
        name = getattr(func, "__name__", str(func))
        if here and not name.startswith("__set") and name not in ("__get__", "tolist", "item", "copy_", "index_copy_"):
            other = [x for x in given if not on_device(x) and x.dim() and name != "__getitem__"]
            if other:
                raise RuntimeError(f"{name}: a tensor of shape {tuple(other[0].shape)} is not on the same device")
        if (here or target == DEVICE) and func in UNKNOWN:
            raise NotImplementedError(f"{name} is not implemented on {DEVICE}")
        if target is not None:
            kwargs["device"] = torch.device("cpu")
        out = func(*args, **kwargs)
        if target == DEVICE or (target is None and here):
            out = tree_map(mark, out)
        elif target is not None and here:
            out = tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, out)
        return out

    def _to(self, func, x, *args, **kwargs):
        """`x.to(...)`, to a device, to a dtype, or to both of another tensor."""
        target, dtype = DEVICE if on_device(x) else None, None
        for value in [*args, *kwargs.values()]:
            if isinstance(value, torch.Tensor):
                target, dtype = DEVICE if on_device(value) else None, value.dtype
            elif isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, str | torch.device):
                target = DEVICE if torch.device(value).type == DEVICE.type else None
        dtype = x.dtype if dtype is None else dtype
        if target is not None and on_device(x):
            return x if dtype == x.dtype else mark(func(x, dtype))
        if target is not None:
            if x.dtype == torch.float64 and dtype == torch.float64:
                raise TypeError(f"a tensor of {x.dtype} to {DEVICE}, which has none")
            return mark(func(x, dtype).clone())
        return func(x, dtype).clone() if on_device(x) else func(x, dtype)


def moved(module):
    """Returns the module after it was moved to the emulated device, in place."""
    for part in [*module.parameters(), *module.buffers()]:
        mark(part)
    return module
