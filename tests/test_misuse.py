"""The whole public surface, given anything: only misuse that docs/semantics.md lists raises, and nothing ends a run.

What is called is found in the package itself, so a new public name is covered when it comes.
"""

from __future__ import annotations

import builtins
import collections
import datetime
import decimal
import enum
import fractions
import inspect
import io
import os
import re
import threading
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import trackio
from trackio import context_vars, opening, process, surface, voice
from trackio.configuration import Current, Told
from trackio.values import short_repr
from trackiod import errors

SEMANTICS = (Path(__file__).parent.parent / "docs" / "semantics.md").read_text()


class Odd(Exception):
    """What hostile values raise."""


def fail(*_: Any, **__: Any) -> Any:
    raise Odd("hostile")


class Hostile:
    """Raises whatever is asked of it."""

    __repr__ = __str__ = __bool__ = __len__ = __iter__ = __float__ = __int__ = __index__ = __hash__ = __eq__ = fail
    __getattr__ = __getitem__ = __contains__ = __array__ = __fspath__ = __call__ = __lt__ = __format__ = fail


class Disguised:
    @property
    def __class__(self) -> Any:  # type: ignore[override]
        raise Odd


class HostileText(str):
    __eq__ = __len__ = __str__ = __repr__ = __iter__ = __contains__ = encode = strip = replace = startswith = fail
    __hash__ = str.__hash__


class HostileInt(int):
    __int__ = __index__ = __float__ = __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __repr__ = __bool__ = fail
    __hash__ = int.__hash__


class HostileFloat(float):
    __int__ = __float__ = __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __repr__ = __bool__ = fail
    __hash__ = float.__hash__


class HostileList(list[Any]):
    __iter__ = __len__ = __getitem__ = __eq__ = __repr__ = __contains__ = fail


class HostileDict(dict[Any, Any]):
    items = keys = values = get = __iter__ = __len__ = __getitem__ = __contains__ = __eq__ = __repr__ = fail


class HostileMapping(Mapping[Any, Any]):
    __getitem__ = __len__ = fail

    def __iter__(self) -> Iterator[Any]:
        return iter(["a", Hostile(), "b"])


class HalfHostile(Mapping[Any, Any]):
    """Some of its values cannot be read."""

    def __getitem__(self, key: Any) -> Any:
        if key == "unset":
            raise Odd("not set")
        return 1

    def __iter__(self) -> Iterator[Any]:
        return iter(["set", "unset"])

    def __len__(self) -> int:
        return 2


class Meta(type):
    __name__ = property(fail)  # type: ignore[assignment]
    __repr__ = __instancecheck__ = fail


class Strange(metaclass=Meta):
    pass


class Colour(enum.IntEnum):
    RED = 1


class Word(str, enum.Enum):  # noqa: UP042 people have such
    RED = "red"


class Reading:
    def __init__(self, content: Any) -> None:
        self.read = lambda *_: content


def looped() -> Any:
    loop: dict[Any, Any] = {"list": []}
    loop["self"], loop["list"] = loop, [loop, loop["list"]]
    return loop


def deep() -> Any:
    value: Any = 1
    for _ in range(3000):
        value = [value]
    return value


def gone() -> Any:
    return weakref.proxy(Reading(1))


def zero_d() -> Any:
    array = np.empty((), dtype=object)
    array[()] = [array]
    return array


