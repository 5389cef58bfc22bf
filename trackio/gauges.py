"""What `log_gpu()` and `log_cpu()` return: the newest sample of this host's sampler, as this process sees it."""

from __future__ import annotations

import os
from typing import Any

from trackio import newest, places, settings, voice
from trackio.host import control_group, covers, devices_group
from trackio.interrupts import hand_on
from trackio.newest import Sample
from trackio.values import short_repr


def visible_devices() -> str | None:
    """The devices that CUDA shows this process, as its environment says; None: all."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def gpus(device: int | None = None) -> dict[str, Any]:
    """The metrics of the devices that this process may use, or of one of them, by CUDA's index. Never raises."""
    try:
        return _gpus(_samples(), device)
    except Exception as error:  # noqa: BLE001 the border to the user's process
        hand_on(error)
        voice.warn_once("log_gpu", f"log_gpu() failed and returns nothing: {short_repr(error)}")
        return {}


def _gpus(samples: list[Sample], device: int | None) -> dict[str, Any]:
    values = {name: value for sample in samples for name, value in sample.values.items()}
    group = devices_group(control_group())
    closest = [sample for sample in samples if devices_group(sample.cgroup) == group]  # its indices are CUDA's
    devices = {device["uuid"]: device for sample in closest or samples for device in sample.devices}
    own = {rank[0] for sample in samples for rank in sample.ranks if rank[5] == os.getpid()}
    known = sorted(devices.values(), key=lambda device: [int(part) for part in device["label"].split(":")])
    used = [uuid for uuid in (d["uuid"] for d in known) if _is_used(values, uuid, own)]
    indexed = chosen(known, visible_devices())
    if not {*used} <= {*indexed}:
        indexed = used  # its indices are a batch job's, and the sampler's are the node's
    found: dict[str, Any] = {}
    for index, uuid in enumerate(indexed):
        if device is None or device == index:
            found.update(_of_device(values, uuid, index, own))
    return found if device is not None else found | _together(found)


def host() -> dict[str, Any]:
    """The metrics of the host and of this process. Never raises."""
    try:
        return _host(_samples())
    except Exception as error:  # noqa: BLE001 the border to the user's process
        hand_on(error)
        voice.warn_once("log_cpu", f"log_cpu() failed and returns nothing: {short_repr(error)}")
        return {}


def _host(samples: list[Sample]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for sample in samples:
        own = tuple(f"process/{rank[0]}/" for rank in sample.ranks if rank[5] == os.getpid())
        for name, value in sample.values.items():
            if name.startswith(own):
                found[f"process/{name.split('/', 2)[2]}"] = value
            elif not name.startswith(("gpu/", "process/")):
                found[name] = value
    return found


def chosen(devices: list[dict[str, str]], visible: str | None) -> list[str]:
    """The UUIDs of the devices that `CUDA_VISIBLE_DEVICES` chooses, in CUDA's order: indices or beginnings of UUIDs, up
    to the first that names none. GPUs that are cut into instances are no devices to CUDA."""
    parents = {device["parent"] for device in devices}
    usable = [device for device in devices if device["uuid"] not in parents]
    if visible is None:
        return [device["uuid"] for device in usable]
    found: list[str] = []
    for word in visible.split(","):
        word = word.strip()
        match = [d["uuid"] for d in usable if d["label"] == word or (len(word) > 4 and d["uuid"].startswith(word))]
        if len(match) != 1 or match[0] in found:
            break
        found += match
    return found


def _samples() -> list[Sample]:
    """The samples of those who see this process's devices."""
    ours, _ = settings.of_this_process()
    group = control_group()
    samples = newest.samples(places.of(ours))
    return [sample for sample in samples if covers(sample.cgroup, group)]


def _is_used(values: dict[str, Any], uuid: str, own: set[str]) -> bool:
    return any(f"gpu/{uuid}/process/{stream}/is_there" in values for stream in own)


def _of_device(values: dict[str, Any], uuid: str, index: int, own: set[str]) -> dict[str, Any]:
    prefix = f"gpu/{uuid}/"
    found: dict[str, Any] = {}
    for name, value in values.items():
        if not name.startswith(prefix):
            continue
        metric = name[len(prefix) :]
        if not metric.startswith("process/"):
            found[f"gpu/{index}/{metric}"] = value
        elif (parts := metric.split("/"))[1] in own and parts[2] != "is_there":
            found[f"gpu/{index}/process_{parts[2]}"] = value
    if found.get(f"gpu/{index}/total_memory"):
        used = found.get(f"gpu/{index}/allocated_memory", 0)
        found[f"gpu/{index}/memory_usage"] = used / found[f"gpu/{index}/total_memory"]
    return found


def _together(found: dict[str, Any]) -> dict[str, Any]:
    """Upstream's figures over all devices."""
    by_metric: dict[str, list[float]] = {}
    for name, value in found.items():
        by_metric.setdefault(name.split("/")[2], []).append(value)
    together: dict[str, Any] = {}
    if busy := by_metric.get("utilization"):
        together["gpu/mean_utilization"] = sum(busy) / len(busy)
    if used := by_metric.get("allocated_memory"):
        together["gpu/total_allocated_memory"] = sum(used)
    if drawn := by_metric.get("power"):
        together["gpu/total_power"] = sum(drawn)
    if warm := by_metric.get("temp"):
        together["gpu/max_temp"] = max(warm)
    return together
