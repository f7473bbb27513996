"""Pickles, read as data: a pickle is a program, and here it is followed without calling anything that it names.

A pickle makes its objects by calling functions by name, so whoever writes one decides what runs. `parsed` follows the
program and only notes what it would have called (`Call`) or referred to (`Global`). `Interpreter` then makes the few
that stand for data (dictionaries, sets, and what its caller adds) by code of ours, and an inert `Record` of every
other. No name of a file is ever imported.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

CODE_MODULES = re.compile(
    "os|posix|nt|posixpath|ntpath|subprocess|_posixsubprocess|sys|builtins|runpy|importlib|_frozen_importlib|imp|pkgutil|zipimport|shutil|"
    "_?socket|_?ctypes|cffi|pty|code|codeop|pdb|bdb|timeit|cProfile|profile|trace|marshal|c?_?[pP]ickle|dill|cloudpickle|joblib|shelve|"
    "webbrowser|multiprocessing|_?thread|threading|asyncio|signal|tempfile|_?io|fileinput|urllib|http|ftplib|smtplib|requests|pip|ensurepip|"
    "httplib|urllib2|popen2|distutils|gc|inspect|atexit|linecache"
)
CODE_NAMES = re.compile(
    r"operator\.(attrgetter|methodcaller)|types\.(Code|Function|Lambda)Type|torch\.((serialization|jit|hub)\.)?load|functools\.reduce|"
    r"torch\.package\..*|numpy\.(load|fromfile)|numpy\.testing\..*"
)
PLAIN_BUILTINS = re.compile(
    "set|frozenset|list|dict|tuple|complex|bytearray|bytes|int|float|bool|str|object|slice|x?range|type|long|unicode"
)
OLD_NAMES = {"__builtin__": "builtins", "copy_reg": "copyreg", "commands": "subprocess"}
MAPPINGS = ("builtins.dict", "collections.OrderedDict", "collections.defaultdict", "collections.Counter")
LONGEST = 32
"""Items of a tuple that is a key."""
LARGEST = 2**128
"""Of the numbers that are keys."""
COPIED = 10_000_000
"""Items that calls may copy from what they are given, in all."""
SEQUENCES: dict[str, Callable[[list[Any]], Any]] = {
    "builtins.set": tuple,
    "builtins.frozenset": tuple,
    "builtins.tuple": tuple,
    "builtins.list": list,
    "torch.Size": tuple,
}


class Refused(ValueError):
    """What a file may not hold. The message follows the file's name: `holds a tensor of ...`."""


class Stream(Protocol):
    """Bytes to read in order, such as a `BytesIO` or an `mmap`, which never hand out more than they have."""

    def read(self, n: int, /) -> bytes:
        """The next `n` bytes, or fewer at the end."""

    def readline(self) -> bytes:
        """The bytes up to the next line feed."""


@dataclass(frozen=True, eq=False)
class Record:
    """An object of a class that is not built here: what it was called and what it held.

    Attributes:
        name: of its class (or of the function or class itself, where a file refers to one).
        module: where that was defined.
        state: its attributes, for a network with `_parameters`, `_buffers` and `_modules`; a mapping's items.
    """

    name: str
    module: str
    state: dict[Any, Any] = field(
        repr=False
    )  # which may hold itself, or one object so often that it is without end when written out


@dataclass(frozen=True, eq=False)
class Global:
    """A name that a pickle refers to."""

    module: str
    name: str

    @property
    def path(self) -> str:
        """`module.name`."""
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, eq=False)
class Persistent:
    """A reference to what lies outside of the pickle: in torch's files, a storage."""

    key: Any


class Call:
    """What a pickle would have called, with what it would have then put in: list items, mapping items and state.

    `content` is what an object of a class derived from a list, tuple or dictionary begins with, in pickles before
    protocol 2.
    """

    __slots__ = ("arguments", "content", "elements", "items", "state", "what")

    def __init__(self, what: Any, arguments: Any) -> None:
        if not isinstance(what, Global) or not isinstance(arguments, tuple):
            raise Refused(
                "calls what it has computed, as code does and weights do not; nothing of it was run: get it from its authors"
            )
        self.state: Any = None
        self.content: Any = ()
        self.elements: list[Any] = []
        self.items: list[tuple[Any, Any]] = []
        if what.path in ("copyreg.__newobj__", "copyreg.__newobj_ex__", "copyreg._reconstructor"):
            made, *rest = arguments
            content = rest[1] if what.name == "_reconstructor" else None
            self.content = content if isinstance(content, dict | list | tuple) else ()
            what, arguments = (
                made,
                rest[0] if what.name == "__newobj_ex__" else () if what.name == "_reconstructor" else tuple(rest),
            )
            if not isinstance(what, Global) or not isinstance(arguments, tuple):
                raise ValueError("an object without a class")
        self.what = what
        self.arguments = arguments


