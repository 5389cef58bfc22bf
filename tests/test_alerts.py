"""Alerts: stored, printed, listed, and sent by the daemon, also when the trainer is gone; what webhooks get."""

from __future__ import annotations

import http.server
import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Host, database, wait_for

import trackio
from trackio.alerts import AlertLevel, level_of
from trackiod import webhooks
from trackiod.store import schema

HEAD = "import os, sys, trackio\nrun = trackio.init(project='p', name='r')\n"


class Hook:
    """A real HTTP server that takes what is posted, and answers as told."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.answers: list[int] = []
        hook = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                code = hook.answers.pop(0) if hook.answers else 200
                if code < 300:
                    hook.bodies.append(body)
                self.send_response(code)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()


@pytest.fixture
def hook() -> Iterator[Hook]:
    hook = Hook()
    yield hook
    hook.server.shutdown()
    hook.server.server_close()
    hook.thread.join()


def alerts(host: Host, *options: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = host.cli("list", "alerts", "--project", "p", *options)["alerts"]
    return found


def test_alerts_are_stored_printed_and_listed(daemon: Host) -> None:
    done = daemon.run(HEAD + """
trackio.log({"a": 1}, step=7)
trackio.alert("Loss\\nup", "it went\\n<b>up</b>", level=trackio.AlertLevel.ERROR)
trackio.alert(title="plain")
run.alert("warned", level="WARNING", step=3)
run.alert("odd", level="purple")
trackio.alert("kept" * 10_000, level="info", wait_duration=3)
""")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "trackio: ERROR Loss up: it went <b>up</b> (step 7)\n" in done.stderr
    assert "'purple'. Expected one of: info, warn, error. The alert is kept as a warning." in done.stderr
    assert "alert() knows no 'wait_duration'" in done.stderr and "cut to 20,000 characters" in done.stderr
    daemon.ended_run("p")
    found = alerts(daemon)
    assert [(a["level"], a["title"][:8], a["step"]) for a in found] == [
        ("info", "keptkept", 7), ("warn", "odd", 7), ("warn", "warned", 3), ("warn", "plain", 7),
        ("error", "Loss\nup", 7),
    ]  # fmt: skip
    assert found[4]["text"] == "it went\n<b>up</b>" and found[4]["run"] == "r" and found[4]["webhook"] is None
    assert len(alerts(daemon, "--level", "warn")) == 3 and len(alerts(daemon, "--run", "r")) == 5
    assert alerts(daemon, "--since", found[1]["timestamp"]) == found[:1]
    assert daemon.cli("get", "alerts", "--project", "p", "--run", "r")["alerts"] == found
    text = daemon.command("trackio", "list", "alerts", "--project", "p").stdout
    assert "Loss up" in text and "<b>up</b>" in text


def test_alert_before_init_is_misuse() -> None:
    with pytest.raises(RuntimeError, match=r"Call trackio\.init\(\) before trackio\.alert\(\)\."):
        trackio.alert("x")


def test_a_webhook_gets_what_is_grave_enough_also_from_a_process_that_is_gone(host: Host, hook: Hook) -> None:
    """No daemon runs while the trainer does; the first tries fail; the daemon is killed between."""
    done = host.run(f"""
