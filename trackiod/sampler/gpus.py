"""Reading the GPUs through NVML. What a device or a driver does not support is absent, never 0."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pynvml

from trackiod.sampler.counters import Counters
from trackiod.sampler.table import GIB, MIB

_ALL_LINKS = 0xFFFFFFFF
_BY_LINK = ("nvlink_tx", "nvlink_rx")
_CRC_METRICS = ("crc_flit", "crc_data")
_MEMORY_V2 = getattr(pynvml, "nvmlMemory_v2", 0x02000028)

_GAUGES: dict[str, tuple[int, int]] = {
    "memory_temp": (82, 1),
    "pcie_replays": (94, 1),
    "crc_flit": (38, 1),
    "crc_data": (45, 1),
    "nvlink_replays": (52, 1),
    "nvlink_recoveries": (59, 1),
    "corrected_memory_errors": (3, 1),
    "uncorrected_memory_errors": (4, 1),
    "remapped_rows_corrected": (142, 1),
    "remapped_rows_uncorrected": (143, 1),
    "remapping_pending": (144, 1),
    "remapping_failed": (145, 1),
}
"""field values that are stored as they are: the field's id, and what makes the metric's unit of it"""
_GROWTHS: dict[str, tuple[int, float]] = {
    "energy": (83, 1e-3),  # mJ
    "throttled_power": (74, 1e-9),  # ns
    "throttled_thermal": (75, 1e-9),
    "throttled_sync_boost": (76, 1e-9),
    "throttled_board_limit": (77, 1e-9),
    "throttled_low_utilization": (78, 1e-9),
    "throttled_reliability": (79, 1e-9),
    "throttled_sw_thermal": (269, 1e-9),
    "throttled_hw_thermal": (270, 1e-9),
    "throttled_power_brake": (271, 1e-9),
}
"""counters of which the growth since the sample before is stored"""
_RATES: dict[str, tuple[int, float]] = {
    "pcie_tx": (197, 1 / MIB),  # bytes
    "pcie_rx": (198, 1 / MIB),
    "nvlink_tx": (138, 1024 / MIB),  # KiB
    "nvlink_rx": (139, 1024 / MIB),
}
"""counters of which the growth a second is stored"""
_FIELDS: dict[str, tuple[int, float]] = {**_GAUGES, **_GROWTHS, **_RATES}

_NEVER = {
    pynvml.NVML_ERROR_NOT_SUPPORTED,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    pynvml.NVML_ERROR_NO_PERMISSION,
    pynvml.NVML_ERROR_INVALID_ARGUMENT,
    25,  # the argument's version does not match: an older driver
    26,  # deprecated
}
"""errors that will be the same the next time"""
_LOST = {pynvml.NVML_ERROR_GPU_IS_LOST, 16, 27, 28}
"""the device is gone, or wants a reset"""
_DRIVER = {
    pynvml.NVML_ERROR_UNINITIALIZED,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
}
"""the driver is gone, or another one than the library's"""


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
            _note_library()
        self.troubles: list[str] = []
        """sentences about what went wrong with a device, for whoever reads to take"""
        self.hidden = 0
        """devices of the node that this process may not see"""
        self._counters = Counters()
        self._seen_us = {"": 0}
        self.devices = list(self._found(self.troubles.append))

    def close(self) -> None:
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
                elif error.value in _DRIVER:
                    raise NoDriver(f"The NVIDIA driver cannot be used: {error}.", is_odd=True) from None
                else:
                    complain(f"GPU {index} cannot be read: {error}.")
                continue
            yield device
            yield from self._instances(device)

    @staticmethod
    def _device(handle: Any, label: str, parent: str = "") -> Device:
        return Device(
            _text(pynvml.nvmlDeviceGetUUID(handle)), label, _text(pynvml.nvmlDeviceGetName(handle)), handle, parent
        )

    def _instances(self, device: Device) -> Iterator[Device]:
        mode = self._read(device, pynvml.nvmlDeviceGetMigMode)
        if not mode or not mode[0]:
            return
        for index in range(self._read(device, pynvml.nvmlDeviceGetMaxMigDeviceCount) or 0):
            try:
                handle = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(device.handle, index)
                instance = pynvml.nvmlDeviceGetGpuInstanceId(handle)
                yield self._device(handle, f"{device.label}:{instance}", device.uuid)
            except pynvml.NVMLError:
                continue  # none of that number

    def is_current(self) -> bool:
        """Whether the devices are still those that can be read: MIG instances come and go, and lost GPUs come back.
        Raises NoDriver."""
        known = [device.uuid for device in self.devices if not device.is_lost]
        return [device.uuid for device in self._found(lambda _: None)] == known

    # -- reading -------------------------------------------------------------------------------------------------

    def read(self, device: Device, now: float) -> dict[str, float]:
        """All metrics of one device that are to be had now, without its processes. Raises NoDriver."""
        found: dict[str, float] = {}
        if device.is_lost:
            return found
        get = self._read
        if (rates := get(device, pynvml.nvmlDeviceGetUtilizationRates)) is not None:
            found["utilization"], found["memory_utilization"] = rates.gpu, rates.memory
        memory = get(device, _memory) or get(device, _memory_of_older_drivers)
        if memory is not None:
            found["allocated_memory"], found["total_memory"] = memory.used / GIB, memory.total / GIB
        _set(found, "power", get(device, pynvml.nvmlDeviceGetPowerUsage), 1e-3)
        _set(found, "power_limit", get(device, pynvml.nvmlDeviceGetPowerManagementLimit), 1e-3)
        temperature = get(device, _temperature)
        _set(found, "temp", get(device, _temperature_of_newer_drivers) if temperature is None else temperature)
        _set(found, "sm_clock", get(device, _sm_clock))
        _set(found, "memory_clock", get(device, _memory_clock))
        _set(found, "fan_speed", get(device, pynvml.nvmlDeviceGetFanSpeed))
        _set(found, "performance_state", get(device, pynvml.nvmlDeviceGetPerformanceState))
        if not device.statics:
            _set(device.statics, "max_sm_clock", get(device, _max_sm_clock))
            _set(device.statics, "max_memory_clock", get(device, _max_memory_clock))
        found.update(device.statics)
        found.update(self._fields(device, now))
        return {} if device.is_lost else found

    def _fields(self, device: Device, now: float) -> dict[str, float]:
        names = [name for name in _FIELDS if name not in device.never]
        asked = [(_FIELDS[name][0], _ALL_LINKS if name in _BY_LINK else 0) for name in names]
        values = self._read(device, pynvml.nvmlDeviceGetFieldValues, asked) if names else None
        found: dict[str, float] = {}
        for name, value in zip(names, values or (), strict=False):
            if value.nvmlReturn != pynvml.NVML_SUCCESS:
                if value.nvmlReturn in _NEVER:
                    device.never.add(name)
                continue
            number = _number(value)
            factor = _FIELDS[name][1]
            if name in _GAUGES:
                found[name] = number * factor
                continue
            at = value.timestamp / 1e6 if value.timestamp else now
            growth = self._counters.growth(f"{device.uuid}/{name}", number, at)
            if growth is not None:
                found[name] = (growth.amount if name in _GROWTHS else growth.rate) * factor
        errors = [found.pop(name) for name in _CRC_METRICS if name in found]
        if errors:
            found["nvlink_crc_errors"] = sum(errors)
        return found

    def slow(self, device: Device) -> dict[str, float]:
        """PCIe traffic of a device whose driver does not count it: each look takes 20 ms. Raises NoDriver."""
        found: dict[str, float] = {}
        if device.is_lost or "pcie_tx" not in device.never:
            return found
        _set(found, "pcie_tx", self._read(device, _pcie_sent), 1024 / MIB)
        _set(found, "pcie_rx", self._read(device, _pcie_received), 1024 / MIB)
        return found

    def uses(self, device: Device) -> list[Use] | None:
        """The processes that compute on a device, each once; None if the driver does not say. Raises NoDriver."""
        if device.is_lost:
            return None
        running = self._read(device, pynvml.nvmlDeviceGetComputeRunningProcesses)
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
        samples = self._read(device, pynvml.nvmlDeviceGetProcessUtilization, since) or ()
        if samples:
            self._seen_us[device.uuid] = max(sample.timeStamp for sample in samples)
        return [sample for sample in samples if sample.smUtil <= 100]

    # -- events --------------------------------------------------------------------------------------------------

    def watch(self, tell: Callable[[Event], None], is_over: Callable[[], bool]) -> None:
        """Waits for errors that devices report, and tells each as it comes; for a thread. Returns when it is over or
        nothing reports."""
        try:
            events = pynvml.nvmlEventSetCreate()
            handles = {}
            for device in self.devices:
                if not device.parent and not device.is_lost:
                    try:
                        pynvml.nvmlDeviceRegisterEvents(device.handle, pynvml.nvmlEventTypeXidCriticalError, events)
                        handles[_address(device.handle)] = device
                    except pynvml.NVMLError:
                        continue  # not supported
            while handles and not is_over():
                try:
                    event = pynvml.nvmlEventSetWait_v2(events, 1000)
                except pynvml.NVMLError_Timeout:
                    continue
                at = handles.get(_address(event.device))
                if at is not None:
                    tell(Event(at.uuid, at.label, int(event.eventData), time.time_ns()))
        except (pynvml.NVMLError, AttributeError):
            return  # the driver is gone, which the next reading tells

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
        if error.value in _DRIVER:
            raise NoDriver(f"The NVIDIA driver does not answer any more: {error}.", is_odd=True) from None
        if error.value in _LOST:
            device.is_lost = True
            self.troubles.append(f"GPU {device.label} ({device.uuid}) cannot be read any more: {error}.")
        elif error.value in _NEVER:
            device.never.add(name)

    @staticmethod
    def _plainly(function: Callable[[], Any]) -> Any:
        try:
            return function()
        except pynvml.NVMLError as error:
            raise NoDriver(f"The NVIDIA driver cannot be used: {error}.", is_odd=True) from None


