"""What is asked of NVML: fields, functions of one handle, errors. Its only state is which library was loaded."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import pynvml

from trackio.host import file_identity
from trackiod.sampler.table import MIB

ALL_LINKS = 0xFFFFFFFF
BY_LINK = ("nvlink_tx", "nvlink_rx")
CRC_METRICS = ("crc_flit", "crc_data")
_MEMORY_V2 = getattr(pynvml, "nvmlMemory_v2", 0x02000028)

GAUGES: dict[str, tuple[int, int]] = {
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
GROWTHS: dict[str, tuple[int, float]] = {
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
RATES: dict[str, tuple[int, float]] = {
    "pcie_tx": (197, 1 / MIB),  # bytes
    "pcie_rx": (198, 1 / MIB),
    "nvlink_tx": (138, 1024 / MIB),  # KiB
    "nvlink_rx": (139, 1024 / MIB),
}
"""counters of which the growth a second is stored"""
FIELDS: dict[str, tuple[int, float]] = {**GAUGES, **GROWTHS, **RATES}

NEVER = {
    pynvml.NVML_ERROR_NOT_SUPPORTED,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    pynvml.NVML_ERROR_NO_PERMISSION,
    pynvml.NVML_ERROR_INVALID_ARGUMENT,
    25,  # the argument's version does not match: an older driver
    26,  # deprecated
}
"""errors that will be the same the next time"""
LOST = {pynvml.NVML_ERROR_GPU_IS_LOST, 16, 27, 28}
"""the device is gone, or wants a reset"""
DRIVER_GONE = {
    pynvml.NVML_ERROR_UNINITIALIZED,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
}
"""the driver is gone, or another one than the library's"""


_LIBRARY = "libnvidia-ml.so"
_loaded: dict[str, tuple[int, int] | None] = {}


def has_changed() -> bool:
    """Whether the driver's library on disk is another one than this process has loaded."""
    return any(file_identity(path) not in (identity, None) for path, identity in _loaded.items())


def note_library() -> None:
    """Keeps in mind which file was loaded, the first time."""
    try:
        with open("/proc/self/maps", encoding="utf-8") as file:
            paths = {line.split(maxsplit=5)[5].strip() for line in file if _LIBRARY in line}
    except OSError:
        return
    for path in paths - _loaded.keys():
        _loaded[path] = file_identity(path)


def memory(handle: Any) -> Any:
    return pynvml.nvmlDeviceGetMemoryInfo(handle, _MEMORY_V2)


def memory_of_older_drivers(handle: Any) -> Any:
    """What the driver reserves is part of what is used."""
    return pynvml.nvmlDeviceGetMemoryInfo(handle)


def processes(handle: Any) -> Any:
    return pynvml.nvmlDeviceGetComputeRunningProcesses_v3(handle)


def processes_of_older_drivers(handle: Any) -> Any:
    """Before release 510."""
    return pynvml.nvmlDeviceGetComputeRunningProcesses_v2(handle)


def temperature(handle: Any) -> Any:
    return pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)


def temperature_of_newer_drivers(handle: Any) -> Any:
    return pynvml.nvmlDeviceGetTemperatureV(handle, pynvml.NVML_TEMPERATURE_GPU)


def sm_clock(handle: Any) -> Any:
    return pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)


def memory_clock(handle: Any) -> Any:
    return pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM)


def max_sm_clock(handle: Any) -> Any:
    return pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM)


def max_memory_clock(handle: Any) -> Any:
    return pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_MEM)


def pcie_sent(handle: Any) -> Any:
    return pynvml.nvmlDeviceGetPcieThroughput(handle, pynvml.NVML_PCIE_UTIL_TX_BYTES)


def pcie_received(handle: Any) -> Any:
    return pynvml.nvmlDeviceGetPcieThroughput(handle, pynvml.NVML_PCIE_UTIL_RX_BYTES)


_TYPES: Mapping[int, str] = {0: "dVal", 1: "uiVal", 2: "ulVal", 3: "ullVal", 4: "sllVal", 5: "siVal", 6: "usVal"}


def number(value: Any) -> float:
    """A field value's number, by its type."""
    number: float = getattr(value.value, _TYPES.get(value.valueType, "ullVal"))
    return number


def text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0
