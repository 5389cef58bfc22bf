"""A rank of a schedule (`torture`): a script as users write them. Says in shared memory how far it came.

Words of 64 bits: 0 the log() calls that have returned, 1 the artifacts; then two for each child, its pid and its calls.
"""

from __future__ import annotations

import json
import mmap
import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any


def content(rank: int, number: int, size: int) -> bytes:
    """What an artifact's only file holds at one save: no two are alike, in no block."""
    word = b"%07d/%07d\n" % (rank, number)
    return (word * (size // len(word) + 1))[:size]


def main() -> None:
    plan: dict[str, Any] = json.loads(sys.argv[2])
    with open(sys.argv[1], "r+b") as file:
        words = memoryview(mmap.mmap(file.fileno(), 4096)).cast("Q")

    import trackio

    def log_in_child(number: int, records: int) -> None:
        words[2 + 2 * number] = os.getpid()
        for i in range(records):
            trackio.log({"child": i}, step=i)
            words[3 + 2 * number] = i + 1

    def start_child(number: int, how: str, records: int) -> None:
        try:
            if how == "multiprocessing":
                multiprocessing.get_context("fork").Process(target=log_in_child, args=(number, records)).start()
                return
            pid = os.fork()
        except OSError:
            return  # the machine has no process left for us
        if pid == 0:
            multiprocessing.process._children.clear()  # those of our parent, which Python would join at our exit
            log_in_child(number, records)
            if how == "fork":
                os._exit(0)
            sys.exit()

    def save(number: int, size: int, how: str) -> None:
        """As people write checkpoints: in place, or beside and renamed over the last."""
        path = Path(plan["work"], "last.bin")
        made = path if how == "in place" else path.with_suffix(".new")
        made.write_bytes(content(plan["rank"], number, size))
        made.rename(path)
        trackio.log_artifact(str(path), name=f"a{plan['rank']}")
        words[1] = number + 1

    trackio.init(project="p")
    children = {at: (number, how, records) for number, (at, how, records) in enumerate(plan["forks"])}
    saves = {at: (number, size, how) for number, (at, size, how) in enumerate(plan["saves"])}
    for i in range(plan["records"]):
        if i in children:
            start_child(*children[i])
        if i in saves:
            save(*saves[i])
        trackio.log({"i": i, "half": i / 2}, step=i)
        words[0] = i + 1
        if plan["pause"] and i % plan["burst"] == 0:
            time.sleep(plan["pause"])
    match plan["ending"]:
        case "finish":
            trackio.finish()
        case "raise":
            raise KeyError("raise")
        case "exit":
            os._exit(0)


if __name__ == "__main__":
    main()
