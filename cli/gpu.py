"""`trackio gpu`: the node's GPUs now, and whose ranks compute on them. The same table stands in `trackio status`."""

from __future__ import annotations

import time
from typing import Any

import click

from trackio import newest
from trackio.places import Places
from trackiod.moments import timestamp

from .output import Block, here, print_json, say, table

_FACTS = (
    "utilization", "memory_utilization", "allocated_memory", "total_memory", "power", "power_limit", "temp",
    "memory_temp", "sm_clock", "processes",
)  # fmt: skip
_HEADER = ["GPU", "NAME", "UTIL", "MEMORY", "POWER", "TEMP", "RANKS"]


@click.command()
@click.option("--watch", is_flag=True, help="Show it again at each sample until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Valid JSON instead of text.")
def gpu(watch: bool, as_json: bool) -> None:
    """This node's GPUs: utilization, memory, power, temperature, and whose ranks compute on them."""
    places = here()
    while True:
        samples = newest.samples(places)
        gpus = gpus_of(samples)
        if as_json:
            print_json({"gpus": gpus, "trouble": _trouble(samples)})
        else:
            if watch:
                click.clear()
            say(gpu_table(gpus) if gpus else _why_none(samples))
            if gpus and _trouble(samples):
                say("", f"Problem: {_trouble(samples)}")
        if not watch:
            return
        time.sleep(max(0.2, min((sample.interval for sample in samples), default=2.0)))


def gpus_now(places: Places) -> list[dict[str, Any]]:
    """Every GPU that is sampled on this node now."""
    return gpus_of(newest.samples(places))


def gpus_of(samples: list[newest.Sample]) -> list[dict[str, Any]]:
    """The GPUs in these samples, by index."""
    found: dict[str, dict[str, Any]] = {}
    for sample in samples:
        for device in sample.devices:
            facts: dict[str, Any] = {"index": device["label"], "uuid": device["uuid"], "name": device["name"]}
            facts |= {fact: sample.values.get(f"gpu/{device['uuid']}/{fact}") for fact in _FACTS}
            facts["ranks"] = _ranks(sample, device["uuid"])
            facts["sampled_at"] = timestamp(sample.time_ns)
            if any(facts[fact] is not None for fact in _FACTS) or device["uuid"] not in found:
                found[device["uuid"]] = facts
    return sorted(found.values(), key=lambda facts: [int(part) for part in facts["index"].split(":")])


def _ranks(sample: newest.Sample, uuid: str) -> list[dict[str, Any]]:
    found = []
    for stream, project, run_id, name, rank, pid in sample.ranks:
        prefix = f"gpu/{uuid}/process/{stream}"
        if f"{prefix}/is_there" in sample.values:
            memory, utilization = (sample.values.get(f"{prefix}/{fact}") for fact in ("memory", "utilization"))
            found.append({"project": project, "run": name, "run_id": run_id, "rank": rank, "pid": pid,
                          "memory": memory, "utilization": utilization})  # fmt: skip
    return found


def gpu_table(gpus: list[dict[str, Any]]) -> Block:
    """The GPUs as a table."""
    return table(_HEADER, [_cells(facts) for facts in gpus])


def _cells(facts: dict[str, Any]) -> list[Any]:
    return [
        facts["index"],
        facts["name"],
        _with_unit(facts["utilization"], "%"),
        _of(facts["allocated_memory"], facts["total_memory"], "GiB", ".1f"),
        _of(facts["power"], facts["power_limit"], "W", ".0f"),
        _with_unit(facts["temp"], "°C"),
        _whose(facts),
    ]


def _whose(facts: dict[str, Any]) -> str:
    """Ranks by run, and how many processes of others there are."""
    by_run: dict[str, list[str]] = {}
    for rank in facts["ranks"]:
        by_run.setdefault(f"{rank['project']}/{rank['run']}", []).append(str(rank["rank"]))
    words = [f"{run} rank {', '.join(ranks)}" for run, ranks in by_run.items()]
    others = (facts["processes"] or 0) - len(facts["ranks"])
    if others > 0:
        words.append(f"{others} other process{'es' if others > 1 else ''}")
    return "; ".join(words)


def _with_unit(value: Any, unit: str) -> str:
    return "-" if value is None else f"{value:.0f} {unit}"


def _of(part: Any, whole: Any, unit: str, how: str) -> str:
    if part is None:
        return "-"
    return f"{part:{how}} {unit}" if whole is None else f"{part:{how}} of {whole:{how}} {unit}"


def _trouble(samples: list[newest.Sample]) -> str:
    return next((sample.trouble for sample in samples if sample.trouble), "")


def _why_none(samples: list[newest.Sample]) -> str:
    if not samples:
        return "Nothing is sampled now: the daemon samples this node while a training process logs."
    return _trouble(samples) or "No NVIDIA GPU is to be seen on this node."
