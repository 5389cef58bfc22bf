"""A server that speaks the Hub's HTTP API to the real `huggingface_hub` and `datasets`, as far as a dataset needs it.

It keeps repositories in memory: a list of commits, each the whole tree. `faults` scripts what goes wrong, by method and
path; `log` has every request.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

import hub_pages
from hub_pages import Answer, BucketPages, XetPages, is_private
from xet import Xet

REVISION = "main"
_IS_LFS = re.compile(r"\.(parquet|png|bin|safetensors|pt)$")


@dataclass
class Commit:
    oid: str
    message: str
    at: float
    tree: dict[str, bytes]
    changed: list[str]
    token: str


@dataclass
class Repo:
    private: bool
    commits: list[Commit] = field(default_factory=list)

    @property
    def tree(self) -> dict[str, bytes]:
        return self.commits[-1].tree if self.commits else {}

    @property
    def head(self) -> str:
        return self.commits[-1].oid if self.commits else "0" * 40


@dataclass
class Bucket:
    private: bool
    files: dict[str, str] = field(default_factory=dict)
    """names of contents in Xet's store, by path"""
    batches: list[list[str]] = field(default_factory=list)
    """the paths that each request changed"""
    refused: str = ""
    """a pattern of paths that are refused while others of a batch are taken"""

    def refuses(self, path: str) -> bool:
        return bool(self.refused and re.search(self.refused, path))


class Hold:
    """Keeps a request on its way."""

    def __init__(self) -> None:
        self._end, self.done = threading.Event(), threading.Event()
        self._is_taken = False

    def end(self, *, is_taken: bool) -> None:
        self._is_taken = is_taken
        self._end.set()
        assert not is_taken or self.done.wait(30)

    def is_taken(self) -> bool:
        """Waits for the end."""
        return self._end.wait(120) and self._is_taken


@dataclass
class Fault:
    """What becomes of requests whose "METHOD path" matches: `times` of them, after `skip` others."""

    pattern: str
    status: int = 0
    """answered instead; 0: the connection is reset"""
    times: int = 1
    skip: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    is_after: bool = False
    """the request is carried out first"""
    said: str = ""
    seconds: float = 0.0
    """it takes so long"""
    hold: Hold | None = None
    """it is carried out, or not, when that ends"""


