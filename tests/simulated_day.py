"""Sixteen hosts upload to one repository for a day, on a clock of their own: the real uploader, store and hub library
against a server that speaks the Hub's API. Run as a script by `test_uploads`, which gives it a folder; prints JSON.

The server refuses what the real one would: more than 128 commits within an hour.
"""

from __future__ import annotations

import collections
import heapq
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import hub
import pyarrow.parquet as pq

from trackio import places, record
from trackio.record import Kind, Origin
from trackiod.sinks.datasets import DatasetSink
from trackiod.store.batch import read
from trackiod.store.digest import End, digest_of
from trackiod.store.project import ProjectStore
from trackiod.uploads import pacing
from trackiod.uploads.target import Folder, Target
from trackiod.uploads.uploader import Uploader

HOSTS = 16
HOURS = int(os.environ.get("HOURS", "24"))
REPO = "user/day"
BEGIN = 1_700_000_000.0
EVERY = 600.0
"""seconds from log to log"""
MOST_AN_HOUR = 128


class SimulatedHost:
    """A store to which its one rank logs, and its uploader."""

    def __init__(self, folder: Path, node: int, now: Any, url: str) -> None:
        self.places = places.find(str(folder / f"host{node}"), "")
        os.makedirs(self.places.projects)
        (Path(self.places.live) / "store.id").write_text(f"{node:012x}")
        self.node, self._now, self.stream, self.offset = node, now, f"stream{node}", 0
        self.store = ProjectStore(self.places.projects, "p", f"{node:012x}")
        meta = {
            "project": "p", "run": "job", "name": "job", "role": "rank", "rank": node, "attempt": "a",
            "process": f"p{node}", "started_ns": int(BEGIN * 1e9), "world_size": HOSTS, "named": True, "group": None,
            "resume": "never",
        }  # fmt: skip
        with self.store.transaction():
            self.store.register(self.stream, meta)
        target = Target(f"hf://datasets/{REPO}", {"p": True}, hosts=HOSTS, node=node)
        self.folder = Folder(self.places, target.id)
        self.folder.write_target(target)
        self._target, self._url, self.logged = target, url, 0

    def log(self) -> None:
        values = {"loss": float(self.logged), "rank": self.node}
        payload = record.pack(Kind.LOG, int(self._now() * 1e9), self.logged, int(Origin.EXPLICIT), values)
        data = record.encode(self.offset, payload)
        with self.store.transaction():
            self.store.append(self.stream, self.offset, data, digest_of(read(data, self.offset)))
        self.offset += len(data)
        self.logged += 1

    def end(self) -> None:
        with self.store.transaction():
            self.store.end(self.stream, End("finished", "", explicit=True, time_ns=int(self._now() * 1e9)))

    def upload(self) -> float:
        """Returns when to do it again; 0 if nothing is left to do."""
        sink = DatasetSink(f"hf://datasets/{REPO}", "hf_test", self._url)
        status = Uploader(self.places, self.folder, self._target, sink, self._now).upload()
        assert not status.parked, status.parked
        return status.next_at if status.is_behind else 0.0


def main(folder: Path) -> None:
    now = [BEGIN]
    refused = 0
    with hub.serving() as server:
        server.clock = lambda: now[0]
        repo = server.add(REPO)

        def allow(words: str) -> hub.Fault | None:
            """The Hub's quota, of which it does not say for how long."""
            nonlocal refused
            if "/commit/" in words and sum(commit.at > now[0] - 3600 for commit in repo.commits) >= MOST_AN_HOUR:
                refused += 1
                return hub.Fault("", 429)
            return None

        server.fault_for = allow  # type: ignore[method-assign]
        hosts = [SimulatedHost(folder, node, lambda: now[0], server.url) for node in range(HOSTS)]
        events = [(BEGIN + host.node * 0.5, host.node, "log") for host in hosts]
        events += [(BEGIN + pacing.FIRST_SECONDS + host.node * 0.5, host.node, "upload") for host in hosts]
        heapq.heapify(events)
        last = BEGIN + HOURS * 3600
        while events:
            now[0], node, what = heapq.heappop(events)
            host = hosts[node]
            if what == "log":
                host.log()
                if now[0] + EVERY < last:
                    heapq.heappush(events, (now[0] + EVERY, node, "log"))
                else:
                    host.end()
                    heapq.heappush(events, (now[0] + 1, node, "last"))
                continue
            again = host.upload()
            if what == "last" or now[0] >= last:
                if again:
                    heapq.heappush(events, (max(again, now[0] + 1), node, "last"))
            else:
                heapq.heappush(events, (max(again, now[0] + pacing.EVERY_SECONDS), node, "upload"))
    times = [commit.at for commit in repo.commits]
    worst = max(sum(at - 3600 < other <= at for other in times) for at in times)
    rows: collections.Counter[Any] = collections.Counter()
    for path, data in repo.tree.items():
        if path.startswith("metrics/"):
            table = pq.read_table(io.BytesIO(data))
            rows.update(zip(*(table[name].to_pylist() for name in ("rank", "step", "metric", "value")), strict=True))
    expected = {(h.node, step, "loss", float(step)) for h in hosts for step in range(h.logged)}
    expected |= {(h.node, step, "rank", float(h.node)) for h in hosts for step in range(h.logged)}
    first = {h.node: min(c.at for c in repo.commits if any(f"/{h.node:012x}" in p for p in c.changed)) for h in hosts}
    print(json.dumps({
        "commits": len(times), "worst_hour": worst, "refused": refused, "rows": sum(rows.values()),
        "is_equal": rows == collections.Counter(expected), "logged": sum(h.logged for h in hosts),
        "first": max(first.values()) - BEGIN, "after_the_end": max(times) - last,
        "files": sum(path.startswith("metrics/p/job") for path in repo.tree),
    }))  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
