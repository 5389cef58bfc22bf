"""What is printed: names and texts of users can neither move the cursor nor look like something else."""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from conftest import Host, _environment, wait_for
from hypothesis import given
from hypothesis import strategies as st
from trackio_cli import output
from trackio_cli.daemon import trackiod
from trackio_cli.main import trackio as trackio_command

from trackio.voice import escaped

CLI = Path(__file__).parent.parent / "cli"
NASTY = "\x1b[31m\x9b2J\x07\x08\r\u202e\u2066\u200b\u2028\x7f\x00\nFORGED: "
NOT_WALKED = {"start", "stop", "restart", "run", "publish"}
"""what changes the daemon, and prints its numbers"""


@given(st.text(st.characters(exclude_categories=())))
def test_what_is_printed_obeys_nobody_and_json_reads_back_equal(text: str) -> None:
    assert escaped(text).replace("\u3000", " ").isprintable() or all(
        c.isprintable() or c.isspace() for c in escaped(text)
    )
    assert not {*escaped(text)} & {*NASTY} - {*"[31m2JFORGED: "}
    printed = output._json({"key": text})
    assert json.loads(printed) == {"key": text} and printed.encode()
    assert not {*printed} & ({*NASTY} - {*"[31m2JFORGED: "})


def test_whatever_a_command_prints_goes_through_one_place() -> None:
    for path in CLI.glob("*.py"):
        if path.name in ("output.py", "__init__.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("print", "click.echo", "click.secho", "click.style"), (path.name, node.lineno)
                assert not called.endswith((".write", ".writelines")) or "std" not in called, (path.name, node.lineno)


def walk(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if not isinstance(command, click.Group):
        yield path, command
        return
    for name, inner in command.commands.items():
        if name not in NOT_WALKED:
            yield from walk(inner, (*path, name))


def spoken(host: Host, root: click.Command, arguments: list[str]) -> Any:
    with _environment(host.environ()):
        done = CliRunner().invoke(root, arguments)
    assert not done.exception or isinstance(done.exception, SystemExit), (arguments, done.exc_info)
    for text in (done.stdout, done.stderr):
        assert not {*text} & {*NASTY} - {*"[31m2J\nFORGED: "}, (arguments, text)
        assert not [line for line in text.splitlines() if line.lstrip().startswith("FORGED")], (arguments, text)
    return done


def test_no_command_lets_a_name_or_text_move_the_cursor(daemon: Host, tmp_path: Path) -> None:
    done = daemon.run(
        """
import sys, trackio
nasty = sys.argv[1].replace("NUL", chr(0))
run = trackio.init(project="p" + nasty, name="r" + nasty, group=nasty, tags=[nasty], notes=nasty, job_type=nasty,
                   config={nasty: nasty})
trackio.define_metric("loss" + nasty, step_metric=nasty, summary="min")
for step in range(3):
    table = trackio.Table(columns=[nasty], data=[[nasty]])
    trackio.log({"loss" + nasty: step, "text" + nasty: nasty, "t": table}, step=step)
trackio.log_system({nasty: 1.0})
run.summary[nasty] = nasty
run.alert(nasty, nasty)
artifact = trackio.Artifact("model", type=nasty, description=nasty, metadata={nasty: nasty})
artifact.add_reference("http://example.com/" + nasty, name="x")
trackio.log_artifact(artifact, aliases=["a"])
trackio.log({nasty: object()})
raise RuntimeError(nasty)
""",
        NASTY.replace("\x00", "NUL"),
        env={"CUDA_VISIBLE_DEVICES": NASTY.replace("\x00", "")},
    )
    ours = [line for line in done.stderr.splitlines() if line.startswith("trackio:")]
    assert len(ours) >= 3 and all(not {*line} & {*NASTY} - {*"[31m2JFORGED: "} for line in ours), ours
    wait_for(
        lambda: (
            (names := daemon.cli("list", "projects")["projects"]) and daemon.runs(names[0])[0].state.state == "failed"
        )
    )
    project = daemon.cli("list", "projects")["projects"][0]
    assert project == "p" + NASTY
    given = {
        "project": project, "run": "r" + NASTY, "metric": "loss" + NASTY, "name": "model", "step": "1",
        "folder": str(tmp_path / "out"), "sql": "SELECT * FROM metrics, runs, alerts",
    }  # fmt: skip
    for root in (trackio_command, trackiod):
        for path, command in walk(root):
            wanted = [p for p in command.params if p.required or (p.name in ("step",) and path[-1] == "snapshot")]
            arguments = [*path]
            for parameter in wanted:
                arguments += [parameter.opts[0], given.get(str(parameter.name), "odd" + NASTY)]
            done = spoken(daemon, root, arguments)
            is_known = {str(p.name) for p in wanted} <= given.keys() and path[-1] not in ("doctor", "drain")
            assert done.exit_code == 0 or not is_known, (arguments, done.output)
            if any(p.name == "as_json" for p in command.params):
                given["folder"] += "x"
                arguments = [a if not a.startswith(str(tmp_path)) else given["folder"] for a in arguments]
                printed = spoken(daemon, root, [*arguments, "--json"]).stdout
                assert json.loads(printed) is not None
            for number, parameter in enumerate(wanted):  # names that are not there
                odd = list(arguments)
                place = str(tmp_path) if parameter.name == "folder" else "odd"
                odd[odd.index(parameter.opts[0]) + 1] = place + NASTY.replace("\x00", "") + str(number)
                spoken(daemon, root, odd)
        spoken(daemon, root, ["no" + NASTY])
        spoken(daemon, root, ["--no" + NASTY])
    log = daemon.command("trackiod", "logs").stdout
    assert not {*log} & {*NASTY} - {*"[31m2J\nFORGED: "} and "\nFORGED" not in log


def test_the_daemons_log_is_clean_where_it_lies(daemon: Host) -> None:
    code = "import os, sys, trackio\ntrackio.init(project=sys.argv[1], name=sys.argv[1])"
    code += "\ntrackio.log({'a': 1})\ntrackio.finish(wait='stored', timeout=60)\nos._exit(3)"
    daemon.run(code, "p" + NASTY.replace("\x00", ""))
    wait_for(lambda: "ended" in (daemon.data / "trackiod.log").read_text())
    text = (daemon.data / "trackiod.log").read_text()
    assert not {*text} & {*NASTY} - {*"[31m2J\nFORGED: "} and "\nFORGED" not in text
    assert os.path.getsize(daemon.data / "trackiod.log")


def test_a_sentence_of_an_error_of_clicks_is_clean() -> None:
    with pytest.raises(click.ClickException) as caught, output._clean_errors():
        raise click.NoSuchOption("--x\x1b")
    assert "\x1b" not in caught.value.format_message()
