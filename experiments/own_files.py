"""Parts and recipes of one's own, from a Python file or a module that is named on the command line."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from ..shared.errors import UsageError
from ..shared.serialization import _NAMES, serializable
from .parts import NOT_BUILDERS


def own_module(name: str) -> ModuleType:
    """Imports a file `FILE.py` or a module `package.module`; what it defines can then be written to checkpoints.

    Its classes and functions get the names `FILE.py:NAME` or `MODULE:NAME` in checkpoints, unless they are marked
    `@serializable` themselves.

    Raises:
        UsageError: for a missing file or module, and for code that fails.
    """
    path = Path(name).expanduser()
    if name.partition(".")[0] in sys.stdlib_module_names:
        raise UsageError(f"{name} is a module of Python itself: give a file or module of your own")
    try:
        module = of_file(path) if name.endswith(".py") else importlib.import_module(name)
    except UsageError:
        raise
    except FileNotFoundError as error:
        raise UsageError(f"there is no file {name}: give the path of a Python file") from error
    except Exception as error:  # whatever the code of the user raises
        raise UsageError(f"{name} cannot be imported ({type(error).__name__}: {error})") from error
    if name not in IMPORTED:
        IMPORTED.append(name)
    for key, value in vars(module).items():
        own = getattr(value, "__module__", None) == module.__name__ and not module.__name__.startswith("unnoise.")
        if own and (isinstance(value, type) or inspect.isfunction(value)) and value not in _NAMES:
            serializable(f"{path.name if name.endswith('.py') else name}:{key}")(value)
            if inspect.isfunction(value) and not returns_part(value):
                NOT_BUILDERS.add(value)
    return module


def returns_part(function: Any) -> bool:
    """Returns whether a function is annotated to return a part of some kind, such as a Transition."""
    from .catalog import kind_of  # all parts are imported for functions of one's own alone
    from .categorical_parts import CATEGORICAL
    from .gaussian_parts import GAUSSIAN

    annotation = inspect.signature(function).return_annotation
    kinds = [*GAUSSIAN.kinds, *CATEGORICAL.kinds, "Tensor"]
    return annotation is not inspect.Signature.empty and kind_of(annotation, kinds) in kinds


IMPORTED: list[str] = []
"""The files and modules of one's own that were imported, as they were named."""


def module_options() -> str:
    """Returns the options that import the same files again, for commands that are printed: ` --module FILE.py`."""
    return "".join(f" --module {shlex.quote(name)}" for name in IMPORTED)


def of_file(path: Path) -> ModuleType:
    """Imports a Python file once in a process."""
    path = path.resolve()
    if not path.is_file():
        raise FileNotFoundError(path)
    key = f"own_file_{path.stem}"
    if key in sys.modules:
        if Path(str(sys.modules[key].__file__)) != path:
            raise UsageError(
                f"{path} and {sys.modules[key].__file__} have one name, by which checkpoints name their parts: rename "
                "one of the files"
            )
        return sys.modules[key]
    spec = importlib.util.spec_from_file_location(key, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module
    sys.path.insert(0, str(path.parent))  # for what lies beside the file
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[key]
        raise
    finally:
        sys.path.remove(str(path.parent))
    return module


def named_in_file(file: str, name: str) -> Any:
    """Returns what a file or module defines under a name.

    Raises:
        UsageError: if it does not define the name; the message suggests the nearest one.
    """
    module = own_module(file)
    if not hasattr(module, name):
        own = [key for key in vars(module) if not key.startswith("_")]
        near = difflib.get_close_matches(name, own, n=1)
        raise UsageError(f"{file} does not define {name}" + (f": did you mean {near[0]}?" if near else ""))
    return getattr(module, name)
