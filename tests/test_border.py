"""What crosses the border to the user's process: interrupts, the misuse that docs/semantics.md lists, nothing else."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Host, shown, wait_for

from trackio import Audio, Histogram, Image, Table, Video
from trackio.interrupts import hand_on, is_foreign, is_interrupt
from trackio.values import plain_config, plain_metrics


class Late(Exception):
    """A time limit of the user's."""


class Handlers:
    def method(self, number: int, frame: Any) -> None:
        raise Late

    def __call__(self, *_: Any) -> None:
        self.fail()

    def fail(self) -> None:
        raise Late


def kept(number: int, frame: Any) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # as those do that fire once
    raise KeyError("late")


HANDLERS: list[Callable[..., Any]] = [Handlers().method, Handlers(), kept, functools.partial(Handlers.method, None)]


@pytest.mark.parametrize("handler", HANDLERS)
def test_what_a_handler_raises_is_told_from_what_a_value_raises(handler: Any) -> None:
    class Slow:
        def item(self) -> Any:
            os.kill(os.getpid(), signal.SIGALRM)
            for _ in range(100_000):
                pass
            return 1.0

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with pytest.raises((Late, KeyError)) as caught:
            plain_metrics({"a": {"b": [Slow()]}})
        assert is_interrupt(caught.value)
        signal.signal(signal.SIGALRM, handler)
        with pytest.raises((Late, KeyError)):
            plain_config({"a": [Slow()]})
    finally:
        signal.signal(signal.SIGALRM, before)


class Hostile:
    """Raises whatever is asked of it, an exception of its own."""

    def _fail(self, *_: Any, **__: Any) -> Any:
        raise Late("hostile")

    __repr__ = __str__ = __bool__ = __len__ = __iter__ = __float__ = __int__ = __hash__ = __eq__ = _fail  # type: ignore
    __getattr__ = __getitem__ = __contains__ = __array__ = __fspath__ = __call__ = keys = items = _fail


def test_what_a_value_raises_is_no_interrupt_whatever_it_is_called_with() -> None:
    with pytest.raises(Late) as caught:
        str(Hostile())
    assert not is_interrupt(caught.value)
    hand_on(caught.value)
    assert is_foreign(caught.value) and not is_foreign(OverflowError())


def test_an_exception_that_is_put_into_the_thread_comes_to_the_user(host: Host) -> None:
    """As time limits do that need no signal."""
    done = host.run("""
import ctypes, threading, trackio
class Late(Exception): pass
trackio.init(project="p")
me, ended = threading.get_ident(), 0
for _ in range(50):
    raised = ctypes.c_ulong(me), ctypes.py_object(Late)
    timer = threading.Timer(0.002, ctypes.pythonapi.PyThreadState_SetAsyncExc, raised)
    try:
        timer.start()
        while True: trackio.log({"loss": 0.5})
    except Late:
        ended += 1
    timer.join()
print(ended)
""")  # fmt: skip
    assert done.stdout.split() == ["50"] and "skipped" not in done.stderr, done.stderr


def test_values_that_msgpack_refuses_are_stored_as_they_can_be(daemon: Host) -> None:
    """Its frames are below ours: whatever it raises is ours."""
    done = daemon.run(r"""
import trackio
class Key(str):
    __hash__ = str.__hash__
    def __eq__(self, other): raise LookupError("hostile")
class Whole(int):
    def __int__(self): raise LookupError("hostile")
    __index__ = __float__ = __int__
class Text(str):
    def encode(self, *_): raise LookupError("hostile")
    __str__ = __len__ = encode
run = trackio.init(project="p", name="r\udcff", group="g\udcff", tags=["t\udcff"],
                   config={"\udcff": "\udcff", "n": 2**70})
for step in range(2):
    trackio.log({"v": 2**64, "w": -2**63 - 1, "x": 10**400, "s": "\udcff", "k\udcff": 1}, step=step)
    trackio.log({Key("v"): 3, "ok": Whole(4), "text": Text("t"), "t": (2**64, ["\udcff"])}, step=step)
trackio.alert("a\udcff", "b\udcff")
run.summary["\udcff"] = 2**64
""")  # fmt: skip
    assert done.returncode == 0 and "Traceback" not in done.stderr and "left out" not in done.stderr, done.stderr
    run = daemon.ended_run("p")
    values = {name: shown(run, name)[0].value for name in run.metric_names}
    assert values == {
        "v": 3, "w": float(-(2**63) - 1), "x": float("inf"), "s": "\\udcff", "k\\udcff": 1, "ok": 4, "text": "t",
        "t": [2.0**64, ["\\udcff"]],
    }  # fmt: skip
    assert run.name == "r\\udcff" and run.config() == {"\\udcff": "\\udcff", "n": 2.0**70}


class Unset(Mapping[str, Any]):
    """As OmegaConf's, with a value that is not set."""

    def __getitem__(self, key: str) -> Any:
        if key == "unset":
            raise LookupError("Missing mandatory value: unset")
        return {"lr": 0.1, "inner": Unset()}[key] if key != "inner" else {"a": 1}

    def __iter__(self) -> Iterator[str]:
        return iter(["lr", "unset", "inner"])

    def __len__(self) -> int:
        return 3


