"""Reads pickles as data: no function that a pickle names is imported or called.

A pickle is a program that builds objects by calling functions by name, so whoever writes a pickle decides what runs.
`parsed` executes the program but only records what it would have called (`Call`) or referred to (`Global`).
`Interpreter` then builds the few objects that stand for data (dictionaries, sets, and those that its caller adds) with
code of this module, and an inert `Record` for every other.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any, Protocol, cast

from .pickle_names import Global, Refused, named

MAPPINGS = ("builtins.dict", "collections.OrderedDict", "collections.defaultdict", "collections.Counter")
LONGEST = 32
"""The most items of a tuple that is a key of a dictionary."""
LARGEST = 2**128
"""The largest number that is a key of a dictionary."""
COPIED = 10_000_000
"""The most items that all calls together may copy from their arguments."""
SEQUENCES: dict[str, Callable[[list[Any]], Any]] = {
    "builtins.set": tuple,
    "builtins.frozenset": tuple,
    "builtins.tuple": tuple,
    "builtins.list": list,
    "torch.Size": tuple,
}


class Stream(Protocol):
    """Bytes that are read in order, such as a `BytesIO` or an `mmap`."""

    def read(self, n: int, /) -> bytes:
        """Returns the next `n` bytes, or fewer at the end."""
        ...

    def readline(self) -> bytes:
        """Returns the bytes up to and including the next line feed."""
        ...


@dataclass(frozen=True, eq=False)
class Record:
    """An object of a class that is not built here.

    Attributes:
        name: the name of its class, or of the function or class that a file refers to.
        module: the module that defines it.
        state: its attributes, for a network with `_parameters`, `_buffers` and `_modules`; for a mapping its items.
    """

    name: str
    module: str
    state: dict[Any, Any] = field(repr=False)  # may contain itself, or one object so often that its text has no end


@dataclass(frozen=True, eq=False)
class Persistent:
    """A reference to an object outside of the pickle: in PyTorch files, a storage."""

    key: Any


class Call:
    """A call that a pickle would make, and what it would then add to the result: list items, mapping items and state.

    Attributes:
        content: initial contents of an object whose class derives from list, tuple or dictionary, in pickles before
            protocol 2.
    """

    __slots__ = ("arguments", "content", "elements", "items", "state", "what")

    def __init__(self, what: Any, arguments: Any) -> None:
        if not isinstance(what, Global) or not isinstance(arguments, tuple):
            raise Refused(
                "calls a computed function, which weight files do not; nothing in it was run: get it from its authors"
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


def parsed(stream: Stream, references: list[Persistent] | None = None) -> Any:
    """Parses the next pickle of a stream into plain values, `Call`, `Global` and `Persistent`.

    Args:
        stream: at the pickle's first byte.
        references: a list to which every `Persistent` is appended.

    Raises:
        Refused: for instructions that weight files do not use.
        Exception: of any type where the bytes are not a pickle.
    """
    machine = Machine([] if references is None else references)
    for opcode, argument, _ in pickletools.genops(cast("IO[bytes]", stream)):  # which only reads
        machine.step(opcode.name, argument)
    return machine.stack.pop()


def key(node: Any) -> Any:
    """Returns a key of a mapping, after checking that its hash and its text take little time.

    A tuple may contain another one twice, which contains a third twice, and so on: its hash and its text have no end.
    The results of calls are checked when they are built.

    Raises:
        Refused: for anything but a string, a number of at most 128 bits, bytes, None, or a short tuple of these.
        ValueError: for a list or dictionary, which cannot be keys.
    """
    parts = node if isinstance(node, tuple) and len(node) <= LONGEST else (node,)
    for part in parts:
        number = isinstance(part, int) and abs(part) <= LARGEST
        if isinstance(part, dict | list):
            raise ValueError(f"a {type(part).__name__} is a key")
        if not number and not isinstance(part, str | float | bytes | Call | Global | None):
            raise Refused(f"has a {type(part).__name__} as a key, which weight files do not: get it from its authors")
    return node


class Machine:
    """The stack machine that executes a pickle, with records in place of calls."""

    def __init__(self, references: list[Persistent]) -> None:
        self.references = references
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def marked(self) -> list[Any]:
        """Pops everything that was pushed since the last mark."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def taken(self, n: int) -> list[Any]:
        """Pops the last `n` items of the stack."""
        return [self.stack.pop() for _ in range(n)][::-1]

    def step(self, name: str, argument: Any) -> None:
        """Executes one instruction."""
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
                raise Refused("refers to objects outside of it, which weight files do not: get it from its authors")
            case _:
                made = self.made(name, argument)  # may replace the stack
                self.stack.append(made)

    def made(self, name: str, argument: Any) -> Any:
        """Returns what an instruction pushes on the stack."""
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
        """Adds items or a state to the object below them on the stack."""
        several = name.endswith("S")
        items = self.marked() if several else self.taken(2 if name == "SETITEM" else 1)
        target = self.stack[-1]
        if name == "BUILD":
            if not isinstance(target, Call):
                raise ValueError("a state for an object that cannot have one")
            target.state = items[0]
        elif name.startswith("SETITEM"):
            pairs = list(zip(map(key, items[::2]), items[1::2], strict=True))
            if not isinstance(target, dict | Call):
                raise ValueError("items for an object that cannot have any")
            target.update(pairs) if isinstance(target, dict) else target.items.extend(pairs)
        elif isinstance(target, list | Call):
            (target if isinstance(target, list) else target.elements).extend(items)
        else:
            raise ValueError("elements for an object that cannot have any")