PLAIN: list[Any] = [
    None, True, False, 0, 1, -1, 3, 2**63, 2**64, -(2**63) - 1, 10**400, 0.5, -0.0, float("nan"), float("inf"), 1e308,
    1j, "", "a", "loss", "a/b", "\0", "\udcff", "x" * 200_000, "\x1b[31m\n", "%s{}", "/", "..", "~", "vN", "latest",
    "must-not", b"", b"\xff", bytearray(b"x"), (), [], {}, set(), frozenset({1}), range(3), ..., NotImplemented,
    object, int, len, Odd("x"), 10**5000,
]  # fmt: skip
MADE: list[Callable[[], Any]] = [
    Hostile, Disguised, Strange, HostileMapping, HalfHostile, looped, deep, gone, zero_d, object, mock.Mock,
    mock.MagicMock, lambda: HostileText("a"), lambda: HostileInt(3), lambda: HostileFloat(0.5),
    lambda: HostileList([1]), lambda: Strange, lambda: HostileDict(a=1), lambda: Colour.RED, lambda: Word.RED,
    lambda: (n for n in range(3)), lambda: (1 / 0 for _ in "a"), lambda: Path("/nonexistent/\udcff"),
    lambda: Path(__file__), lambda: Path(__file__).parent, lambda: Reading(None), lambda: Reading("\udcff"),
    lambda: io.BytesIO(b"\xff"), lambda: types.SimpleNamespace(a=Hostile()), lambda: fail,
    lambda: datetime.datetime(2026, 1, 1), lambda: datetime.timedelta(1), lambda: decimal.Decimal("sNaN"),
    lambda: decimal.Decimal(1), lambda: fractions.Fraction(1, 3), lambda: collections.UserDict(a=Hostile()),
    threading.Lock, lambda: np.float32(0.5), lambda: np.int64(3), lambda: np.bool_(True), lambda: np.str_("a"),
    lambda: np.bytes_(b"a"), lambda: np.datetime64("NaT"), lambda: np.complex64(1j), lambda: np.longdouble(1),
    lambda: np.array(3), lambda: np.zeros(0), lambda: np.zeros((2, 3)), lambda: np.zeros((4, 4, 3), np.uint8),
    lambda: np.full((2, 2), np.nan), lambda: np.array([object()]), lambda: np.array(["a"]), lambda: np.ma.masked,
    lambda: np.ma.array([1.0], mask=[True]), lambda: np.zeros(2, "i4,f8"),
    lambda: torch.tensor(0.5, dtype=torch.bfloat16), lambda: torch.tensor(3),
    lambda: torch.zeros(3, requires_grad=True), lambda: torch.zeros((), device="meta"),
    lambda: torch.eye(2).to_sparse(), lambda: torch.zeros(2, dtype=torch.complex64), lambda: torch.nn.Linear(1, 1),
    lambda: trackio.Table(columns=["a"], data=[[Hostile()]]),
    lambda: trackio.Image(np.zeros((2, 2, 3), np.uint8), caption=Hostile()),
    lambda: trackio.Artifact("a", metadata={"a": Hostile()}), lambda: trackio.Histogram([1.0]), lambda: {"loss": 1.0},
    lambda: {"loss": 2**64, "\udcff": "\udcff"},
    lambda: {HostileText("a"): HostileInt(1), 1.5: {None: 2}, Word.RED: [Hostile()]},
    lambda: {"a": {"b": {"c": Hostile()}}}, lambda: [{"role": "user", "content": Hostile()}],
    lambda: [[1, 2], [3, Hostile()]],
]  # fmt: skip


def made(number: int) -> Any:
    """By number, since Hypothesis compares and prints what it chooses from."""
    return PLAIN[number] if number < len(PLAIN) else MADE[number - len(PLAIN)]()


anything = st.recursive(
    st.integers(0, len(PLAIN) + len(MADE) - 1).map(made),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.lists(inner, max_size=2).map(tuple),
        st.dictionaries(st.sampled_from("abc"), inner),
    ),
    max_leaves=4,
)  # fmt: skip
PINNED: dict[str, dict[str, Any]] = {"sync": {"timeout": 0}, "finish": {"wait": ""}, "Run.finish": {"wait": ""}}
"""what would wait for a daemon, of which there is none here"""
NOT_CALLED = {"Run", "Run.become_worker", "Run.retire", "Run.end", "AlertLevel"}
"""made and called by the library itself, or an enumeration of Python's"""
INSTANCES: dict[str, Callable[[], Any]] = {
    "Run": lambda: current(), "Table": lambda: trackio.Table(columns=["a", "b"], data=[[1, 2]]),
    "Artifact": lambda: trackio.Artifact("a"), "AlertLevel": lambda: trackio.AlertLevel.WARN,
    "Image": lambda: trackio.Image(np.zeros((2, 2), np.uint8)), "Trace": lambda: trackio.Trace([]),
    "Audio": lambda: trackio.Audio(np.zeros(3), sample_rate=3), "Histogram": lambda: trackio.Histogram([1]),
    "Video": lambda: trackio.Video(np.zeros((1, 3, 2, 2), np.uint8)), "Html": lambda: trackio.Html("a"),
    "Object3D": lambda: trackio.Object3D(np.zeros((1, 3))),
}  # fmt: skip
OF_TOLD = (
    "update", "get", "pop", "setdefault", "as_dict", "keys", "items", "__setitem__", "__delitem__", "__getitem__",
    "__contains__", "__repr__",
)  # fmt: skip


