"""`make demo`: a daemon, four ranks that train and log, `trackio status` while they run, and the run after.

Everything it makes lies in `.demo/`; it leaves no process behind.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
DATA = ROOT / ".demo"
SCRIPT = str(ROOT / "examples" / "digits.py")
RANKS = 4
LOOKS = 3


def tell(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def command(*words: str) -> int:
    """Shows and runs one of our commands."""
    tell("$ " + " ".join(words))
    return subprocess.run([str(BIN / words[0]), *words[1:]], env=environment()).returncode


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "TRACKIO_DIR": str(DATA), "TRACKIO_SAMPLE_SECONDS": "2", "OMP_NUM_THREADS": "1", **more}


def launch() -> list[subprocess.Popen[bytes]]:
    """The ranks: under torchrun if torch is here, else plain processes with torchrun's variables."""
    if find_spec("torch"):
        words = [str(BIN / "torchrun"), "--standalone", "--nproc-per-node", str(RANKS), SCRIPT]
        tell("$ torchrun --standalone --nproc-per-node 4 examples/digits.py")
        return [subprocess.Popen(words, env=environment())]
    tell(f"(torch is not installed: {RANKS} plain processes with torchrun's variables, numpy instead of DDP)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = []
    for rank in range(RANKS):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS), "LOCAL_WORLD_SIZE": str(RANKS),
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
        ranks.append(subprocess.Popen([sys.executable, SCRIPT], env=environment(**place)))
    return ranks


def watch(ranks: list[subprocess.Popen[bytes]]) -> bool:
    """Shows the status a few times while the ranks run. True if all of them ended well."""
    looked = 0
    while any(rank.poll() is None for rank in ranks):
        time.sleep(0.1)
        if looked < LOOKS and is_logging():
            command("trackio", "status")
            looked += 1
            time.sleep(1)
    return all(rank.wait() == 0 for rank in ranks)


def is_logging() -> bool:
    words = [str(BIN / "trackio"), "status", "--json"]
    status = subprocess.run(words, env=environment(), capture_output=True, text=True)
    return any(run["points"] for run in json.loads(status.stdout)["runs"])


def main() -> int:
    subprocess.run([str(BIN / "trackiod"), "stop"], env=environment(), capture_output=True)
    shutil.rmtree(DATA, ignore_errors=True)
    if command("trackiod", "start"):
        return 1
    ranks: list[subprocess.Popen[bytes]] = []
    try:
        ranks = launch()
        well = watch(ranks)
        command("trackio", "status")
        name = run_name()
        command("trackio", "get", "run", "--project", "digits", "--run", name)
        command("trackio", "get", "metric", "--project", "digits", "--run", name, "--metric", "train/loss",
                "--around", "1499", "--window", "4")  # fmt: skip
        command("trackio", "get", "system-metric", "--project", "digits", "--run", name, "--metric", "cpu/utilization")
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.terminate()
                rank.wait()
        command("trackiod", "stop")
    tell("Four ranks, one run. What to type next:")
    print(f"  export TRACKIO_DIR={DATA} PATH={BIN}:$PATH")
    print(f"  trackio get metric --project digits --run {name} --metric train/accuracy --rank 3")
    print(f"  trackio get snapshot --project digits --run {name} --step 1499 --json")
    tell("Then put trackio.init() and trackio.log() into a training script of yours, and:")
    print("  unset TRACKIO_DIR")
    print("  trackio status --watch")
    return 0 if well else 1


def run_name() -> str:
    listed = subprocess.run(
        [str(BIN / "trackio"), "list", "runs", "--project", "digits", "--json"],
        env=environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    return str(json.loads(listed.stdout)["runs"][-1])


if __name__ == "__main__":
    sys.exit(main())