class Hub:
    """The server's state. `clock` tells the time of commits."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.buckets: dict[str, Bucket] = {}
        self.objects: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        """of files that come in parts, since they are larger than `part_bytes`"""
        self.part_bytes = 64 << 20
        self.xet = Xet()
        self.tokens: dict[str, str] = {"hf_test": "user"}
        """of those who may write, with their names"""
        self.faults: list[Fault] = []
        self.log: list[tuple[str, str]] = []
        self.clock: Callable[[], float] = time.time
        self.url = ""
        self.lock = threading.RLock()

    def requests(self, pattern: str) -> list[str]:
        return [f"{method} {path}" for method, path in self.log if re.search(pattern, f"{method} {path}")]

    def add(self, repo_id: str, *, private: bool = True, files: dict[str, bytes] | None = None) -> Repo:
        repo = self.repos[repo_id] = Repo(private)
        self.commit(repo, "initial commit", {".gitattributes": b"*.parquet filter=lfs\n", **(files or {})}, [], "")
        return repo

    def add_bucket(self, bucket_id: str, *, private: bool = True) -> Bucket:
        bucket = self.buckets[bucket_id] = Bucket(private)
        return bucket

    def content(self, bucket_id: str) -> dict[str, bytes]:
        """The files of a bucket."""
        return {path: self.xet.content(file) for path, file in self.buckets[bucket_id].files.items()}

    def commit(self, repo: Repo, message: str, added: dict[str, bytes], deleted: list[str], token: str) -> Commit:
        tree = {path: data for path, data in repo.tree.items() if path not in deleted} | added
        digest = hashlib.sha1(f"{len(repo.commits)} {message} {time.time_ns()}".encode()).hexdigest()
        commit = Commit(digest, message, self.clock(), tree, [*added, *deleted], token)
        repo.commits.append(commit)
        return commit

    def fault_for(self, words: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and re.search(fault.pattern, words):
                    if fault.skip:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    return fault
        return None


def _oid(path: str, data: bytes) -> str:
    if _IS_LFS.search(path):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(XetPages, BucketPages, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def _serve(self) -> None:
        url = urlparse(self.path)
        path = unquote(url.path)
        words = f"{self.command} {path}"
        self.hub.log.append((self.command, path))
        body = self._body()
        fault = self.hub.fault_for(words)
        if fault is not None:
            time.sleep(fault.seconds)
            if fault.hold and not fault.hold.is_taken():
                self._reset()
                return
            if fault.status and not fault.is_after:
                self._send(fault.status, {"error": fault.said or f"scripted {fault.status}"}, fault.headers)
                return
            if not fault.status and not fault.seconds and not fault.hold and not fault.is_after:
                self._reset()
                return
        try:
            answer = Answer(200, self._answer(path, parse_qs(url.query), body))
        except Answer as other:
            answer = other
        if fault is not None and fault.hold:
            fault.hold.done.set()
        if fault is not None and fault.is_after:
            self._send(fault.status, {}, fault.headers) if fault.status else self._reset()
            return
        self._send(answer.status, answer.body, answer.headers)

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = _serve

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.shutdown(2)

    def _send(self, status: int, body: Any, headers: dict[str, str]) -> None:
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # -- what is asked ---------------------------------------------------------------------------------------------

    @property
    def _token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def _answer(self, path: str, query: dict[str, list[str]], body: bytes) -> Any:
        with self.hub.lock:
            for pattern, method in _ROUTES:
                match = re.fullmatch(pattern, f"{self.command} {path}")
                if match:
                    return getattr(self, method)(query, body, **match.groupdict())
        raise Answer(404, {"error": f"no such page: {self.command} {path}"})

    def _repo(self, repo: str, *, write: bool = False) -> Repo:
        found = self.hub.repos.get(repo)
        user = self.hub.tokens.get(self._token)
        if self._token and user is None:
            raise Answer(401, {"error": "Invalid credentials in Authorization header"})
        if found is None or (found.private and user is None):
            raise Answer(404 if user else 401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        if write and user != repo.partition("/")[0]:
            raise Answer(403, {"error": "You don't have the rights to write here"})
        return found

    def whoami(self, query: Any, body: bytes) -> Any:
        if self._token not in self.hub.tokens:
            raise Answer(401, {"error": "Invalid username or password."})
        return {"type": "user", "name": self.hub.tokens[self._token], "orgs": []}

    def create(self, query: Any, body: bytes) -> Any:
        asked = json.loads(body)
        user = self.hub.tokens.get(self._token)
        if user is None:
            raise Answer(401, {"error": "Invalid username or password."})
        owner = asked.get("organization") or user
        repo = f"{owner}/{asked['name']}"
        if owner != user:
            raise Answer(403, {"error": "You don't have the rights to create a dataset under this namespace"})
        url = f"{self.hub.url}/datasets/{repo}"
        if repo in self.hub.repos:
            raise Answer(409, {"error": "You already created this dataset repo", "url": url})
        self.hub.add(repo, private=is_private(asked))
        return {"url": url, "name": repo, "id": repo}

    def info(self, query: Any, body: bytes, repo: str, revision: str = REVISION) -> Any:
        found = self._repo(repo)
        siblings = [{"rfilename": path} for path in found.tree]
        return {"id": repo, "sha": found.head, "private": found.private, "siblings": siblings, "tags": [],
                "lastModified": "2026-01-01T00:00:00.000Z", "downloads": 0, "likes": 0, "disabled": False,
                "gated": False}  # fmt: skip

    def tree(self, query: Any, body: bytes, repo: str, revision: str, folder: str = "") -> Any:
        found = self._repo(repo)
        prefix = f"{folder}/" if folder else ""
        is_recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
        paths = [path for path in sorted(found.tree) if path.startswith(prefix)]
        if folder and not paths:
            raise Answer(404, {"error": "no such folder"}, {"X-Error-Code": "EntryNotFound"})
        entries: dict[str, Any] = {}
        for path in paths:
            rest = path.removeprefix(prefix).split("/")
            for depth in range(1, len(rest)):
                name = prefix + "/".join(rest[:depth])
                if is_recursive or depth == 1:
                    entries[name] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": name}
            if is_recursive or len(rest) == 1:
                entries[path] = self._entry(path, found.tree[path])
        return list(entries.values())

    @staticmethod
    def _entry(path: str, data: bytes) -> Any:
        oid = _oid(path, data)
        entry = {"type": "file", "oid": oid[:40], "size": len(data), "path": path}
        return entry | {"lfs": {"oid": oid, "size": len(data), "pointerSize": 130}} if _IS_LFS.search(path) else entry

    def paths_info(self, query: Any, body: bytes, repo: str, revision: str) -> Any:
        found = self._repo(repo)
        if (self.headers.get("Content-Type") or "").startswith("application/json"):
            paths = json.loads(body)["paths"]
        else:
            paths = parse_qs(body.decode())["paths"]
        files = [self._entry(path, found.tree[path]) for path in paths if path in found.tree]
        folders = [path for path in paths if any(other.startswith(f"{path}/") for other in found.tree)]
        return files + [{"type": "directory", "oid": "0" * 40, "size": 0, "path": path} for path in folders]

    def preupload(self, query: Any, body: bytes, repo: str, revision: str) -> Any:
        found = self._repo(repo, write=True)
        ignored = found.tree.get(".gitignore", b"").decode().split()
        return {"files": [
            {"path": file["path"], "uploadMode": "lfs" if _IS_LFS.search(file["path"]) else "regular",
             "shouldIgnore": any(fnmatch(file["path"], pattern) for pattern in ignored),
             "oid": _oid(file["path"], found.tree[file["path"]]) if file["path"] in found.tree else None}
            for file in json.loads(body)["files"]
        ]}  # fmt: skip

    def lfs_batch(self, query: Any, body: bytes, repo: str) -> Any:
        self._repo(repo, write=True)
        wanted = json.loads(body)
        if "xet" in wanted.get("transfers", ()):
            return {
                "transfer": "xet",
                "objects": [{"oid": one["oid"], "size": one["size"]} for one in wanted["objects"]],
            }
        objects = []
        for asked in wanted["objects"]:
            is_there = asked["oid"] in self.hub.objects
            url = f"{self.hub.url}/lfs/{asked['oid']}"
            upload: dict[str, Any] = {"href": url}
            count = -(-asked["size"] // self.hub.part_bytes)
            if count > 1:
                parts = {f"{n:05d}": f"{url}/part/{n}" for n in range(1, count + 1)}
                upload = {"href": f"{url}/complete", "header": {"chunk_size": str(self.hub.part_bytes), **parts}}
            actions = {} if is_there else {"actions": {"upload": upload, "verify": {"href": f"{url}/verify"}}}
            objects.append({"oid": asked["oid"], "size": asked["size"], **actions})
        return {"transfer": "basic", "objects": objects}

    def lfs_put(self, query: Any, body: bytes, oid: str) -> Any:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Answer(400, {"error": "other content"})
        self.hub.objects[oid] = body

    def lfs_part(self, query: Any, body: bytes, oid: str, number: str) -> Any:
        self.hub.parts[oid, int(number)] = body
        raise Answer(200, None, {"ETag": hashlib.md5(body).hexdigest()})

    def lfs_complete(self, query: Any, body: bytes, oid: str) -> Any:
        parts = []
        for part in json.loads(body)["parts"]:
            parts.append(self.hub.parts.pop((oid, part["partNumber"])))
            if hashlib.md5(parts[-1]).hexdigest() != part["etag"]:
                raise Answer(400, {"error": "another part"})
        self.lfs_put(query, b"".join(parts), oid)

    def lfs_verify(self, query: Any, body: bytes, oid: str) -> Any:
        if oid not in self.hub.objects:
            raise Answer(404)

    def validate(self, query: Any, body: bytes) -> Any:
        return {"errors": [], "warnings": []}

    def take_commit(self, query: Any, body: bytes, repo: str, revision: str) -> Any:
        found = self._repo(repo, write=True)
        lines = [json.loads(line) for line in body.splitlines()]
        (header,) = (line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit", found.head) != found.head:
            raise Answer(412, {"error": "A commit has happened since. Please refresh and try again."})
        added, deleted = {}, []
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                added[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise Answer(400, {"error": "the LFS object is not there"})
                added[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                if value["path"] not in found.tree:
                    raise Answer(404, {"error": "no such file to delete"}, {"X-Error-Code": "EntryNotFound"})
                deleted.append(value["path"])
        commit = self.hub.commit(found, header["summary"], added, deleted, self._token)
        url = f"{self.hub.url}/datasets/{repo}/commit/{commit.oid}"
        return {"success": True, "commitOid": commit.oid, "commitUrl": url, "hookOutput": ""}

    def resolve(self, query: Any, body: bytes, repo: str, revision: str, file: str) -> Any:
        found = self._repo(repo)
        if file not in found.tree:
            raise Answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        data = found.tree[file]
        headers = {"ETag": f'"{_oid(file, data)}"', "X-Repo-Commit": found.head, "Accept-Ranges": "bytes"}
        if _IS_LFS.search(file):
            headers |= {"X-Linked-Size": str(len(data)), "X-Linked-Etag": headers["ETag"]}
        raise self.ranged(data, headers)


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_ROUTES = [
    (r"GET /api/whoami-v2", "whoami"),
    (r"POST /api/repos/create", "create"),
    (r"POST /api/validate-yaml", "validate"),
    (rf"GET /api/datasets/{_REPO}", "info"),
    (rf"GET /api/datasets/{_REPO}/revision/(?P<revision>[^/]+)", "info"),
    (rf"GET /api/datasets/{_REPO}/tree/(?P<revision>[^/]+)/?(?P<folder>.*)", "tree"),
    (rf"POST /api/datasets/{_REPO}/paths-info/(?P<revision>[^/]+)", "paths_info"),
    (rf"POST /api/datasets/{_REPO}/preupload/(?P<revision>[^/]+)", "preupload"),
    (rf"POST /api/datasets/{_REPO}/commit/(?P<revision>[^/]+)", "take_commit"),
    (rf"POST /datasets/{_REPO}\.git/info/lfs/objects/batch", "lfs_batch"),
    (r"PUT /lfs/(?P<oid>\w+)", "lfs_put"),
    (r"PUT /lfs/(?P<oid>\w+)/part/(?P<number>\d+)", "lfs_part"),
    (r"POST /lfs/(?P<oid>\w+)/complete", "lfs_complete"),
    (r"POST /lfs/(?P<oid>\w+)/verify", "lfs_verify"),
    (rf"(?:GET|HEAD) /datasets/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", "resolve"),
    *hub_pages.ROUTES,
]


@contextmanager
def serving() -> Iterator[Hub]:
    """A Hub on a port of this machine, until the end of the block."""
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