def listed() -> dict[str, tuple[type[Exception], ...]]:
    """The table of docs/semantics.md: what each call may raise after init()."""
    text = SEMANTICS.split("## What raises")[1].split("\n## ")[0]
    found: dict[str, tuple[type[Exception], ...]] = {}
    for calls, kinds, when in re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", text, re.MULTILINE)[1:]:
        if when == "before any `init()`" or "---" in calls:
            continue
        raised = tuple(getattr(builtins, kind, None) or getattr(errors, kind) for kind in kinds.split(", "))
        for call in re.findall(r"`([^`]+)`", calls):
            found[call] = found.get(call, ()) + raised
    return found


LISTED = listed()


def allowed(name: str) -> tuple[type[Exception], ...]:
    owner = name.rpartition(".")[0] or name
    return LISTED.get(name, ()) + LISTED.get(f"{owner}.*", ())


def public_methods(kind: type) -> Iterator[str]:
    for name in dir(kind):
        found = inspect.getattr_static(kind, name)
        if not name.startswith("_") and not isinstance(found, property) and callable(getattr(kind, name)):
            yield name


def surface_of_the_package() -> dict[str, Callable[[], Any]]:
    """Everything that users call, by the name that the docs give it: what makes the callable."""
    calls: dict[str, Callable[[], Any]] = {}
    for name in {*trackio.__all__, "run", "util"} - surface.ABSENT.keys():
        found = getattr(trackio, name)
        if isinstance(found, (str, types.ModuleType)) or found is None:
            continue
        if isinstance(found, Current):
            calls |= {
                f"{name}.{method}": lambda o=found, m=method: getattr(o, m) for method in OF_TOLD if method != "as_dict"
            }
            continue
        calls[name] = lambda found=found: found
        if isinstance(found, type) and issubclass(found, Told):
            calls |= {f"{name}.{method}": lambda k=found, m=method: getattr(k(), m) for method in OF_TOLD}
        elif isinstance(found, type):
            make = INSTANCES.get(name, found)
            calls |= {f"{name}.{m}": lambda make=make, m=m: getattr(make(), m) for m in public_methods(found)}
    for owner in ("config", "summary"):
        calls |= {f"Run.{owner}.{m}": lambda o=owner, m=m: getattr(getattr(current(), o), m) for m in OF_TOLD}
    calls["Run.config.key"] = lambda: lambda value: setattr(current().config, "key", value)
    calls["Run.name"] = lambda: lambda value: setattr(current(), "name", value)
    return {name: make for name, make in calls.items() if name not in NOT_CALLED and not name.startswith("AlertLevel.")}


SURFACE = surface_of_the_package()
EXAMPLES = settings(
    max_examples=int(os.environ.get("TRACKIO_TEST_EXAMPLES", "15")),
    derandomize="TRACKIO_TEST_EXAMPLES" not in os.environ,
    deadline=None,
    database=None,
    suppress_health_check=[*HealthCheck],
)


