"""Reads pickles as data: no function that a pickle names is imported or called.

A pickle is a program that builds objects by calling functions by name, so whoever writes a pickle decides what runs.
`Pickle` executes the program but only records what it would have called (`Call`) or referred to (`Global`). It then
builds the few objects that stand for data (dictionaries, sets, and those that its caller adds) with code of this module
and of its caller, and an inert `Record` for every other.

A subclass of `pickle.Unpickler` cannot do this safely, whatever its `find_class` returns: it takes functions from
copyreg's cache without asking, takes the hash of keys that overflow the stack or have no end, and allocates memory for
as many bytes and numbered objects as a file announces.
"""

from __future__ import annotations

import io
import mmap
import pickletools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any, NoReturn, cast

from .pickle_names import Global, Refused, named

MAPPINGS = ("builtins.dict", "collections.OrderedDict", "collections.defaultdict", "collections.Counter")
LONGEST = 32
"""The most items of a tuple that is a key of a dictionary, and the most dimensions of a tensor."""
LARGEST = 2**128
"""The largest number that is a key of a dictionary."""
HASHES, ALIKE = 2**61 - 1, 10_000
"""Larger numbers may have the same hash, and finding one among them takes long: at most `ALIKE` are keys."""
LETTERS = 1000
"""The most letters of a function's or class's name, which is compared at every call."""
COPIED = 10_000_000
"""The most items and bytes that all calls together may copy of objects that the file contains once."""


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


@dataclass(frozen=True, eq=False)
class Call:
    """A call that a pickle would make, and the state of the `Record` that it becomes where it is not made."""

    what: Global
    arguments: tuple[Any, ...]
    state: dict[Any, Any]


class Fixed(list[Any]):
    """A set or tuple, which instructions may still extend; it becomes a tuple."""


SEQUENCES: dict[str, type[list[Any]]] = {
    **dict.fromkeys(("builtins.set", "builtins.frozenset", "builtins.tuple", "torch.Size"), Fixed),
    "builtins.list": list,
}


def outside(*_: Any) -> NoReturn:
    """Refuses a reference to an object outside of a pickle."""
    raise Refused("refers to objects outside of it, which weight files do not: get it from its authors")


def global_of(module: Any, name: Any) -> Global:
    """Returns a function or class by name; refuses names that run code."""
    if not isinstance(module, str) or not isinstance(name, str) or len(module) + len(name) > LETTERS:
        raise ValueError(f"a name that is not a string, or has more than {LETTERS} letters")
    return named(module, name)


