"""`Run`: what users hold. Takes their values, decides the step, hands plain records to the stream.

This is the border to the user's training process: whatever goes wrong here is said once and counted, and
never raised, but for misuse that docs/semantics.md lists.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from trackio import alerts, voice
from trackio.border import as_dict, never_raises, seconds_of, warn_unknown
from trackio.configuration import Config, Summary
from trackio.interrupts import hand_on, is_foreign, is_interrupt
from trackio.likeness import Likeness
from trackio.record import Kind, Origin
from trackio.ring import Retired
from trackio.steps import HF_STEP_METRIC, Steps, integral
from trackio.stream import PACK_ERRORS, Stream
from trackio.values import (
    are_known,
    are_names,
    are_plain,
    clean_text,
    is_given,
    plain_metrics,
    short_repr,
    text_of,
    type_name,
)

_WORDS = {
    "reduce": ("mean", "min", "max", "sum", "first", "last"),
    "summary": ("last", "min", "max", "mean", "best"),
    "goal": ("minimize", "maximize"),
}
"""what `define_metric` takes"""
_FINISH_SECONDS = 0.04
_MAX_TOLD_CHARS = 100_000
_MOST_NAMED = 10
"""values that are left out for one reason and named, each in a line; others are counted"""
_named: dict[str, int] = {}
_EXPLICIT, _COUNTER = int(Origin.EXPLICIT), int(Origin.COUNTER)


def _are_text(metrics: Mapping[Any, Any]) -> bool:
    return {str}.issuperset(map(type, metrics))


class Identity(NamedTuple):
    """Who a run is, as decided by init()."""

    id: str
    name: str
    project: str
    group: str | None = None
    facts: Mapping[str, Any] = {}
    """what every stream of this process tells the daemon about run and rank"""


class Run(Likeness):
    """One execution of one training job, as this process sees it.

    Usable from any thread, after `finish()` (which `log()` undoes) and after a later `init()`. Compares
    equal to its id, so code that expects `init()` to return the id goes on working.
    """

    def __init__(
        self,
        identity: Identity,
        open_stream: Callable[[dict[str, Any]], Stream] | None,
        *,
        highest_step: int = -1,
        config: Mapping[str, Any] | None = None,
        webhook: alerts.Webhook = alerts.NO_WEBHOOK,
    ) -> None:
        """`open_stream` makes the stream for given facts; None makes a disabled run that stores nothing."""
        self.id = identity.id
        self._name = identity.name
        self.project = identity.project
        self.group = identity.group
        self.url: str | None = None
        self.config = Config({"project_name": identity.project, "experiment_name": identity.name})
        self.answers_to = {identity.project}
        """the projects whose nameless `resume="allow"` means this run"""
        self.is_finished = False
        self.refused_values = 0
        """values that could not be stored, beyond the first of each key and type, which was named"""
        self.refused_files = 0
        """files of artifacts and of save() that could not be handed over"""
        self._space_id: str | None = None
        self._stop_flag = threading.Event()
        self._watched: list[Any] = []
        """what `watch` adds to log() calls"""
        self._facts: dict[str, Any] = dict(identity.facts)
        self._webhook = webhook
        self._open_stream = open_stream
        self._steps = Steps(highest_step)
        self._goes_on = highest_step >= 0
        self._stream: Stream | None = None
        if open_stream is not None:
            self._stream = open_stream(self._facts)
        self.summary = Summary()
        self.config._bind(lambda values: self._store(Kind.CONFIG, values))
        self.summary._bind(lambda values: self._store(Kind.SUMMARY, values))
        self.config.update(config or {})

    # -- logging -----------------------------------------------------------------------------------------------

    def log(
        self,
        metrics: Mapping[str, Any] | None = None,
        step: int | None = None,
        *,
        data: Mapping[str, Any] | None = None,
        commit: bool | None = None,
        **unknown: Any,
    ) -> None:
        """Records metrics, a map of names to numbers, strings or bools, at `step`.

        Without `step` it is taken from the step metric (`train/global_step`, or see `define_metric`), else
        it is the highest step so far plus one; `commit=False` leaves that counter where it is. Nested maps
        are flattened with `/`, None is skipped. Raises TypeError if `metrics` is no mapping.
        """
        self._log(as_dict(metrics if metrics is not None else data, unknown), step, commit)

    def _log(self, metrics: dict[str, Any], step: int | None, commit: bool | None) -> None:
        """The hot path. Without keywords, whose mere possibility makes a call slow; `metrics` is this call's to keep
        or a dict that is only read."""
        stream = self._stream
        if stream is None or self.is_finished:
            stream = self._reopened()
            if stream is None:
                return
        runs_theirs = bool(self._watched)
        try:
            if runs_theirs:
                metrics = self._with_watched(metrics)
            if not (are_plain(map(type, metrics.values())) and (are_known(metrics) or are_names(metrics))):
                runs_theirs = True
                metrics = self._plain(metrics, stream)
            if step is None:
                steps = self._steps
                if commit is None and not steps.rules and HF_STEP_METRIC not in metrics:
                    step = steps.highest = steps.highest + 1
                    origin = _COUNTER
                else:
                    step, origin = steps.choose(metrics, commit)
            elif type(step) is int and -0x8000000000000000 <= step <= 0x7FFFFFFFFFFFFFFF:
                self._steps.take(step)
                origin = _EXPLICIT
            else:
                step, origin = self._odd_step(step, metrics, commit)
            try:
                stream.log(step, origin, metrics)
            except PACK_ERRORS as error:
                if is_interrupt(error):
                    raise
                self._log_with_care(stream, step, origin, metrics)
            except Retired:
                self._stream = None
                if (stream := self._reopened()) is not None:
                    stream.log(step, origin, metrics)
        except Exception as error:  # the border: training goes on whatever is logged
            are_odd = not runs_theirs and not _are_text(metrics)  # comparing such keys runs code of theirs
            if is_interrupt(error) or (not runs_theirs and not are_odd and is_foreign(error)):
                raise  # a time limit of the user's, say: it was meant for what calls us
            if are_odd and stream is not None:
                self._log(self._plain(metrics, stream), step, commit)
                return
            self.refused_values += 1
            voice.warn_once(f"log {type_name(error)}", f"log() failed and was skipped: {short_repr(error)}")

    def _log_with_care(self, stream: Stream, step: int, origin: int, metrics: dict[str, Any]) -> None:
        """Values that looked plain and did not pack: ints beyond 64 bits, lone surrogates, giant strings."""
        metrics = self._plain(metrics, stream)
        try:
            stream.log(step, origin, metrics)
        except PACK_ERRORS:
            for key, value in metrics.items():
                try:
                    stream.log(step, origin, {key: value})
                except PACK_ERRORS:
                    self._refuse_value(key, f"a value of type {type_name(value)} of this size cannot be stored")

    def _plain(self, metrics: Mapping[Any, Any], stream: Stream) -> dict[str, Any]:
        def keep(value: Any) -> Any:
            from trackio.keeping import keeper  # only where there are media

            return keeper(stream.staging)(value)

        plain, left_out = plain_metrics(metrics, keep)
        for key, why in left_out:
            self._refuse_value(key, why)
        return plain

    def _with_watched(self, metrics: dict[str, Any]) -> dict[str, Any]:
        for watch in list(self._watched):
            try:
                metrics = {**watch.metrics(), **metrics}
            except Exception as error:  # noqa: BLE001 the user's model
                hand_on(error)
                voice.warn_once("watch", f"watch() failed and ends: {short_repr(error)}")
                self._watched.remove(watch)
        return metrics

    def _refuse_value(self, key: str, why: str) -> None:
        named = _named.get(why, 0)
        if named < _MOST_NAMED and voice.warn_once(f"value {key} {why}", f"{key!r} was left out: {why}."):
            _named[why] = named + 1
        else:
            self.refused_values += 1

    def _odd_step(self, step: Any, metrics: Mapping[str, Any], commit: bool | None) -> tuple[int, int]:
        if (whole := integral(step)) is not None:
            self._steps.take(whole)
            return whole, _EXPLICIT
        voice.warn_once("step", f"step={short_repr(step)} is no whole number; the next automatic step is used.")
        return self._steps.choose(metrics, commit)

    def _reopened(self) -> Stream | None:
        """The stream to log to: after finish() the same, in a forked child one of its own."""
        if self._open_stream is None:
            return None
        if self._stream is None or self._stream.is_retired:
            self._stream = self._open_stream(self._facts)
        self.is_finished = False
        return self._stream

    def _open(self) -> Stream | None:
        """The stream for what is no metric, which does not undo finish()."""
        stream = self._stream
        return self._reopened() if stream is None or stream.is_retired else stream

    @never_raises(None, TypeError)
    def log_system(self, metrics: Mapping[str, Any]) -> None:
        """Records metrics of the machine: they have a time and no step. Raises TypeError if `metrics` is no mapping."""
        stream = self._open()
        if stream is not None and (plain := self._plain(as_dict(metrics, {}), stream)):
            self._note(Kind.SYSTEM, plain)

    # -- what readers need to know --------------------------------------------------------------------------

    @never_raises(None)
    def define_metric(
        self, name: str, step_metric: str | None = None, *, reduce: str | None = None, summary: str | None = None,
        goal: str | None = None, **unknown: Any,
    ) -> None:  # fmt: skip
        """Says how metrics that match `name` (a glob) are read: `reduce` over ranks (mean, min, max, sum,
        first or last), which metric holds their step, which figure stands for them in a `summary` (last, min, max,
        mean or best), and whether the best is to `minimize` or `maximize` them: the `goal`."""
        if unknown:
            warn_unknown("define_metric", unknown)
        named = text_of(step_metric) if is_given(step_metric) else None
        options: dict[str, Any] = {"step_metric": named, "reduce": reduce, "summary": summary, "goal": goal}
        for option, words in _WORDS.items():
            if isinstance(options[option], str):
                options[option] = clean_text(options[option])  # a subclass's too
            if options[option] is not None and not (isinstance(options[option], str) and options[option] in words):
                told = f"{option}={short_repr(options[option])}"
                voice.warn_once(told, f"{told} is none of {', '.join(words)}; it is ignored.")
                options[option] = None
        pattern = text_of(name)
        if named:
            self._steps.define(pattern, named)
        self._note(Kind.DEFINE, pattern, {k: v for k, v in options.items() if v is not None})

    def _store(self, kind: Kind, values: dict[str, Any]) -> None:
        for key, value in values.items():
            if len(str(value)) > _MAX_TOLD_CHARS:
                what = f"{kind.name.lower()} {key!r}"
                voice.warn_once(what, f"{what} is very large; its beginning is kept.")
                value = short_repr(value)
            self._note(kind, {key: value})

    def _note(self, kind: Kind, *fields: Any, seconds: float = 0.0) -> None:
        try:
            if self._stream is not None and not self._stream.note(kind, *fields, seconds=seconds):
                voice.warn_once(f"note {kind}", f"{kind.name.lower()} found no room and was not stored.")
        except Retired:  # also in a child that C forked, whose parent the end is
            self._stream = None
            if kind is not Kind.FINISH and (stream := self._open()) is not None:
                stream.note(kind, *fields, seconds=seconds)
        except Exception as error:  # noqa: BLE001 the border to the user's process
            hand_on(error)
            voice.warn_once(f"note {kind}", f"{kind.name.lower()} could not be stored: {short_repr(error)}")

    @never_raises(None)
    def alert(
        self, title: str, text: str | None = None, level: Any = "warn", step: int | None = None,
        webhook_url: str | None = None, **unknown: Any,
    ) -> None:  # fmt: skip
        """Says that something wants attention: stored with the run, printed in a line, and sent by the daemon to
        `webhook_url` or the one of init(), from `webhook_min_level` on. `level`: info, warn or error."""
        if unknown:
            warn_unknown("alert", unknown)
        try:
            grade = alerts.level_of(level)
        except ValueError as error:
            voice.warn_once(str(error), f"{error} The alert is kept as a warning.")
            grade = alerts.AlertLevel.WARN
        title, text = text_of(title), None if text is None else text_of(text)
        if max(len(title), len(text or "")) > alerts.MOST_CHARS:
            voice.warn_once("long alert", f"an alert is cut to {alerts.MOST_CHARS:,} characters.")
        hook = webhook_url if is_given(webhook_url) else self._webhook.url if grade >= self._webhook.least else None
        last = self._steps.highest if self._steps.highest >= 0 else None
        facts = alerts.facts(grade, title, text, last if step is None else integral(step), hook)
        voice.say(alerts.line(facts))
        stream = self._open()
        if stream is not None and not stream.note(Kind.ALERT, facts, seconds=_FINISH_SECONDS):
            self._refuse_value("alert", "there was no room for it")

    # -- the end --------------------------------------------------------------------------------------------

    @never_raises(None)
    def finish(
        self, exit_code: int | None = None, quiet: bool | None = None, *, wait: str = "", timeout: float = 600.0
    ) -> None:  # fmt: skip
        """Ends the run; returns within milliseconds, or after at most `timeout` seconds if it is to `wait` until all is
        "stored" or "uploaded". A non-zero `exit_code` makes it a failed one."""
        is_failed = is_given(exit_code)
        self.end("failed" if is_failed else "finished", f"exit code {short_repr(exit_code)}" * is_failed, explicit=True)
        if self._stream is not None and is_given(wait):
            from trackio.waiting import until  # seldom asked for

            until(text_of(wait), self._stream, self.project, seconds_of(timeout, "finish timeout", 600.0))
        elif self._stream is not None:
            self._stream.deliver(_FINISH_SECONDS)

    @never_raises(None)
    def end(self, state: str, cause: str, *, explicit: bool, most_seconds: float = _FINISH_SECONDS) -> None:
        """Writes the run's end into the stream, once; waits at most this long for room."""
        if self.is_finished or self._stream is None:
            return
        self.is_finished = True
        self._stop_flag.set()
        self._note(Kind.FINISH, state, cause, explicit, seconds=min(most_seconds, _FINISH_SECONDS))

    @property
    def is_retired(self) -> bool:
        """Whether it is finished and holds on to nothing."""
        return self.is_finished and (self._stream is None or self._stream.is_retired)

    def retire(self) -> None:
        """Another run has taken its place: once everything is stored, it holds on to nothing."""
        if self._stream is not None:
            self._stream.shipment.is_over = True

    def become_worker(self) -> None:
        """In a forked child: what it logs goes to a stream of its own, kept apart from the rank's."""
        self._stream, self.refused_values, self.refused_files = None, 0, 0
        self._facts = {**self._facts, "role": "worker"}

    # -- manners ----------------------------------------------------------------------------------------------

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None:
            self.finish()
        else:
            self.end("failed", kind.__name__, explicit=True)

    def __str__(self) -> str:
        return self.id

    def __repr__(self) -> str:
        return f"<trackio.Run {self.name!r} ({self.id}) in project {self.project!r}>"

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, str) and self.id == other)

    def __hash__(self) -> int:
        return hash(self.id)
