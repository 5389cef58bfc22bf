"""`trackio list artifacts`, `trackio get artifact`."""

from __future__ import annotations

import click

from trackiod import catalog, library
from trackiod.moments import timestamp

from .output import print_json, say, size, table, where

_LISTS = ("aliases", "logged_by", "used_by")
_AS_JSON = click.option("--json", "as_json", is_flag=True, help="Valid JSON instead of text.")


@click.command("artifacts")
@click.option("--project", required=True)
@_AS_JSON
def list_artifacts(project: str, as_json: bool) -> None:
    """All versions of a project's artifacts."""
    found = library.all_versions(where().projects, project)
    if as_json:
        print_json({"project": project, "artifacts": found})
    elif not found:
        say("No artifacts found.")
    else:
        rows = [
            [f"{a['name']}:{a['version']}", a["type"], size(a["size"]), *(", ".join(a[k]) for k in _LISTS),
             timestamp(a["created_ns"])] for a in found
        ]  # fmt: skip
        say(table(["ARTIFACT", "TYPE", "SIZE", "ALIASES", "LOGGED BY", "USED BY", "CREATED"], rows))


@click.command("artifact")
@click.option("--project", required=True)
@click.option("--name", required=True, help="`name`, `name:alias` or `name:v3`; without, the latest version.")
@_AS_JSON
def get_artifact(project: str, name: str, as_json: bool) -> None:
    """A version of an artifact, with its files."""
    base, _, which = name.partition(":")
    with catalog.open_project(where().projects, project) as reader:
        version = library.named(reader, "", base, which or "latest")
        facts = library.described(reader, base, version.version)
    if as_json:
        print_json(facts)
        return
    say(f"Artifact: {facts['name']}:{facts['version']} ({facts['type']})", f"Aliases: {', '.join(facts['aliases'])}")
    say(f"Logged by: {', '.join(facts['logged_by'])}", f"Used by: {', '.join(facts['used_by']) or '-'}", "")
    rows = [[e["path"], e.get("size"), e.get("incomplete") or e.get("ref") or ""] for e in facts["manifest"]]
    say(table(["FILE", "BYTES", "NOTE"], rows))
    say("", f"Digest: {facts['digest']}", *(f"  {e.get('digest')}  {e['path']}" for e in facts["manifest"]))