import os, signal, trackio
run = trackio.init(project="p", name="r", webhook_url={hook.url!r}, webhook_min_level="warn")
trackio.alert("quiet", level="info")
trackio.alert("grave", "text", level="error")
trackio.alert("elsewhere", level="info", webhook_url={hook.url + "/own"!r})
os.kill(os.getpid(), signal.SIGKILL)
""")
    assert done.returncode == -signal.SIGKILL
    hook.answers = [503, 503]
    pid = host.start()
    wait_for(lambda: not hook.answers, what="the first tries")
    os.kill(pid, signal.SIGKILL)
    assert hook.bodies == []
    host.start()
    wait_for(lambda: len(hook.bodies) == 2, what="both alerts")
    grave = next(body for body in hook.bodies if body["title"] == "grave")
    assert {k: grave[k] for k in ("level", "title", "text", "project", "run")} == {
        "level": "error", "title": "grave", "text": "text", "project": "p", "run": "r",
    }  # fmt: skip
    assert {body["title"] for body in hook.bodies} == {"grave", "elsewhere"}
    sent = lambda: {a["title"]: a["webhook"] for a in alerts(host)}  # noqa: E731
    wait_for(lambda: sent()["grave"] == sent()["elsewhere"] == "sent", what="both to be noted")
    assert sent()["quiet"] is None
    host.stop()
    assert hook.url.encode() not in b"".join(p.read_bytes() for p in host.data.rglob("*.log"))


def test_a_webhook_that_fails_is_tried_again_by_the_same_daemon(daemon: Host, hook: Hook) -> None:
    hook.answers = [503]
    daemon.run(HEAD + f"trackio.alert('a', webhook_url={hook.url!r})")
    wait_for(lambda: not hook.answers, what="the first try")
    assert [a["webhook"] for a in alerts(daemon)] == ["not sent yet"]
    wait_for(lambda: hook.bodies, what="the second try")
    wait_for(lambda: [a["webhook"] for a in alerts(daemon)] == ["sent"], what="its note")
    assert len(hook.bodies) == 1 and hook.answers == []


def test_a_webhook_that_refuses_is_given_up_and_named(daemon: Host, hook: Hook) -> None:
    hook.answers = [404]
    code = (
        "trackio.alert('quiet', level='info'); trackio.alert('a'); trackio.alert('b', webhook_url='file:///etc/hosts')"
    )
    daemon.run(HEAD + code, env={"TRACKIO_WEBHOOK_URL": hook.url, "TRACKIO_WEBHOOK_MIN_LEVEL": "warn"})
    wait_for(lambda: len([a for a in alerts(daemon) if "answered" in str(a["webhook"])]) == 1, what="the end of one")
    wait_for(lambda: not [a for a in alerts(daemon) if a["webhook"] == "not sent yet"], what="the ends of both")
    assert {a["title"]: a["webhook"] for a in alerts(daemon)} == {
        "quiet": None,
        "a": "not sent: its webhook answered 404",
        "b": "not sent: its webhook is not an http address",
    }
    assert hook.bodies == []


ALERT = {
    "level": "error",
    "title": "<!channel> up",
    "text": "a & b",
    "step": 3,
    "run": "r",
    "run_id": "i",
    "time_ns": 0,
}


@pytest.mark.parametrize(("url", "kind"), [
    ("https://hooks.slack.com/services/T/B/x", "slack"), ("https://discord.com/api/webhooks/1/x", "discord"),
    ("https://discordapp.com/api/webhooks/1/x", "discord"), ("https://example.org/hooks.slack.com", "other"),
    ("https://discord.com/other", "other"), ("https://hooks.slack.com.example.org/x", "other"),
])  # fmt: skip
def test_an_address_says_whose_webhook_it_is(url: str, kind: str) -> None:
    assert webhooks.kind_of(url) == kind


def test_slack_and_discord_get_their_own_json_in_which_nobody_is_called() -> None:
    slack = webhooks.payload("slack", "p", ALERT)
    assert slack["text"] == "[ERROR] &lt;!channel&gt; up"
    assert [block["type"] for block in slack["blocks"]] == ["section", "section", "context"]
    assert slack["blocks"][1]["text"]["text"] == "a &amp; b"
    discord = webhooks.payload("discord", "p", ALERT)
    assert discord["allowed_mentions"] == {"parse": []}
    (embed,) = discord["embeds"]
    assert (embed["title"], embed["description"], embed["color"]) == ("[ERROR] <!channel> up", "a & b", 15158332)
    assert embed["footer"]["text"] == "Project: p  •  Run: r  •  Step 3"
    assert webhooks.payload("other", "p", ALERT)["timestamp"] == "1970-01-01T00:00:00+00:00"
    long = webhooks.payload("slack", "p", ALERT | {"title": "t" * 5000, "text": "x" * 5000})
    assert all(len(block["text"]["text"]) <= 3000 for block in long["blocks"][:2])


def test_levels_are_words_in_an_order() -> None:
    assert AlertLevel.WARN == "warn" and str(AlertLevel.WARN) == "warn" and AlertLevel.INFO < AlertLevel.ERROR
    assert [level_of(word).value for word in ("Info", " WARNING ", AlertLevel.ERROR, "critical")] == [
        "info", "warn", "error", "error",
    ]  # fmt: skip


@pytest.mark.parametrize("moment", ["while it runs", "when it was killed"])
def test_the_address_of_a_webhook_is_nowhere_once_its_alerts_were_sent(host: Host, hook: Hook, moment: str) -> None:
    """Not in raw batches, nor in SQLite's log or free pages, nor beside them; also where transactions were undone."""
    code = f"""
import os, signal, sys, trackio
run = trackio.init(project="p", name="r", webhook_url={hook.url + "/s3cr3t-of-the-run"!r})
for number in range(20):
    trackio.log({{"a": number}})
    trackio.alert(f"alert {{number}}", "x" * 1000 * number,
                  webhook_url={hook.url + "/s3cr3t-of-the-call"!r} if number % 2 else None)
if sys.argv[1] == "killed": os.kill(os.getpid(), signal.SIGKILL)
sys.stdin.read()
"""
    if moment == "while it runs":
        host.start()
    process = host.python(code, "killed" if "killed" in moment else "", stdin=subprocess.PIPE)
    if moment != "while it runs":
        process.communicate()
        host.start()
    wait_for(lambda: len(hook.bodies) >= 20, 60, "all alerts")
    wait_for(lambda: {a["webhook"] for a in alerts(host)} == {"sent"}, 60, "their notes")
    assert len(alerts(host)) == 20
    if moment == "while it runs":
        process.communicate("")
    host.ended_run("p")
    wait_for(lambda: not list((host.data / "spill").glob("*/*")), what="what the process left to be removed")
    places = [path for top in (host.data, host.spool) for path in top.rglob("*") if path.is_file()]
    assert any(path.name.endswith(".db-wal") for path in places), "no checkpoint is waited for"
    for path in places:
        assert b"s3cr3t" not in path.read_bytes(), path
    said = host.command("trackio", "list", "alerts", "--project", "p", "--json").stdout
    assert "s3cr3t" not in said + host.command("trackiod", "status", "--json").stdout


def test_an_alert_that_an_earlier_release_could_not_send_is_sent_by_the_next_daemon(host: Host, hook: Hook) -> None:
    """One that takes over knows nothing of references to addresses, and gives up what has one."""
    host.start()
    done = host.run(HEAD + "trackio.alert('hot', webhook_url='http://127.0.0.1:9/x')")
    assert done.returncode == 0, done.stderr
    host.ended_run("p")
    host.stop()
    (address,) = (path for path in host.data.rglob("*") if path.is_file() and re.fullmatch("[0-9a-f]{32}", path.name))
    address.write_text(hook.url)
    with database(schema.path_of(host.places.projects, "p")) as connection:
        earlier = "UPDATE alerts SET webhook = NULL, sent = 'not sent: its webhook is no http address'"
        assert connection.execute(earlier).rowcount == 1
    host.start()
    wait_for(lambda: {alert["webhook"] for alert in alerts(host)} == {"sent"})
    assert len(hook.bodies) == 1 and not address.exists()
