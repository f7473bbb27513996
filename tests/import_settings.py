"""The rule for every importer: no setting of a file, a flag or a path can be left out or changed silently.

A `Format` names the settings of one kind of file and makes a denoiser of their values. `check_dropped` leaves a setting
out, which must then be named in an error, or be assumed; `check_changed` gives it another value, which must change the
numbers of the denoiser or be refused; `check_more` adds a flag that contradicts the rest or has no effect, which must
be refused. `setting_tests` makes the three tests of a table of formats:

    FORMATS = {"score_sde VP": Format(load, {"beta_min": Setting(st.sampled_from([0.2, 0.3]))})}
    test_dropped, test_changed, test_more = setting_tests(FORMATS)
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers import mean_and_variance
from unnoise.experiments.pretrained import loading
from unnoise.shared.denoiser import Denoiser
from unnoise.shared.errors import UsageError
from unnoise.shared.serialization import serialize

TIMES = torch.tensor([0.04, 0.5, 1.0], dtype=torch.float64)
SAME = 1e-9
"""Relative difference of numbers that are called the same: what computes the same does so to the last digit."""


@dataclass(frozen=True)
class Setting:
    """One value that decides what a file means.

    Attributes:
        values: what it can be; any two of them mean different denoisers.
        error: words of the error when it is left out; None for its name.
        note: words of the assumption that stands in for it when it is left out; None where there is none, so that it is
            asked for.
        always: whether a file cannot be without it.
    """

    values: st.SearchStrategy
    error: str | None = None
    note: str | None = None
    always: bool = False


@dataclass(frozen=True)
class Format:
    """One kind of file.

    Attributes:
        load: the denoiser of values by the settings' names, without those that are left out; it makes the file and
            calls the importer exactly as a user would (`pretrained.load` or the format's `denoiser`).
        settings: by name.
        more: flags by name, and values of each that contradict every value of the settings, or mean nothing for this
            kind of file.
        answer: what a denoiser computes, by name: numbers, or anything with `==`.
        examples: how many values `test_changed` draws for each setting.
    """

    load: Callable[[dict[str, Any]], Denoiser]
    settings: Mapping[str, Setting]
    more: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    answer: Callable[[Denoiser], dict[str, Any]] = lambda denoiser: answer(denoiser)
    examples: int = 2


def opened(name: str, contents: Any, source: str, flags: dict[str, Any]) -> Denoiser:
    """What `pretrained.load` gives of a file called `source` with these contents, which has to be of the format of this
    name.
    """
    found = loading.format_of(contents)
    assert found is not None
    assert found.name == name
    known = {k: p for k, p in inspect.signature(found.denoiser).parameters.items() if p.kind is p.KEYWORD_ONLY}
    loading.refuse_flags(flags, known, name)
    return found.denoiser(contents, source, **flags).eval()


def answer(denoiser: Denoiser) -> dict[str, Any]:
    """What a denoiser gives at fixed inputs and times, what its network is fed there, its noise, and the shape and
    quantization of its data.
    """
    shape, scale, times = tuple(denoiser.shape), denoiser.quantization, TIMES
    torch.manual_seed(0)
    text = len(shape) == 1
    x = (
        torch.arange(len(times) * shape[0]).reshape(len(times), -1) % scale.levels
        if text
        else torch.randn(len(times), *shape)
    )
    found: dict[str, Any] = {"scale": scale, "shape": shape, "conditions": denoiser.conditions}
    steps = getattr(denoiser.corruption, "steps", None)
    t = times if steps is None else (times * steps).round().clamp(min=1) / steps
    cond = {name: torch.zeros(len(x), dtype=torch.int64) for name in denoiser.conditions or () if name == "label"}
    if "image" in (denoiser.conditions or ()):
        cond["image"] = torch.randn(len(x), denoiser.network.image, *shape[1:])
    with torch.no_grad():
        given = (
            mean_and_variance(denoiser, x, t, **cond) if hasattr(denoiser, "estimate") else (denoiser(x, t, **cond),)
        )
    found |= {f"number {n}": v for n, v in enumerate(given) if v is not None}
    found["steps"], found["label"] = steps, denoiser.time_input(denoiser.corruption, t)
    found["noise"] = serialize(denoiser.corruption) if text else torch.stack(denoiser.corruption(t))
    found["ends"] = [getattr(denoiser.corruption, name, None) for name in ("t_min", "t_last")]
    return found


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two denoisers computed the same."""
    return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)


