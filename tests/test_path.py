"""The whole path: processes log, the daemon stores, readers see it."""

from __future__ import annotations

from conftest import Host, wait_for

LOG_TEN = """
import trackio
run = trackio.init(project="p", name="r", config={"lr": 0.1, "layers": [1, 2]})
for i in range(10):
    trackio.log({"loss": 1 / (i + 1), "note": "hi", "ok": True})
trackio.finish()
print(run.id)
"""


def test_what_is_logged_is_read_back(daemon: Host) -> None:
    done = daemon.run(LOG_TEN)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    run = daemon.ended_run("p")
    assert run.id == done.stdout.strip()
    assert run.state == ("finished", "")
    assert daemon.values("p", "loss") == [1 / (i + 1) for i in range(10)]
    assert daemon.values("p", "note") == ["hi"] * 10 and daemon.values("p", "ok") == [True] * 10
    assert run.config() == {"lr": 0.1, "layers": [1, 2]}
    assert run.steps == (9, 9)
    assert (run.records, run.points, run.holes, run.refused_points) == (10, 30, [], 0)


def test_every_run_of_a_process_is_shipped_while_it_runs(daemon: Host) -> None:
    process = daemon.python("""
import trackio, sys
for name in "abc":
    trackio.init(project=name); trackio.log({"x": 1})
    sys.stdin.readline()
""", stdin=-1)  # fmt: skip
    for name in "abc":
        wait_for(lambda name=name: daemon.runs(name) and daemon.the_run(name).points == 1)
        process.stdin.write("\n")
        process.stdin.flush()
    process.communicate()


def test_a_point_is_visible_while_the_run_runs(daemon: Host) -> None:
    process = daemon.python("import trackio, sys\ntrackio.init(project='p')\ntrackio.log({'x': 1})\nsys.stdin.read()",
                            stdin=-1)  # fmt: skip
    wait_for(lambda: daemon.runs("p") and daemon.the_run("p").points == 1)
    assert daemon.the_run("p").state.state == "running"
    process.communicate()
    assert daemon.ended_run("p").state.state == "finished"
    assert not list(daemon.spool.rglob("seg-*")), "an acked spool is removed"
