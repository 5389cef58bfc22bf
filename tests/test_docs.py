"""The documents say what the code does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
from trackio_cli.daemon import trackiod
from trackio_cli.main import trackio

from trackiod.sampler import table

ROOT = Path(__file__).parent.parent


def described(command: click.Command, words: str) -> Iterator[str]:
    """A command and those below it, as docs/commands.md shows them."""
    if isinstance(command, click.Group):
        for name, inner in sorted(command.commands.items()):
            yield from described(inner, f"{words} {name}")
        return
    yield f"## {words}\n\n{' '.join((command.help or '').split())}\n"
    options = [p for p in command.params if isinstance(p, click.Option)]
    for option in options:
        required = " (required)" if option.required else ""
        yield f"* `{', '.join(option.opts)}`{required}{': ' + option.help if option.help else ''}"
    if options:
        yield ""


def commands_page() -> str:
    """What docs/commands.md must be."""
    head = "# Commands\n\nEvery command and option. A test keeps this page equal to the code.\n"
    return "\n".join([head, *described(trackio, "trackio"), *described(trackiod, "trackiod")]).rstrip() + "\n"


def test_the_commands_page_lists_every_command_and_option() -> None:
    assert (ROOT / "docs" / "commands.md").read_text() == commands_page()


def system_metrics_page() -> str:
    """What docs/system-metrics.md must be, but for the part that says what was seen on a GPU."""
    lines = [
        "# System metrics", "",
        "Every metric of the sampler, made from `trackiod/sampler/table.py`, under the names that `trackio list",
        "system-metrics` shows. `{gpu}` is the index of a GPU, or `gpu:instance` of a MIG instance. What the driver or",
        "the kernel does not tell is absent. Each reading has the time at which it was made.", "",
    ]  # fmt: skip
    for room in table.ROOMS:
        lines += [f"## {room.title}", "", "| Metric | Unit | Source | Meaning |", "|---|---|---|---|"]
        shown = [m for m in room.metrics if m.name != "is_there"]
        lines += [f"| `{room.shown}{m.name}` | {m.unit} | {m.source} | {m.meaning} |" for m in shown]
        lines.append("")
    return "\n".join(lines)


def test_the_page_of_system_metrics_is_that_of_the_table() -> None:
    assert (ROOT / "docs" / "system-metrics.md").read_text().startswith(system_metrics_page())


def test_every_command_and_option_says_what_it_does() -> None:
    page = commands_page()
    assert not re.search(r"^## .*\n\n\n", page, re.M)
    for line in page.splitlines():
        if line.startswith("* ") and "--project" not in line and "--metric" not in line:
            assert ": " in line, line


def test_the_map_names_every_module_and_no_other() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text().split("## Rooms")[1].split("Pure, without")[0]
    named = set(re.findall(r"`([a-z_]+(?:/[a-z_]+)?)`", text))
    for package in ("trackio", "trackiod"):
        for path in (ROOT / package).rglob("*.py"):
            name = path.relative_to(ROOT / package).with_suffix("").as_posix()
            if name.split("/")[-1] in ("__init__", "__main__", "version"):
                continue
            assert name in named or name.split("/")[-1] in named, f"{package}/{name} is not on the map"


def test_every_test_that_the_page_on_faults_names_is_there() -> None:
    named = set(re.findall(r"`(test_[a-z0-9_]+)`", (ROOT / "docs" / "faults.md").read_text()))
    there = {
        name for path in (ROOT / "tests").glob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert len(named) > 60 and named <= there, named - there


def test_every_link_between_documents_leads_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_no_document_or_source_names_a_path_of_some_machine() -> None:
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "trackio").glob("*.py")]:
        assert "/root/" not in path.read_text(), path