def test_no_configuration_turns_logging_off(daemon: Host) -> None:
    code = """
import sys, trackio
sys.path.insert(0, sys.argv[1])
from test_border import Hostile, Unset
for number, config in enumerate([Unset(), Hostile(), [Hostile()], {Hostile: Hostile()}, 3, "text", object]):
    run = trackio.init(project="p", name=f"r{number}", config=config, reinit="create_new")
    run.config.update(config)
    run.config.update(Unset(), extra=Hostile())
    run.config.h = run.config["h"] = Hostile()
    run.config[[1]] = 2
    trackio.config.update(Unset())
    repr(run.config)
    trackio.log({"a": number})
"""
    done = daemon.run(code, str(Path(__file__).parent))
    assert done.returncode == 0 and "logs nothing" not in done.stderr and "skipped" not in done.stderr, done.stderr
    wait_for(lambda: len(daemon.runs("p")) == 7 and all(run.state.state == "finished" for run in daemon.runs("p")))
    runs = {run.name: run for run in daemon.runs("p")}
    assert sorted(runs) == [f"r{number}" for number in range(7)]
    for number in range(7):
        assert shown(runs[f"r{number}"], "a")[0].value == number
        config = runs[f"r{number}"].config()
        assert config["lr"] == 0.1 and config["unset"] == "<not readable: LookupError>" and config["h"] == "<Hostile>"


def test_a_configuration_of_omegaconf_with_unset_values_is_kept_as_it_is_written() -> None:
    omegaconf = pytest.importorskip("omegaconf")
    config = omegaconf.OmegaConf.create({"a": 1, "b": "???", "c": {"d": "???", "e": "${nope.x}"}, "l": ["???", 2]})
    assert plain_config(config) == {"a": 1, "b": "???", "c": {"d": "???", "e": "${nope.x}"}, "l": ["???", 2]}


def test_arguments_may_be_numbers_of_numpys_and_torchs() -> None:
    for whole, real in ((np.int64, np.float32), (torch.tensor, torch.tensor)):
        assert Audio(np.zeros(4, np.int16), sample_rate=whole(16000))._sample_rate == 16000
        assert Video(np.zeros((2, 3, 4, 4), np.uint8), fps=real(12))._fps == 12
        assert len(Histogram([1, 2, 3], num_bins=whole(3)).histogram) == 3
    with pytest.raises(ValueError, match="sample_rate"):
        Audio(np.zeros(4, np.int16), sample_rate=np.float64(0.5))


def test_columns_of_one_name_are_told_apart() -> None:
    table = Table(dataframe=pd.DataFrame([[1, 2, 3]], columns=["a", "b", "a"]))
    assert table.data == [{"a": 1, "b": 2, "a_2": 3}]
    assert Table(columns=[[1], "b"], data=[[1, 2]]).columns == ["[1]", "b"]


def test_what_is_masked_is_no_value() -> None:
    masked = np.ma.array([1.0, 2.0, 99.0], mask=[False, False, True])
    assert plain_metrics({"one": np.ma.masked, "other": masked[2:], "there": masked[:1]}) == ({"there": 1.0}, [])
    assert Histogram(masked).bins.max() == 2.0


@pytest.mark.parametrize("kind", [Image, Audio, Video, Histogram, Table])
def test_media_of_what_they_cannot_be_made_of_raise_what_is_documented(kind: Any) -> None:
    odd = [Hostile(), 1j, torch.zeros(3, device="meta"), object(), b"x", "\0", "\udcff", Path("/nonexistent\udcff")]
    for value in odd:
        try:
            kind(value)
        except (ValueError, TypeError):
            continue


def test_a_folder_with_names_that_are_not_utf_8_is_an_artifact(daemon: Host, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / os.fsdecode(b"caf\xe9.txt")).write_text("one")
    (folder / "back\\slash").write_text("two")
    done = daemon.run(f"""
import trackio
trackio.init(project="p")
artifact = trackio.log_artifact({str(folder)!r}, name="m").wait(60)
print(sorted(entry["path"] for entry in artifact.manifest))
trackio.save({str(folder / "*")!r}, base_path={str(tmp_path)!r})
""")  # fmt: skip
    assert done.returncode == 0 and done.stdout.strip() == "['back%5Cslash', 'caf%E9.txt']", done.stderr


def test_lightnings_logger_ends_well_though_the_best_checkpoint_is_gone(host: Host) -> None:
    done = host.run("""
import types
from trackio.lightning import TrackioLogger
logger = TrackioLogger(project="p", log_model=True)
logger.log_metrics({"a": 1, 2: 2**64, "bad": object()}, step=1)
logger.log_hyperparams({"b": object()})
logger.after_save_checkpoint(types.SimpleNamespace(best_model_path="/nonexistent/best.ckpt"))
logger.finalize("success")
assert logger.experiment.is_finished
""")  # fmt: skip
    assert done.returncode == 0 and "Not a regular file" in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_watched_model_with_one_tensor_that_cannot_be_read_keeps_the_others(host: Host) -> None:
    done = host.run("""
import torch, trackio
run = trackio.init(project="p")
model = torch.nn.Linear(2, 2)
model.register_parameter("meta", torch.nn.Parameter(torch.zeros(2, device="meta")))
trackio.watch([model, 3], log="parameters", log_freq="x", idx=object())
print(sorted(run._with_watched({})))
""")  # fmt: skip
    assert done.stdout.strip() == "['parameters/bias', 'parameters/weight']", done.stderr
