"""A Hub on this machine: as much of its HTTP interface as `huggingface_hub` needs to make a repository and push."""

from __future__ import annotations

import base64
import http.server
import json
import threading
from typing import Any


class FakeHub:
    """Keeps the files that are pushed, by path. Use as a context manager."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self._answer(hub.post(self.path, body))

            def do_GET(self) -> None:
                self._answer(hub.get(self.path))

            do_HEAD = do_GET

            def _answer(self, answer: Any) -> None:
                hub.asked.append(f"{self.command} {self.path}")
                data = json.dumps(answer).encode()
                self.send_response(404 if answer is None else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def __enter__(self) -> FakeHub:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def get(self, path: str) -> Any:
        if path.startswith("/api/whoami"):
            return {"name": "me", "type": "user", "orgs": [], "auth": {"type": "access_token"}}
        if path.startswith("/api/models/me/out"):
            return {"id": "me/out", "sha": "0" * 40, "siblings": [{"rfilename": name} for name in self.files]}
        return None

    def post(self, path: str, body: bytes) -> Any:
        if path == "/api/repos/create":
            return {"url": f"{self.url}/me/out", "name": "me/out", "id": "me/out"}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if "/preupload/" in path:
            names = [file["path"] for file in json.loads(body)["files"]]
            return {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for n in names]}
        if "/commit/" in path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            return {
                "success": True,
                "commitOid": "0" * 40,
                "commitUrl": f"{self.url}/me/out/commit/0",
                "hookOutput": "",
            }
        return None