def named(module: Any, name: Any) -> Global:
    """The name that a pickle refers to.

    Nothing would be called in any case. A file that names what has no use but to run code is refused because it is
    hostile.

    Raises:
        Refused: for a name of code.
    """
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("a name that is not a string")
    found = Global(OLD_NAMES.get(module, module), name)
    first, *nested = found.module.split(".")[0], *(name.split(".") if "." in name else ())
    plain = found.module == "builtins" and PLAIN_BUILTINS.fullmatch(name)
    hidden = any(CODE_MODULES.fullmatch(part) or part.startswith("__") for part in nested)
    if not plain and (CODE_MODULES.fullmatch(first) or CODE_NAMES.fullmatch(found.path) or hidden):
        raise Refused(
            f"wants to call {found.path}, which is code and no weight; nothing of it was run: delete it, and get it from its authors"
        )
    return found


def parsed(stream: Stream, references: list[Persistent] | None = None) -> Any:
    """The next pickle of a stream, up to its end: plain values, and `Call`, `Global` and `Persistent` in place of all
    else.

    Args:
        stream: at the pickle's first byte.
        references: takes every `Persistent` of it.

    Raises:
        Refused: for what no file of weights does.
        Exception: of any kind where the bytes are no pickle.
    """
    machine = Machine([] if references is None else references)
    for opcode, argument, _ in pickletools.genops(stream):
        machine.step(opcode.name, argument)
    return machine.stack.pop()


def key(node: Any) -> Any:
    """A key of a mapping, as it is, if to look it up and to write it takes little.

    The same tuple may stand in another twice, that one in a third, and so on: its hash, and its text, then take without
    end. What a call makes is seen when it is made.

    Raises:
        Refused: for what is no string, number, bytes, None or short tuple of these, and for numbers of more than 128
            bits.
        ValueError: for what no program could have for a key.
    """
    parts = node if isinstance(node, tuple) and len(node) <= LONGEST else (node,)
    for part in parts:
        number = isinstance(part, int) and abs(part) <= LARGEST
        if isinstance(part, dict | list):
            raise ValueError(f"a {type(part).__name__} is a key")
        if not number and not isinstance(part, str | float | bytes | Call | Global | None):
            raise Refused(
                f"has a {type(part).__name__} for a key, which files of weights do not: get it from its authors"
            )
    return node