_LIBRARY = "libnvidia-ml.so"
_loaded: dict[str, tuple[int, int] | None] = {}


def has_changed() -> bool:
    """Whether the driver's library on disk is another one than this process has loaded."""
    return any(_identity(path) not in (identity, None) for path, identity in _loaded.items())


def _note_library() -> None:
    """Keeps in mind which file was loaded, the first time."""
    try:
        with open("/proc/self/maps", encoding="utf-8") as file:
            paths = {line.split(maxsplit=5)[5].strip() for line in file if _LIBRARY in line}
    except OSError:
        return
    for path in paths - _loaded.keys():
        _loaded[path] = _identity(path)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        info = os.stat(path)
    except OSError:
        return None
    return info.st_ino, info.st_mtime_ns


def _memory(handle: Any) -> Any:
    return pynvml.nvmlDeviceGetMemoryInfo(handle, _MEMORY_V2)


def _memory_of_older_drivers(handle: Any) -> Any:
    """What the driver reserves is part of what is used."""
    return pynvml.nvmlDeviceGetMemoryInfo(handle)


def _temperature(handle: Any) -> Any:
    return pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)


def _temperature_of_newer_drivers(handle: Any) -> Any:
    return pynvml.nvmlDeviceGetTemperatureV(handle, pynvml.NVML_TEMPERATURE_GPU)


def _sm_clock(handle: Any) -> Any:
    return pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)


def _memory_clock(handle: Any) -> Any:
    return pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM)


def _max_sm_clock(handle: Any) -> Any:
    return pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM)


def _max_memory_clock(handle: Any) -> Any:
    return pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_MEM)


def _pcie_sent(handle: Any) -> Any:
    return pynvml.nvmlDeviceGetPcieThroughput(handle, pynvml.NVML_PCIE_UTIL_TX_BYTES)


def _pcie_received(handle: Any) -> Any:
    return pynvml.nvmlDeviceGetPcieThroughput(handle, pynvml.NVML_PCIE_UTIL_RX_BYTES)


_TYPES: Mapping[int, str] = {0: "dVal", 1: "uiVal", 2: "ulVal", 3: "ullVal", 4: "sllVal", 5: "siVal", 6: "usVal"}


def _number(value: Any) -> float:
    """A field value's number, by its type."""
    number: float = getattr(value.value, _TYPES.get(value.valueType, "ullVal"))
    return number


def _set(found: dict[str, float], name: str, value: Any, factor: float = 1) -> None:
    if value is not None:
        found[name] = value * factor


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0