@st.composite
def arguments(draw: Any, call: Callable[..., Any], pinned: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Anything for each parameter, or nothing where there is a default."""
    positional: list[Any] = []
    named: dict[str, Any] = dict(pinned)
    for parameter in inspect.signature(call).parameters.values():
        if parameter.name in pinned:
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            positional += draw(st.lists(anything, max_size=2)) if not named else []
        elif parameter.kind is parameter.VAR_KEYWORD:
            named |= draw(
                st.dictionaries(
                    st.sampled_from(["name", "id", "tags", "settings", "other", "\udcff"]), anything, max_size=2
                )
            )
        elif parameter.default is parameter.empty and parameter.kind is not parameter.KEYWORD_ONLY:
            positional.append(draw(anything))
        elif draw(st.booleans()):
            named[parameter.name] = draw(anything)
    return positional, named


@pytest.fixture(scope="module", autouse=True)
def training(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A training process of our own kind, without a daemon; afterwards this process is none any more."""
    folder, before, here = tmp_path_factory.mktemp("misuse"), dict(os.environ), os.getcwd()
    os.environ |= {"TRACKIO_DIR": str(folder / "data"), "TRACKIO_SPOOL_DIR": str(folder / "spool")}
    os.environ |= {"TRACKIO_AUTOSTART": "0", "TRACKIO_SAMPLING": "0"}
    os.chdir(folder)
    yield
    process.here.end()
    process.here = process.Process()
    for variable in (context_vars.current_run, context_vars.current_project):
        variable.set(None)
    opening.pending_config._take()
    voice._said.clear()
    os.chdir(here)
    os.environ.clear()
    os.environ.update(before)


def current() -> trackio.Run:
    return trackio.init(project="p", reinit="return_previous")


def is_logging(run: trackio.Run) -> bool:
    """Whether what is logged to it is accepted."""
    stream = run._open()
    before = -1 if stream is None else stream.spool.ring.head
    run.log({"alive": 1.0})
    return stream is None or (
        run._stream is not None and run._stream.spool.ring.head > (before if run._stream is stream else -1)
    )


@pytest.mark.parametrize("name", sorted(SURFACE))
def test_only_listed_misuse_raises_whatever_is_given(name: str) -> None:
    current()
    signature = SURFACE[name]()

    @EXAMPLES
    @given(st.data())
    def check(data: st.DataObject) -> None:
        call = SURFACE[name]()
        try:
            inspect.signature(call)
        except ValueError:
            return
        positional, named = data.draw(arguments(call, PINNED.get(name, {})).map(lambda drawn: Shown(drawn))).drawn
        try:
            inspect.signature(call).bind(*positional, **named)
        except TypeError:
            return  # Python itself refuses such a call
        try:
            result = call(*positional, **named)
        except allowed(name):
            pass
        else:
            assert name != "init" or result is not None
        run = process.here.latest or current()
        assert is_logging(run), "what follows is logged"

    assert callable(signature)
    check()


class Shown:
    """Arguments in words that Hypothesis can print."""

    def __init__(self, drawn: Any) -> None:
        self.drawn = drawn

    def __repr__(self) -> str:
        return short_repr(self.drawn)


@EXAMPLES
@given(anything.map(Shown))
def test_no_configuration_ends_a_run(config: Shown) -> None:
    run = trackio.init(project="p", config=config.drawn)
    assert run._stream is not None and is_logging(run)
    run.config.update(config.drawn)
    run.config.key = config.drawn
    assert is_logging(run)
    run.finish()


@EXAMPLES
@given(anything.map(Shown), anything.map(Shown))
def test_a_value_costs_no_other_value_of_its_call(value: Shown, other: Shown) -> None:
    run = current()
    packed: list[Any] = []
    stream = run._open()
    assert stream is not None
    before = stream.spool.ring.head
    run.log({"odd": value.drawn, "kept": 0.25, "other": {"a": [other.drawn]}})
    view = stream.spool.ring.view(before, stream.spool.ring.head)
    assert view is not None
    packed.append(bytes(view))
    view.release()
    assert b"\xa4kept\xcb" + np.float64(0.25).byteswap().tobytes() in packed[0]


def test_the_table_names_only_what_there_is() -> None:
    for call in LISTED:
        first = call.split(".")[0]
        assert first in trackio.__all__, call
