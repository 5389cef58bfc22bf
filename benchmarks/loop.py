"""One tracker's log() in one process, figures as JSON: `python loop.py TRACKER CALLS WIDTH SECONDS [paced] [busy]`.

Run by `benchmarks.peers` with the Python of each tracker's own environment, so it imports nothing of ours but as a
tracker among others. Values are float32-born and differ in every call; making them is not part of what is timed.
"""

import array
import json
import os
import random
import resource
import sys
import threading
import time


def none(folder):
    """The same loop with no tracker: what the machine itself does to the figures."""
    return lambda metrics: None, lambda: None


def ours(folder):
    import trackio

    run = trackio.init(project="bench", name=os.environ.get("BENCH_RUN", "loop"))

    def refused():
        return run._stream.spool.refused[0]

    def finish():
        ours.refused = refused()
        trackio.finish()

    return trackio.log, finish


def upstream(folder):
    import trackio

    trackio.init(project="bench", name="loop")
    return trackio.log, trackio.finish


def wandb(folder):
    import wandb

    wandb.init(project="bench", mode="offline", dir=folder)
    return wandb.log, wandb.finish


def swanlab(folder):
    import swanlab

    swanlab.init(project="bench", mode="offline", logdir=folder)
    return swanlab.log, swanlab.finish


def neptune(folder):
    from neptune_scale import Run

    run = Run(mode="offline", project="bench/bench", log_directory=folder)
    step = iter(range(1 << 60))
    return lambda metrics: run.log_metrics(metrics, step=next(step)), run.close


def mlflow(folder):
    import mlflow

    mlflow.set_experiment("bench")
    mlflow.start_run()
    step = iter(range(1 << 60))

    def finish():
        mlflow.flush_async_logging()
        mlflow.end_run()

    return lambda metrics: mlflow.log_metrics(metrics, step=next(step), synchronous=False), finish


def tensorboard(folder):
    """What torch's SummaryWriter.add_scalar does, by tensorboard's own writer."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(folder)
    steps = iter(range(1 << 60))

    def log(metrics):
        step = next(steps)
        for name, value in metrics.items():
            summary = Summary(value=[Summary.Value(tag=name, simple_value=value)])
            writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))

    return log, writer.close


MODULES = {"none": "json", "ours": "trackio", "upstream": "trackio", "neptune": "neptune_scale",
           "tensorboard": "tensorboard.summary.writer.event_file_writer"}  # fmt: skip


def spin():
    count = 0
    while True:
        count += 1


def cpu_seconds():
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def bytes_in(folder):
    return sum(os.lstat(os.path.join(at, name)).st_size for at, _, names in os.walk(folder) for name in names)


def main():
    tracker, calls, width, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    paced, busy = "paced" in sys.argv, "busy" in sys.argv
    folder = os.environ["BENCH_FOLDER"]
    os.chdir(folder)
    clock, out = time.perf_counter, {}
    start = clock()
    __import__(MODULES.get(tracker, tracker))
    out["import_ms"] = (clock() - start) * 1e3
    start = clock()
    log, finish = globals()[tracker](folder)
    out["init_ms"] = (clock() - start) * 1e3
    chance = random.Random(0)
    losses = array.array("f", [2.5 / (1 + i / 3000) + chance.gauss(0, 0.05) for i in range(100_003)]).tolist()
    names = [f"train/metric_{i}" for i in range(width)]
    for i in range(20):
        log(dict(zip(names, losses[i:], strict=False)))
    if busy:
        threading.Thread(target=spin, daemon=True).start()
    before, times, now = cpu_seconds(), [], time.perf_counter_ns
    end, due = clock() + seconds, clock()
    for i in range(calls):
        at = i * 7 % 100_000
        metrics = dict(zip(names, losses[at : at + width] if at + width < 100_000 else losses[:width], strict=True))
        if paced:
            due += 0.001
            time.sleep(max(0.0, due - clock()))
        start = now()
        log(metrics)
        times.append(now() - start)
        if start / 1e9 > end:
            break
    start = clock()
    finish()
    out["finish_ms"] = (clock() - start) * 1e3
    out["cpu_us"] = (cpu_seconds() - before) / len(times) * 1e6
    count = len(times)
    times.sort()
    for key, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999)):
        out[key] = times[min(count - 1, int(count * share))] / 1e3
    out |= {"max": times[-1] / 1e3, "calls": count, "points": (count + 20) * width, "bytes": bytes_in(folder)}
    out["rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    out["refused"] = getattr(ours, "refused", 0)
    print("\n" + json.dumps(out), flush=True)
    if busy:
        os._exit(0)


if __name__ == "__main__":
    main()
