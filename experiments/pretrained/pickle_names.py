"""Names of functions and classes in pickles, and which of them are refused because their only use is to run code."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

CODE_MODULES = re.compile(
    "os|posix|nt|posixpath|ntpath|subprocess|_posixsubprocess|sys|builtins|runpy|importlib|_frozen_importlib|imp|"
    "pkgutil|zipimport|shutil|_?socket|_?ctypes|cffi|pty|code|codeop|pdb|bdb|timeit|cProfile|profile|trace|marshal|"
    "c?_?[pP]ickle|dill|cloudpickle|joblib|shelve|webbrowser|multiprocessing|_?thread|threading|asyncio|signal|"
    "tempfile|_?io|fileinput|urllib|http|ftplib|smtplib|requests|pip|ensurepip|httplib|urllib2|popen2|distutils|gc|"
    "inspect|atexit|linecache"
)
CODE_NAMES = re.compile(
    r"operator\.(attrgetter|methodcaller)|types\.(Code|Function|Lambda)Type|torch\.((serialization|jit|hub)\.)?load|functools\.reduce|"
    r"torch\.package\..*|numpy\.(load|fromfile)|numpy\.testing\..*"
)
PLAIN_BUILTINS = re.compile(
    "set|frozenset|list|dict|tuple|complex|bytearray|bytes|int|float|bool|str|object|slice|x?range|type|long|unicode"
)
OLD_NAMES = {"__builtin__": "builtins", "copy_reg": "copyreg", "commands": "subprocess"}


class Refused(ValueError):
    """Raised for contents that are not allowed. The message continues the file's name: `contains a tensor of ...`."""


@dataclass(frozen=True, eq=False)
class Global:
    """A function or class that a pickle refers to by name."""

    module: str
    name: str

    @property
    def path(self) -> str:
        """`module.name`."""
        return f"{self.module}.{self.name}"


def named(module: Any, name: Any) -> Global:
    """Returns the function or class that a pickle refers to.

    Nothing would be called in any case; a name whose only use is to run code is refused because the file is hostile.

    Raises:
        Refused: for a name that runs code.
    """
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("a name that is not a string")
    target = Global(OLD_NAMES.get(module, module), name)
    first, *nested = target.module.split(".")[0], *(name.split(".") if "." in name else ())
    plain = target.module == "builtins" and PLAIN_BUILTINS.fullmatch(name)
    hidden = any(CODE_MODULES.fullmatch(part) or part.startswith("__") for part in nested)
    if not plain and (CODE_MODULES.fullmatch(first) or CODE_NAMES.fullmatch(target.path) or hidden):
        raise Refused(
            f"tries to run code ({target.path}); nothing in it was run: delete it, and get it from its authors"
        )
    return target
