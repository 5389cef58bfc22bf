"""Every metric of the sampler: its name, unit, where it comes from, what it means. `docs/system-metrics.md` is made
from it.

Names and units are those of upstream's package where it has the metric. A metric is stored under its room's prefix and
shown under its view's; `{gpu}` is a device's UUID when stored and its index when shown.
"""

from __future__ import annotations

from typing import NamedTuple


class Metric(NamedTuple):
    """One metric."""

    name: str
    unit: str
    source: str
    meaning: str


class Room(NamedTuple):
    """Metrics of one kind of thing."""

    title: str
    stored: str
    shown: str
    metrics: tuple[Metric, ...]


_FIELD = "nvmlDeviceGetFieldValues"

GPU = Room(
    "GPU",
    "gpu/{gpu}/",
    "gpu/{gpu}/",
    (
        Metric("utilization", "%", "nvmlDeviceGetUtilizationRates", "time in which a kernel ran"),
        Metric("memory_utilization", "%", "nvmlDeviceGetUtilizationRates", "time in which memory was read or written"),
        Metric("allocated_memory", "GiB", "nvmlDeviceGetMemoryInfo", "memory in use, without what the driver reserves"),
        Metric("total_memory", "GiB", "nvmlDeviceGetMemoryInfo", "memory there is"),
        Metric("power", "W", "nvmlDeviceGetPowerUsage", "power drawn"),
        Metric("power_limit", "W", "nvmlDeviceGetPowerManagementLimit", "power limit that is set"),
        Metric("energy", "J", f"{_FIELD} (83)", "energy used since the sample before"),
        Metric("temp", "°C", "nvmlDeviceGetTemperature", "temperature of the GPU"),
        Metric("memory_temp", "°C", f"{_FIELD} (82)", "temperature of its memory"),
        Metric("sm_clock", "MHz", "nvmlDeviceGetClockInfo", "clock of the multiprocessors"),
        Metric("memory_clock", "MHz", "nvmlDeviceGetClockInfo", "clock of the memory"),
        Metric("max_sm_clock", "MHz", "nvmlDeviceGetMaxClockInfo", "highest clock of the multiprocessors"),
        Metric("max_memory_clock", "MHz", "nvmlDeviceGetMaxClockInfo", "highest clock of the memory"),
        Metric("fan_speed", "%", "nvmlDeviceGetFanSpeed", "speed of the fan"),
        Metric("performance_state", "", "nvmlDeviceGetPerformanceState", "0 (fastest) to 15"),
        Metric("throttled_power", "s", f"{_FIELD} (74)", "time slowed by the power limit, since the sample before"),
        Metric("throttled_thermal", "s", f"{_FIELD} (75)", "time slowed by heat"),
        Metric("throttled_sync_boost", "s", f"{_FIELD} (76)", "time slowed to keep step with other GPUs"),
        Metric("throttled_board_limit", "s", f"{_FIELD} (77)", "time slowed by the board's limit"),
        Metric("throttled_low_utilization", "s", f"{_FIELD} (78)", "time slowed since there was little to do"),
        Metric("throttled_reliability", "s", f"{_FIELD} (79)", "time slowed by the voltage limit"),
        Metric("throttled_sw_thermal", "s", f"{_FIELD} (269)", "time slowed by the driver's thermal limit"),
        Metric("throttled_hw_thermal", "s", f"{_FIELD} (270)", "time slowed by the hardware's thermal limit"),
        Metric("throttled_power_brake", "s", f"{_FIELD} (271)", "time slowed by the power brake, set from outside"),
        Metric("pcie_tx", "MiB/s", f"{_FIELD} (197), else nvmlDeviceGetPcieThroughput", "sent over PCIe"),
        Metric("pcie_rx", "MiB/s", f"{_FIELD} (198), else nvmlDeviceGetPcieThroughput", "received over PCIe"),
        Metric("pcie_replays", "", f"{_FIELD} (94)", "PCIe packets sent again, since the driver was loaded"),
        Metric("nvlink_tx", "MiB/s", f"{_FIELD} (138, all links)", "data sent over NVLink"),
        Metric("nvlink_rx", "MiB/s", f"{_FIELD} (139, all links)", "data received over NVLink"),
        Metric("nvlink_crc_errors", "", f"{_FIELD} (38 + 45)", "NVLink CRC errors, flow control and data"),
        Metric("nvlink_replays", "", f"{_FIELD} (52)", "NVLink packets sent again"),
        Metric("nvlink_recoveries", "", f"{_FIELD} (59)", "NVLink links brought up again"),
        Metric("corrected_memory_errors", "", f"{_FIELD} (3)", "ECC errors corrected, since the driver was loaded"),
        Metric("uncorrected_memory_errors", "", f"{_FIELD} (4)", "ECC errors not corrected"),
        Metric("remapped_rows_corrected", "", f"{_FIELD} (142)", "rows of memory replaced after corrected errors"),
        Metric("remapped_rows_uncorrected", "", f"{_FIELD} (143)", "rows of memory replaced after uncorrected errors"),
        Metric("remapping_pending", "", f"{_FIELD} (144)", "1: rows wait for a reset to be replaced"),
        Metric("remapping_failed", "", f"{_FIELD} (145)", "1: a row could not be replaced"),
        Metric("processes", "", "nvmlDeviceGetComputeRunningProcesses", "processes that compute on it, whosever"),
        Metric("xid", "", "nvmlEventSetWait", "the driver's error code, when it happened"),
    ),
)
GPU_PROCESS = Room(
    "GPU, for each rank",
    "gpu/{gpu}/process/{stream}/",
    "gpu/{gpu}/process_",
    (
        Metric("is_there", "", "nvmlDeviceGetComputeRunningProcesses", "1: the rank's process computes on the GPU"),
        Metric("memory", "GiB", "nvmlDeviceGetComputeRunningProcesses", "GPU memory that the rank's process uses"),
        Metric("utilization", "%", "nvmlDeviceGetProcessUtilization", "time in which a kernel of it ran"),
    ),
)
HOST = Room(
    "Host",
    "",
    "",
    (
        Metric("cpu/utilization", "%", "psutil.cpu_times", "time in which the cores were busy, their mean"),
        Metric("cpu/{core}/utilization", "%", "psutil.cpu_times", "time in which the core was busy"),
        Metric("cpu/load_1", "", "psutil.getloadavg", "load, mean of 1 minute"),
        Metric("cpu/load_5", "", "psutil.getloadavg", "load, mean of 5 minutes"),
        Metric("cpu/load_15", "", "psutil.getloadavg", "load, mean of 15 minutes"),
        Metric("memory/used", "GiB", "psutil.virtual_memory", "memory in use"),
        Metric("memory/total", "GiB", "psutil.virtual_memory", "memory there is"),
        Metric("memory/available", "GiB", "psutil.virtual_memory", "memory that can be had without swapping"),
        Metric("memory/percent", "%", "psutil.virtual_memory", "memory that is not available"),
        Metric("swap/used", "GiB", "psutil.swap_memory", "swap in use"),
        Metric("swap/total", "GiB", "psutil.swap_memory", "swap there is"),
        Metric("swap/percent", "%", "psutil.swap_memory", "swap in use"),
        Metric("pressure/{what}", "%", "/proc/pressure", "time in which some or all tasks waited for it"),
        Metric("disk/used", "GiB", "psutil.disk_usage", "of the data folder's file system, in use"),
        Metric("disk/free", "GiB", "psutil.disk_usage", "of the data folder's file system, free for this user"),
        Metric("disk/percent", "%", "psutil.disk_usage", "of the data folder's file system, in use"),
        Metric("disk/read_mb_per_sec", "MiB/s", "psutil.disk_io_counters", "read from the data folder's device"),
        Metric("disk/write_mb_per_sec", "MiB/s", "psutil.disk_io_counters", "written to the data folder's device"),
        Metric("disk/read_iops", "1/s", "psutil.disk_io_counters", "reads of the data folder's device"),
        Metric("disk/write_iops", "1/s", "psutil.disk_io_counters", "writes to the data folder's device"),
        Metric("network/{interface}/sent_mb_per_sec", "MiB/s", "psutil.net_io_counters", "sent"),
        Metric("network/{interface}/recv_mb_per_sec", "MiB/s", "psutil.net_io_counters", "received"),
        Metric("infiniband/{port}/sent_mb_per_sec", "MiB/s", "/sys/class/infiniband: port_xmit_data", "sent"),
        Metric("infiniband/{port}/recv_mb_per_sec", "MiB/s", "/sys/class/infiniband: port_rcv_data", "received"),
        Metric("infiniband/{port}/errors", "", "/sys/class/infiniband: symbol_error, port_rcv_errors, link_downed",
               "errors of the port and times its link went down"),
    ),
)  # fmt: skip
PROCESS = Room(
    "Each rank's process",
    "process/{stream}/",
    "process/",
    (
        Metric("cpu", "%", "/proc/PID/stat", "of one core, so 200 is two cores"),
        Metric("memory", "GiB", "/proc/PID/stat", "resident memory"),
        Metric("threads", "", "/proc/PID/stat", "threads"),
        Metric("files", "", "/proc/PID/fd", "open files"),
        Metric("read_mb_per_sec", "MiB/s", "/proc/PID/io", "read from disks"),
        Metric("write_mb_per_sec", "MiB/s", "/proc/PID/io", "written to disks"),
    ),
)
CGROUP = Room(
    "Each control group (v2) of ranks, with its lowest rank here",
    "process/{stream}/cgroup_",
    "cgroup/",
    (
        Metric("memory", "GiB", "memory.current", "memory in use, caches included"),
        Metric("memory_limit", "GiB", "memory.max", "memory it may use"),
        Metric("cpu", "%", "cpu.stat: usage_usec", "of one core, so 200 is two cores"),
        Metric("cpu_limit", "%", "cpu.max", "of one core"),
        Metric("cpu_throttled", "s", "cpu.stat: throttled_usec", "time stopped by the limit, since the sample before"),
        Metric("oom_kills", "", "memory.events: oom_kill", "processes that the kernel killed for want of memory"),
    ),
)
DERIVED = Room(
    "Made of these when shown",
    "",
    "gpu/{gpu}/",
    (
        Metric("memory_usage", "1", "allocated_memory / total_memory", "share of the memory in use"),
        Metric("power_percent", "%", "power / power_limit", "share of the limit"),
        Metric("energy_consumed", "J", "the sum of energy", "energy used since the run came to the GPU"),
    ),
)

ROOMS = (GPU, GPU_PROCESS, HOST, PROCESS, CGROUP, DERIVED)

GIB = float(1 << 30)
MIB = float(1 << 20)