class Interpreter:
    """Converts the result of `parsed` into dictionaries, lists, tuples, numbers, strings, bytes and `Record`s.

    Args:
        storage: returns the object of a `Persistent` key.
        makers: by name, `(state, *arguments) ->` the result of a call, or None to leave it as a `Record`.
    """

    def __init__(self, storage: Callable[[Any], Any], makers: Mapping[str, Callable[..., Any]]) -> None:
        self.storage = storage
        self.makers = makers
        self.memo: dict[int, Any] = {}
        self.kept: list[Call] = []
        self.left = COPIED

    def value(self, node: Any) -> Any:
        """Returns the value of a node; shared nodes stay shared, and cycles are followed once."""
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
        """Yields the values of keys and items; a class that is a key becomes its dotted name."""
        for k, v in items:
            target = self.value(k)
            yield key(f"{target.module}.{target.name}" if isinstance(k, Global) else target), self.value(v)

    def copied(self, items: Any) -> Any:
        """Returns items that are about to be copied, after counting them against `COPIED`.

        Every few bytes of a file could copy a long list.
        """
        self.left -= len(items)
        if self.left < 0:
            raise Refused(
                f"has calls that copy more than {COPIED:,} items, which weight files do not: get it from its authors"
            )
        return items

    def called(self, call: Call) -> Any:
        """Returns the result of a call."""
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
            self.kept.append(Call(function, arguments))  # kept, or its id could become another object's in the memo
            return self.called(self.kept[-1])
        if (
            path in self.makers
            and (made := self.makers[path](self.value(call.state), *self.value(call.arguments))) is not None
        ):
            return made
        if path.startswith("torch._utils._rebuild"):
            raise Refused(f"contains a tensor built by {path}, which is not supported: save it as a dense tensor first")
        return self.record(call)

    def mapping(self, call: Call) -> dict[Any, Any]:
        """Builds a dictionary of one of the common classes."""
        made: dict[Any, Any] = {}
        self.memo[id(call)] = made
        for given in map(self.value, (*call.arguments, call.content)):
            if isinstance(given, dict | list):
                self.copied(given)
                made.update((key(k), v) for k, v in (given.items() if isinstance(given, dict) else given))
        made.update(self.pairs(call.items))
        return made

    def record(self, call: Call) -> Record:
        """Builds the record of an object of any other class."""
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