class Pickle:
    """The pickle at a stream's position, as plain values, `Fixed`, `Global`, `Call` and `Persistent`.

    Attributes:
        root: what it contains.
        references: every `Persistent` in it.

    Raises:
        Refused: for instructions that weight files do not use.
        Exception: of any type where the bytes are not a pickle.
    """

    def __init__(self, stream: mmap.mmap | io.BytesIO) -> None:
        self.references: list[Persistent] = []
        self.stack: list[Any] = []  # what was pushed since the last mark
        self.below: list[list[Any]] = []  # what was pushed before it and each earlier one
        self.memo: dict[int, Any] = {}
        self.left, self.alike = COPIED, 0
        for opcode, argument, _ in pickletools.genops(cast("IO[bytes]", stream)):  # which only reads
            if (step := STEPS.get(opcode.name)) is not None:
                step(self, argument)
            elif argument is not None:
                self.stack.append(argument)
            else:
                raise ValueError(f"the instruction {opcode.name}")
        self.root = self.stack.pop()

    def value(self, storage: Callable[[Any], Any], makers: Mapping[str, Callable[..., Any]]) -> Any:
        """Converts the contents into dictionaries, lists, tuples, numbers, strings, bytes and `Record`s.

        Args:
            storage: returns the object of a `Persistent` key.
            makers: by name, `(state, *arguments) ->` the result of a call, or None to leave it as a `Record`.
        """
        self.storage, self.makers, self.alike = storage, makers, 0
        self.values: dict[int, Any] = {}
        self.given: set[int] = set()
        return self.converted(self.root)

    def push(self, value: Any) -> None:
        """Puts a value on the stack."""
        self.stack.append(value)

    def marked(self) -> list[Any]:
        """Pops everything that was pushed since the last mark."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def taken(self, n: int) -> list[Any]:
        """Pops the last `n` items of the stack."""
        return [self.stack.pop() for _ in range(n)][::-1]

    def mark(self) -> None:
        """Begins a list of items."""
        self.below.append(self.stack)
        self.stack = []

    def refer(self, reference: Any) -> None:
        """Puts a reference on the stack."""
        self.references.append(Persistent(reference))
        self.push(self.references[-1])

    def copied(self, items: Any) -> Any:
        """Returns items that are about to be copied, after counting them against `COPIED`.

        Every few bytes of a file could copy a long list, or the bytes of a tensor.
        """
        self.left -= len(items)
        if self.left < 0:
            raise Refused(
                f"has calls that copy more than {COPIED:,} items, which weight files do not: get it from its authors"
            )
        return items

    def key(self, node: Any) -> Any:
        """Returns a key of a mapping, after checking that its hash and its text take little time.

        A tuple may contain another one twice, which contains a third twice, and so on: its hash and its text have no
        end. The results of calls are checked when they are built.

        Raises:
            Refused: for anything but a string, a number of at most 128 bits, bytes, None, or a short tuple of these,
                and for many large numbers.
            ValueError: for a list or dictionary, which cannot be keys.
        """
        for part in node if isinstance(node, tuple) and len(node) <= LONGEST else (node,):
            if isinstance(part, dict | list):
                raise ValueError(f"a {type(part).__name__} is a key")
            size = abs(part) if isinstance(part, int) else 0
            self.alike += size > HASHES
            known = isinstance(part, str | int | float | bytes | Call | Global | None)
            if not known or size > LARGEST or self.alike > ALIKE:
                raise Refused(
                    f"has a {type(part).__name__} as a key, which weight files do not: get it from its authors"
                )
        return node

    def paired(self, items: list[Any]) -> Iterator[tuple[Any, Any]]:
        """Returns pairs of keys and values, which follow each other."""
        return zip(map(self.key, items[::2]), items[1::2], strict=True)

    def call(self, what: Any, arguments: Any) -> Any:
        """Returns a list or dictionary for a call that makes one, and a `Call` for every other."""
        if not isinstance(what, Global) or not isinstance(arguments, tuple):
            raise Refused(
                "calls a computed function, which weight files do not; nothing in it was run: get it from its authors"
            )
        content: Any = ()
        match what.path:
            case "copyreg.__newobj__":
                return self.call(arguments[0], self.copied(arguments[1:]))
            case "copyreg.__newobj_ex__":
                return self.call(*arguments[:2])
            case "torch._tensor._rebuild_from_type_v2":
                return self.call(arguments[0], arguments[2])
            case "copyreg._reconstructor":  # before protocol 2: a class, the built-in class it derives from, its items
                what, _, content = arguments
                arguments = (content,)
        if not isinstance(what, Global):
            raise ValueError("an object without a class")
        if what.path in SEQUENCES:
            (given,) = arguments or ((),)
            return SEQUENCES[what.path](self.copied(given))
        if what.path in MAPPINGS or what.name == "EasyDict":
            made: dict[Any, Any] = {}
            for given in arguments:
                if isinstance(given, dict | list):
                    pairs = given.items() if isinstance(given, dict) else given
                    made.update((self.key(k), v) for k, v in self.copied(pairs))
            return made
        if what.path.endswith("persistence._reconstruct_persistent_obj"):
            (meta,) = arguments
            what, content = global_of(what.module, meta["class_name"]), meta["state"]
        held = self.copied(content if isinstance(content, dict | list | tuple) else ())
        return Call(what, arguments, {**held} if isinstance(held, dict) else {"elements": [*held]} if held else {})

    def build(self, state: Any) -> None:
        """Adds a state to the object below it; the attributes that a dictionary or set may have are left out."""
        target = self.stack[-1]
        if isinstance(target, Call):
            slotted = isinstance(state, tuple) and len(state) == 2 and all(isinstance(p, dict | None) for p in state)
            for part in state if slotted else (state,):
                if part is not None:
                    target.state.update(self.copied(part) if isinstance(part, dict) else {"state": part})
        elif not isinstance(target, dict | Fixed):
            raise ValueError("a state for an object that cannot have one")

    def extend(self, elements: list[Any]) -> None:
        """Adds elements to the object below them."""
        target = self.stack[-1]
        if not isinstance(target, list | Call):
            raise ValueError("elements for an object that cannot have any")
        (target if isinstance(target, list) else target.state.setdefault("elements", [])).extend(elements)

    def update(self, items: list[Any]) -> None:
        """Adds keys and values in turn to the object below them."""
        target = self.stack[-1]
        if not isinstance(target, dict | Call):
            raise ValueError("items for an object that cannot have any")
        (target if isinstance(target, dict) else target.state).update(self.paired(items))

    def converted(self, node: Any) -> Any:
        """Returns the value of a node; shared nodes stay shared, and cycles are followed once."""
        if node is None or isinstance(node, bool | int | float | str | bytes):
            return node
        if id(node) not in self.values:
            match node:
                case Fixed() | tuple():
                    made: Any = tuple(self.converted(v) for v in node)
                case list():
                    made = self.values.setdefault(id(node), [])
                    made.extend(self.converted(v) for v in node)
                case dict():
                    made = self.values.setdefault(id(node), {})
                    made.update(self.pairs(node.items()))
                case bytearray():
                    made = bytes(node)
                case Global():
                    made = Record(node.name, node.module, {})
                case Persistent():
                    made = self.storage(node.key)
                case _:
                    made = self.result(node)
            self.values[id(node)] = made
        return self.values[id(node)]

    def pairs(self, items: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        """Yields the values of keys and items; a class that is a key becomes its dotted name."""
        for k, v in items:
            target = self.converted(k)
            yield self.key(f"{target.module}.{target.name}" if isinstance(k, Global) else target), self.converted(v)

    def result(self, call: Call) -> Any:
        """Returns the result of a call."""
        path = call.what.path.replace("numpy._core.", "numpy.core.")
        if path in self.makers:
            state, arguments = self.converted(call.state.get("state")), self.converted(call.arguments)
            for part in (arguments, *arguments, *(state if isinstance(state, tuple) else ())):
                if isinstance(part, str | bytes | list | tuple):
                    self.copied(part if id(part) in self.given else ())
                    self.given.add(id(part))
            if (made := self.makers[path](state, *arguments)) is not None:
                return made
        if path.startswith("torch._utils._rebuild"):
            raise Refused(f"contains a tensor built by {path}, which is not supported: save it as a dense tensor first")
        made = self.values[id(call)] = Record(call.what.name, call.what.module, {})
        made.state.update(self.pairs(call.state.items()))
        return made


STEPS: dict[str, Callable[[Pickle, Any], Any]] = {  # all others push their argument
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda p, _: None),
    **dict.fromkeys(("PERSID", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"), outside),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda p, n: p.memo.update({n: p.stack[-1]})),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda p, n: p.stack.append(p.memo[n])),
    "MEMOIZE": lambda p, _: p.memo.update({len(p.memo): p.stack[-1]}),
    "MARK": lambda p, _: p.mark(),
    "POP": lambda p, _: p.stack.pop() if p.stack else p.marked(),
    "POP_MARK": lambda p, _: p.marked(),
    "DUP": lambda p, _: p.push(p.stack[-1]),
    "NONE": lambda p, _: p.push(None),
    "NEWTRUE": lambda p, _: p.push(True),
    "NEWFALSE": lambda p, _: p.push(False),
    "EMPTY_LIST": lambda p, _: p.push([]),
    "EMPTY_DICT": lambda p, _: p.push({}),
    "EMPTY_TUPLE": lambda p, _: p.push(()),
    "EMPTY_SET": lambda p, _: p.push(Fixed()),
    "TUPLE1": lambda p, _: p.push(tuple(p.taken(1))),
    "TUPLE2": lambda p, _: p.push(tuple(p.taken(2))),
    "TUPLE3": lambda p, _: p.push(tuple(p.taken(3))),
    "TUPLE": lambda p, _: p.push(tuple(p.marked())),
    "LIST": lambda p, _: p.push(p.marked()),
    "FROZENSET": lambda p, _: p.push(Fixed(p.marked())),
    "DICT": lambda p, _: p.push(dict(p.paired(p.marked()))),
    "GLOBAL": lambda p, names: p.push(global_of(*names.split(" ", 1))),
    "STACK_GLOBAL": lambda p, _: p.push(global_of(*p.taken(2))),
    "BINPERSID": lambda p, _: p.refer(p.stack.pop()),
    "REDUCE": lambda p, _: p.push(p.call(*p.taken(2))),
    "NEWOBJ": lambda p, _: p.push(p.call(*p.taken(2))),
    "NEWOBJ_EX": lambda p, _: p.push(p.call(*p.taken(3)[:2])),  # without the arguments by name
    "INST": lambda p, names: p.push(p.call(global_of(*names.split(" ", 1)), tuple(p.marked()))),
    "OBJ": lambda p, _: p.push(p.call((parts := p.marked())[0], tuple(parts[1:]))),
    "BUILD": lambda p, _: p.build(p.stack.pop()),
    "APPEND": lambda p, _: p.extend([p.stack.pop()]),
    "APPENDS": lambda p, _: p.extend(p.marked()),
    "ADDITEMS": lambda p, _: p.extend(p.marked()),
    "SETITEM": lambda p, _: p.update(p.taken(2)),
    "SETITEMS": lambda p, _: p.update(p.marked()),
}