def equal(a: Any, b: Any) -> bool:
    """Whether two values are the same, tensors to nine digits."""
    if not isinstance(a, Tensor):
        return a == b
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=SAME, atol=0, equal_nan=True)


def one_line(error: UsageError) -> str:
    """An error's text."""
    assert "\n" not in str(error)
    return str(error)


def names(message: str, words: str) -> bool:
    """Whether a text has these words, also as an option of the command line.

    "its x" is the setting x of a file.
    """
    words = words.removeprefix("its ")
    return words in message or f"--{words.replace('_', '-')}" in message


def check_dropped(form: Format, values: dict[str, Any], name: str) -> None:
    """Without the setting there is an error that names it, or an assumption."""
    setting = form.settings[name]
    rest = {k: v for k, v in values.items() if k != name}
    try:
        denoiser = form.load(rest)
    except UsageError as error:
        message = one_line(error)
        assert setting.note is None or setting.error, f"{name} should be assumed, and was required: {message}"
        assert names(message, setting.error or name), f"without {name} the error names something else: {message}"
        return
    assumed = tuple(getattr(denoiser, "assumed", ()))
    assert setting.note is not None, f"without {name} a denoiser was made in silence; assumed: {assumed}"
    assert any(setting.note in sentence for sentence in assumed), (
        f"without {name} no assumption has {setting.note!r}: {assumed}"
    )


def check_changed(form: Format, values: dict[str, Any], name: str, other: Any) -> None:
    """With another value the denoiser is another, or there is a refusal of one line."""
    before = form.answer(form.load(values))
    try:
        after = form.answer(form.load(values | {name: other}))
    except UsageError as error:
        one_line(error)
        return
    assert not same(before, after), f"{name}={other!r} computes what {name}={values[name]!r} does"


def check_more(form: Format, values: dict[str, Any], name: str, value: Any) -> None:
    """A flag that contradicts the rest, or has no use, is refused by its name."""
    form.load(values)
    with pytest.raises(UsageError) as caught:
        form.load(values | {name: value})
    assert names(one_line(caught.value), name), f"{name}={value!r} is refused without its name: {caught.value}"


def drawn(data: st.DataObject, form: Format) -> dict[str, Any]:
    """Some value of each setting."""
    return {name: data.draw(setting.values, label=name) for name, setting in form.settings.items()}


def quick(examples: int) -> settings:
    """Settings of the property tests."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        database=None,
        phases=[Phase.generate],
    )


def setting_tests(formats: Mapping[str, Format]) -> tuple[Callable, Callable, Callable]:
    """The three tests of a table of formats, by name."""
    cases = [pytest.param(form, name, id=f"{key}-{name}") for key, form in formats.items() for name in form.settings]
    droppable = [case for case in cases if not case.values[0].settings[case.values[1]].always]
    surplus = [
        pytest.param(form, name, value, id=f"{key}-{name}={value}")
        for key, form in formats.items()
        for name, values in form.more.items()
        for value in values
    ]

    @pytest.mark.parametrize(("form", "name"), droppable)
    def test_dropped(form: Format, name: str) -> None:
        @quick(1)
        @given(st.data())
        def holds(data: st.DataObject) -> None:
            check_dropped(form, drawn(data, form), name)

        holds()

    @pytest.mark.parametrize(("form", "name"), cases)
    def test_changed(form: Format, name: str) -> None:
        @quick(form.examples)
        @given(st.data())
        def holds(data: st.DataObject) -> None:
            values, other = drawn(data, form), data.draw(form.settings[name].values, label=f"another {name}")
            assume(not equal(other, values[name]))
            check_changed(form, values, name, other)

        holds()

    @pytest.mark.parametrize(("form", "name", "value"), surplus)
    def test_more(form: Format, name: str, value: Any) -> None:
        @quick(1)
        @given(st.data())
        def holds(data: st.DataObject) -> None:
            check_more(form, drawn(data, form), name, value)

        holds()

    return test_dropped, test_changed, test_more
