"""Alerts as Slack, Discord and others want them, and sending one. `payload` is pure.

What sends runs in a child (`python -m trackiod send`): a server may hang for ever, and a reply be anything.
"""

from __future__ import annotations

import http.client
import json
import sys
import urllib.error
import urllib.request
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from trackio.names import HOST

SECONDS = 10.0
_COLORS = {"info": 3447003, "warn": 16776960, "error": 15158332}
_MOST_CHARS = {"slack": 2900, "discord": 4000, "other": 100_000}


class NotSent(Exception):
    """It could not be sent: `is_final` if another try would end no better. Its text holds no address."""

    def __init__(self, why: str, *, is_final: bool) -> None:
        super().__init__(why)
        self.is_final = is_final


def kind_of(url: str) -> str:
    """Whose webhook an address is: slack, discord or other."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if host == "hooks.slack.com" or host.endswith(".hooks.slack.com"):
        return "slack"
    if host in ("discord.com", "discordapp.com") and parts.path.startswith("/api/webhooks"):
        return "discord"
    return "other"


def payload(kind: str, project: str, alert: dict[str, Any]) -> dict[str, Any]:
    """The JSON that a webhook of that kind takes."""
    level, title, step = alert["level"], alert["title"], alert["step"]
    most = _MOST_CHARS[kind]
    text = alert["text"] if alert["text"] is None else alert["text"][:most]
    is_node = project == HOST
    where = f"Node: {alert['run']}" if is_node else f"Project: {project}  •  Run: {alert['run']}"
    where += f"  •  Step {step}" if step is not None else ""
    head = f"[{level.upper()}] {title}"
    if kind == "slack":
        sections = [f"*{_slack(head[:most])}*", *([_slack(text)] if text else [])]
        blocks: list[dict[str, Any]] = [{"type": "section", "text": {"type": "mrkdwn", "text": s}} for s in sections]
        blocks.append({"type": "context", "elements": [{"type": "mrkdwn", "text": _slack(where)}]})
        return {"text": _slack(head[:most]), "blocks": blocks}
    if kind == "discord":
        embed = {"title": head[:256], "color": _COLORS.get(level, 0), "footer": {"text": where[:2000]}}
        return {"embeds": [embed | ({"description": text} if text else {})], "allowed_mentions": {"parse": []}}
    moment = datetime.fromtimestamp(alert["time_ns"] / 1e9, UTC).isoformat()
    whose = {"project": project, "run": alert["run"], "run_id": alert["run_id"]}
    if is_node:
        whose = {"project": None, "run": None, "run_id": None, "node": alert["run"]}
    return {"level": level, "title": title, "text": text, **whose, "step": step, "timestamp": moment}


def _slack(text: str) -> str:
    """Text in which nothing is a mention or a link."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def send(project: str, alert: dict[str, Any]) -> None:
    """Posts an alert to its webhook. Raises NotSent."""
    url = alert["webhook"]
    if not is_address(url):
        raise NotSent("its webhook is not an http address", is_final=True)
    body = json.dumps(payload(kind_of(url), project, alert)).encode()
    try:
        request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=SECONDS):
            return
    except urllib.error.HTTPError as error:
        is_final = 300 <= error.code < 500 and error.code not in (408, 425, 429)
        raise NotSent(f"its webhook answered {error.code}", is_final=is_final) from None
    except http.client.HTTPException as error:
        # InvalidURL is one, too, but what it quotes is the address
        is_final = isinstance(error, http.client.InvalidURL)
        raise NotSent(f"its webhook does not speak HTTP ({type(error).__name__})", is_final=is_final) from None
    except OSError as error:
        why = getattr(error, "reason", None) or error.strerror or type(error).__name__
        raise NotSent(f"its webhook cannot be reached ({why})", is_final=False) from None
    except (ValueError, OverflowError) as error:  # the address holds what no host has
        raise NotSent(f"its webhook cannot be reached ({type(error).__name__})", is_final=True) from None


def is_address(url: Any) -> bool:
    """Whether a text is an address that something can be posted to."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except (ValueError, AttributeError, TypeError):
        return False


def main() -> int:
    """Answers each alert (a line of JSON: project, facts) with a line: why it was not sent, or "", and whether that is
    final."""
    for line in sys.stdin.buffer:
        why, is_final = "", False
        try:
            send(*json.loads(line))
        except NotSent as error:
            why, is_final = str(error), error.is_final
        except Exception as error:  # noqa: BLE001 the border of the child: the alert is odd, not its server
            why, is_final = f"it cannot be sent ({type(error).__name__})", True
        sys.stdout.write(json.dumps([why, is_final]) + "\n")
        sys.stdout.flush()
    return 0