class Machine:
    """The stack machine that a pickle is a program for, with notes in place of calls."""

    def __init__(self, references: list[Persistent]) -> None:
        self.references = references
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def marked(self) -> list[Any]:
        """Takes all that was put on the stack since the last mark."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def taken(self, n: int) -> list[Any]:
        """Takes the last `n` of the stack."""
        return [self.stack.pop() for _ in range(n)][::-1]

    def step(self, name: str, argument: Any) -> None:
        """Follows one instruction."""
        match name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                self.stack.append(self.memo[argument])
            case "MARK":
                self.below.append(self.stack)
                self.stack = []
            case "POP":
                self.stack.pop() if self.stack else self.marked()
            case "POP_MARK":
                self.marked()
            case "DUP":
                self.stack.append(self.stack[-1])
            case "APPEND" | "APPENDS" | "ADDITEMS" | "SETITEM" | "SETITEMS" | "BUILD":
                self.put(name)
            case "PERSID" | "EXT1" | "EXT2" | "EXT4" | "NEXT_BUFFER" | "READONLY_BUFFER":
                raise Refused(
                    "refers to objects that are not in it, which files of weights do not: get it from its authors"
                )
            case _:
                made = self.made(name, argument)  # which may take the stack away
                self.stack.append(made)

    def made(self, name: str, argument: Any) -> Any:
        """What an instruction puts on the stack."""
        match name:
            case "NONE":
                return None
            case "NEWTRUE" | "NEWFALSE":
                return name == "NEWTRUE"
            case "EMPTY_LIST":
                return []
            case "EMPTY_DICT":
                return {}
            case "EMPTY_TUPLE":
                return ()
            case "EMPTY_SET":
                return Call(Global("builtins", "set"), ())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                return tuple(self.taken(int(name[-1])))
            case "TUPLE":
                return tuple(self.marked())
            case "LIST":
                return self.marked()
            case "FROZENSET":
                return Call(Global("builtins", "frozenset"), (self.marked(),))
            case "DICT":
                items = self.marked()
                return dict(zip(map(key, items[::2]), items[1::2], strict=True))
            case "GLOBAL":
                return named(*argument.split(" ", 1))
            case "STACK_GLOBAL":
                return named(*self.taken(2))
            case "REDUCE" | "NEWOBJ":
                return Call(*self.taken(2))
            case "NEWOBJ_EX":
                return Call(*self.taken(3)[:2])
            case "INST":
                return Call(named(*argument.split(" ", 1)), tuple(self.marked()))
            case "OBJ":
                what, *arguments = self.marked()
                return Call(what, tuple(arguments))
            case "BINPERSID":
                self.references.append(Persistent(self.stack.pop()))
                return self.references[-1]
        if argument is None:
            raise ValueError(f"the instruction {name}")
        return argument

    def put(self, name: str) -> None:
        """Puts items or a state into the object below them on the stack."""
        several = name.endswith("S")
        items = self.marked() if several else self.taken(2 if name == "SETITEM" else 1)
        target = self.stack[-1]
        if name == "BUILD":
            if not isinstance(target, Call):
                raise ValueError("a state for what has none")
            target.state = items[0]
        elif name.startswith("SETITEM"):
            pairs = list(zip(map(key, items[::2]), items[1::2], strict=True))
            if not isinstance(target, dict | Call):
                raise ValueError("items for what has none")
            target.update(pairs) if isinstance(target, dict) else target.items.extend(pairs)
        elif isinstance(target, list | Call):
            (target if isinstance(target, list) else target.elements).extend(items)
        else:
            raise ValueError("elements for what has none")


class Interpreter:
    """Turns what `parsed` gives into dictionaries, lists, tuples, numbers, strings, bytes, `Record`s, and what
    `storage` and `makers` make.

    Args:
        storage: what a `Persistent` key stands for.
        makers: by name, what a call stands for, from its state and its arguments; None leaves it to be a `Record`.
    """

    def __init__(self, storage: Callable[[Any], Any], makers: Mapping[str, Callable[..., Any]]) -> None:
        self.storage = storage
        self.makers = makers
        self.memo: dict[int, Any] = {}
        self.kept: list[Call] = []
        self.left = COPIED

    def value(self, node: Any) -> Any:
        """What a node stands for; shared nodes stay shared, and cycles are followed once."""
        if node is None or isinstance(node, bool | int | float | complex | str | bytes):
            return node
        if id(node) not in self.memo:
            match node:
                case list():
                    made: Any = self.memo.setdefault(id(node), [])
                    made.extend(self.value(v) for v in node)
                case dict():
                    made = self.memo.setdefault(id(node), {})
                    made.update(self.pairs(node.items()))
                case tuple():
                    made = tuple(self.value(v) for v in node)
                case bytearray():
                    made = bytes(node)
                case Global():
                    made = Record(node.name, node.module, {})
                case Persistent():
                    made = self.storage(node.key)
                case _:
                    made = self.called(node)
            self.memo[id(node)] = made
        return self.memo[id(node)]

    def pairs(self, items: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        """What keys and values stand for; a class that is a key is its dotted name."""
        for k, v in items:
            found = self.value(k)
            yield key(f"{found.module}.{found.name}" if isinstance(k, Global) else found), self.value(v)

    def copied(self, items: Any) -> Any:
        """What is about to be copied, if there is not too much of it.

        A list could be copied by every few bytes of a file.
        """
        self.left -= len(items)
        if self.left < 0:
            raise Refused(
                f"has calls that copy more than {COPIED:,} items, as files of weights do not: get it from its authors"
            )
        return items

    def called(self, call: Call) -> Any:
        """What a call stands for."""
        path = call.what.path.replace("numpy._core.", "numpy.core.")
        if path.endswith("persistence._reconstruct_persistent_obj"):
            (meta,) = self.value(call.arguments)
            if not isinstance(meta["class_name"], str) or not isinstance(meta["state"], dict | None):
                raise ValueError("an object without a class")
            return Record(meta["class_name"], call.what.module, dict(self.copied(meta["state"] or {})))
        if path in MAPPINGS or call.what.name == "EasyDict":
            return self.mapping(call)
        if path in SEQUENCES:
            (given,) = self.value(call.arguments) or (self.value(call.content),)
            return SEQUENCES[path]([*self.copied(given), *map(self.value, call.elements)])
        if path == "torch._tensor._rebuild_from_type_v2":
            function, _, arguments, _ = call.arguments
            self.kept.append(Call(function, arguments))  # or its id would name another object in the memo
            return self.called(self.kept[-1])
        if (
            path in self.makers
            and (made := self.makers[path](self.value(call.state), *self.value(call.arguments))) is not None
        ):
            return made
        if path.startswith("torch._utils._rebuild"):
            raise Refused(f"holds a tensor that {path} makes, a kind that is not read: save it as dense tensors first")
        return self.record(call)

    def mapping(self, call: Call) -> dict[Any, Any]:
        """A dictionary of one of the common kinds."""
        made: dict[Any, Any] = {}
        self.memo[id(call)] = made
        for given in map(self.value, (*call.arguments, call.content)):
            if isinstance(given, dict | list):
                made.update((key(k), v) for k, v in (given.items() if isinstance(self.copied(given), dict) else given))
        made.update(self.pairs(call.items))
        return made

    def record(self, call: Call) -> Record:
        """An object of a class that is not known."""
        made = Record(call.what.name, call.what.module, {})
        self.memo[id(call)] = made
        content = self.copied(self.value(call.content))
        made.state.update(content if isinstance(content, dict) else {})
        made.state.update(self.pairs(call.items))
        if elements := [*(() if isinstance(content, dict) else content), *map(self.value, call.elements)]:
            made.state["elements"] = elements
        state = self.value(call.state)
        slotted = isinstance(state, tuple) and len(state) == 2 and all(p is None or isinstance(p, dict) for p in state)
        for part in state if slotted else [state]:
            made.state.update(self.copied(part) if isinstance(part, dict) else {} if part is None else {"state": part})
        return made
