"""Reading the GPUs through NVML. What a device or a driver does not support is absent, never 0."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pynvml

from trackiod.sampler import nvml
from trackiod.sampler.counters import Counters
from trackiod.sampler.table import GIB, MIB

_EVENT_MS = 1000
_SKEW_US = 1_000_000


class NoDriver(Exception):
    """NVML does not work here; the message is a sentence. `is_odd`: there is a driver, and something is wrong."""

    def __init__(self, sentence: str, *, is_odd: bool) -> None:
        super().__init__(sentence)
        self.is_odd = is_odd


class Use(NamedTuple):
    """What one process does on a device; None where it cannot be known."""

    pid: int
    memory_bytes: int | None
    sm_percent: int | None


class Event(NamedTuple):
    """A device reported an error code at a time."""

    uuid: str
    label: str
    xid: int
    time_ns: int


@dataclass(slots=True)
class Device:
    """A GPU, or a MIG instance of one."""

    uuid: str
    label: str
    """its index; of a MIG instance `gpu:instance`"""
    name: str
    handle: Any
    parent: str = ""
    """the UUID of the GPU that it is an instance of"""
    is_lost: bool = False
    never: set[str] = field(default_factory=set)
    """what it does not support"""
    statics: dict[str, float] = field(default_factory=dict)

    def facts(self) -> dict[str, str]:
        """What readers are told of it."""
        return {"uuid": self.uuid, "label": self.label, "name": self.name, "parent": self.parent}


class Gpus:
    """The GPUs that this process may see. Owns the handle to the driver; `close` gives it back."""

    def __init__(self) -> None:
        """Raises NoDriver."""
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            is_odd = error.value not in (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
            raise NoDriver(f"The NVIDIA driver cannot be used: {error}.", is_odd=is_odd) from None
        except (AttributeError, OSError) as error:  # a library of that name that is another
            raise NoDriver(f"The NVIDIA driver cannot be used: {error}.", is_odd=True) from None
        finally:
            nvml.note_library()
        self.troubles: list[str] = []
        """sentences about what went wrong with a device, for whoever reads to take"""
        self.hidden = 0
        """devices of the node that this process may not see"""
        self._counters = Counters()
        self._is_closed = threading.Event()
        self._watcher: threading.Thread | None = None
        self._seen_us = {"": 0}
        self.devices = list(self._found(self.troubles.append))

    def close(self) -> None:
        self._is_closed.set()
        if self._watcher is not None:
            self._watcher.join(2 * _EVENT_MS / 1000)  # it must not wait in a library that is shut down
        try:
            pynvml.nvmlShutdown()
        except pynvml.NVMLError:
            pass  # the driver is gone, and the handle with it

    # -- which devices -----------------------------------------------------------------------------------------

    def _found(self, complain: Callable[[str], None]) -> Iterator[Device]:
        self.hidden = 0
        for index in range(self._plainly(pynvml.nvmlDeviceGetCount)):
            try:
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                device = self._device(handle, str(index))
            except pynvml.NVMLError as error:
                if error.value == pynvml.NVML_ERROR_NO_PERMISSION:
                    self.hidden += 1
                elif error.value in nvml.DRIVER_GONE:
                    raise NoDriver(f"The NVIDIA driver cannot be used: {error}.", is_odd=True) from None
                else:
                    complain(f"GPU {index} cannot be read: {error}.")
                continue
            yield device
            yield from self._instances(device)

    @staticmethod
    def _device(handle: Any, label: str, parent: str = "") -> Device:
        uuid, name = nvml.text(pynvml.nvmlDeviceGetUUID(handle)), nvml.text(pynvml.nvmlDeviceGetName(handle))
        return Device(uuid, label, name, handle, parent)

    @classmethod
    def _instances(cls, device: Device) -> Iterator[Device]:
        try:
            is_cut, _ = pynvml.nvmlDeviceGetMigMode(device.handle)
            most = pynvml.nvmlDeviceGetMaxMigDeviceCount(device.handle) if is_cut else 0
        except pynvml.NVMLError:
            return  # it knows no instances, or cannot be read, which reading it tells
        for index in range(most):
            try:
                handle = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(device.handle, index)
                instance = pynvml.nvmlDeviceGetGpuInstanceId(handle)
                yield cls._device(handle, f"{device.label}:{instance}", device.uuid)
            except pynvml.NVMLError:
                continue  # none of that number

    def is_current(self) -> bool:
        """Whether the devices are still those that can be read: MIG instances come and go, and lost GPUs come back.
        Raises NoDriver."""
        lost = {device.uuid for device in self.devices if device.is_lost}
        known = [device.uuid for device in self.devices if not device.is_lost]
        found = list(self._found(lambda _: None))
        return [device.uuid for device in found if device.uuid not in lost or self._answers(device)] == known

    def _answers(self, device: Device) -> bool:
        """Whether a device that was lost can be read again, and not only be named."""
        for function in (nvml.memory_of_older_drivers, pynvml.nvmlDeviceGetUtilizationRates, nvml.temperature):
            try:
                function(device.handle)
            except pynvml.NVMLError as error:
                if error.value in nvml.LOST:
                    return False
        return True

    # -- reading -------------------------------------------------------------------------------------------------

    def read(self, device: Device, now: float) -> dict[str, float]:
        """All metrics of one device that are to be had now, without its processes. Raises NoDriver."""
        found: dict[str, float] = {}
        if device.is_lost:
            return found
        get = self._read
        if (rates := get(device, pynvml.nvmlDeviceGetUtilizationRates)) is not None:
            found["utilization"], found["memory_utilization"] = rates.gpu, rates.memory
        memory = get(device, nvml.memory) or get(device, nvml.memory_of_older_drivers)
        if memory is not None:
            found["allocated_memory"], found["total_memory"] = memory.used / GIB, memory.total / GIB
        _set(found, "power", get(device, pynvml.nvmlDeviceGetPowerUsage), 1e-3)
        _set(found, "power_limit", get(device, pynvml.nvmlDeviceGetPowerManagementLimit), 1e-3)
        temperature = get(device, nvml.temperature)
        _set(found, "temp", get(device, nvml.temperature_of_newer_drivers) if temperature is None else temperature)
        _set(found, "sm_clock", get(device, nvml.sm_clock))
        _set(found, "memory_clock", get(device, nvml.memory_clock))
        _set(found, "fan_speed", get(device, pynvml.nvmlDeviceGetFanSpeed))
        _set(found, "performance_state", get(device, pynvml.nvmlDeviceGetPerformanceState))
        if not device.statics:
            _set(device.statics, "max_sm_clock", get(device, nvml.max_sm_clock))
            _set(device.statics, "max_memory_clock", get(device, nvml.max_memory_clock))
        found.update(device.statics)
        found.update(self._fields(device, now))
        return {} if device.is_lost else found

    def _fields(self, device: Device, now: float) -> dict[str, float]:
        names = [name for name in nvml.FIELDS if name not in device.never]
        asked = [(nvml.FIELDS[name][0], nvml.ALL_LINKS if name in nvml.BY_LINK else 0) for name in names]
        values = self._read(device, pynvml.nvmlDeviceGetFieldValues, asked) if names else None
        found: dict[str, float] = {}
        for name, value in zip(names, values or (), strict=False):
            if value.nvmlReturn != pynvml.NVML_SUCCESS:
                if value.nvmlReturn in nvml.NEVER:
                    device.never.add(name)
                continue
            number = nvml.number(value)
            factor = nvml.FIELDS[name][1]
            if name in nvml.GAUGES:
                found[name] = number * factor
                continue
            at = value.timestamp / 1e6 if value.timestamp else now
            growth = self._counters.growth(f"{device.uuid}/{name}", number, at)
            if growth is not None:
                found[name] = (growth.amount if name in nvml.GROWTHS else growth.rate) * factor
        errors = [found.pop(name) for name in nvml.CRC_METRICS if name in found]
        if errors:
            found["nvlink_crc_errors"] = sum(errors)
        return found

    def slow(self, device: Device) -> dict[str, float]:
        """PCIe traffic of a device whose driver does not count it: each look takes 20 ms. Raises NoDriver."""
        found: dict[str, float] = {}
        if device.is_lost or "pcie_tx" not in device.never:
            return found
        _set(found, "pcie_tx", self._read(device, nvml.pcie_sent), 1024 / MIB)
        _set(found, "pcie_rx", self._read(device, nvml.pcie_received), 1024 / MIB)
        return found

    def uses(self, device: Device) -> list[Use] | None:
        """The processes that compute on a device, each once; None if the driver does not say. Raises NoDriver."""
        if device.is_lost:
            return None
        running = self._read(device, nvml.processes)
        if running is None:
            running = self._read(device, nvml.processes_of_older_drivers)
        if running is None:
            return None
        busy: dict[int, tuple[int, int]] = {}
        for sample in self._utilizations(device) if running else ():
            if sample.timeStamp >= busy.get(sample.pid, (0, 0))[0]:
                busy[sample.pid] = (sample.timeStamp, sample.smUtil)
        memory: dict[int, int | None] = {}
        for process in running:
            used, known = process.usedGpuMemory, memory.get(process.pid)
            memory[process.pid] = used if known is None else known + (used or 0)
        return [Use(pid, used, busy[pid][1] if pid in busy else None) for pid, used in memory.items()]

    def _utilizations(self, device: Device) -> Any:
        """The driver's samples of processes' utilisation since the last look."""
        since = self._seen_us.get(device.uuid, int((time.time() - 1) * 1e6))
        now = int(time.time() * 1e6)
        samples = [
            sample
            for sample in self._read(device, pynvml.nvmlDeviceGetProcessUtilization, since) or ()
            if sample.smUtil <= 100 and sample.timeStamp <= now + _SKEW_US  # drivers also give what was never written
        ]
        if samples:
            self._seen_us[device.uuid] = max(sample.timeStamp for sample in samples)
        return samples

    # -- events --------------------------------------------------------------------------------------------------

    def watch(self, tell: Callable[[Event], None]) -> None:
        """From now on tells each error that a device reports as it comes, from a thread, until `close`."""
        self._watcher = threading.Thread(target=self._watch, args=(tell,), name="events", daemon=True)
        self._watcher.start()

    def _watch(self, tell: Callable[[Event], None]) -> None:
        while not self._is_closed.is_set():
            try:
                self._wait_for_events(tell)
                return
            except pynvml.NVMLError as error:
                if error.value not in nvml.LOST:
                    return  # the driver is gone, which the next reading tells
                self._is_closed.wait(1.0)  # the others may still report
            except AttributeError:
                return

    def _wait_for_events(self, tell: Callable[[Event], None]) -> None:
        """Returns when it is closed, or nothing reports. Raises NVMLError."""
        events = pynvml.nvmlEventSetCreate()
        try:
            handles = {}
            for device in self.devices:
                if not device.parent and not device.is_lost:
                    try:
                        pynvml.nvmlDeviceRegisterEvents(device.handle, pynvml.nvmlEventTypeXidCriticalError, events)
                        handles[nvml.address(device.handle)] = device
                    except pynvml.NVMLError:
                        continue  # not supported, or lost
            while handles and not self._is_closed.is_set():
                try:
                    event = pynvml.nvmlEventSetWait_v2(events, _EVENT_MS)
                except pynvml.NVMLError_Timeout:
                    continue
                at = handles.get(nvml.address(event.device))
                if at is not None:
                    tell(Event(at.uuid, at.label, int(event.eventData), time.time_ns()))
        finally:
            pynvml.nvmlEventSetFree(events)

    # -- calls ---------------------------------------------------------------------------------------------------

    def _read(self, device: Device, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function says of a device, or None. Raises NoDriver."""
        name = function.__name__
        if name in device.never or device.is_lost:
            return None
        try:
            return function(device.handle, *arguments)
        except pynvml.NVMLError as error:
            self._note(device, name, error)
            return None

    def _note(self, device: Device, name: str, error: Any) -> None:
        if error.value in nvml.DRIVER_GONE:
            raise NoDriver(f"The NVIDIA driver does not answer any more: {error}.", is_odd=True) from None
        if error.value in nvml.LOST:
            device.is_lost = True
            self.troubles.append(f"GPU {device.label} ({device.uuid}) cannot be read any more: {error}.")
        elif error.value in nvml.NEVER:
            device.never.add(name)

    @staticmethod
    def _plainly(function: Callable[[], Any]) -> Any:
        try:
            return function()
        except pynvml.NVMLError as error:
            raise NoDriver(f"The NVIDIA driver cannot be used: {error}.", is_odd=True) from None


def _set(found: dict[str, float], name: str, value: Any, factor: float = 1) -> None:
    if value is not None:
        found[name] = value * factor
