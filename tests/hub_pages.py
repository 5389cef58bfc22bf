"""The Hub's pages for Xet and for buckets, for tests/hub.py."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hub import Bucket, Hub, Repo

_CAS_TOKEN = "cas-token"


class Answer(Exception):
    """What is answered, if it is not 200 and JSON."""

    def __init__(self, status: int, body: Any = None, headers: dict[str, str] | None = None) -> None:
        self.status, self.body, self.headers = status, body, headers or {}


def is_private(asked: dict[str, Any]) -> bool:
    """Whether a new repository or bucket is asked to be private, in the way of any release of the Hub's client."""
    return bool(asked.get("private")) or asked.get("visibility") == "private"


class _Pages:
    hub: Hub
    headers: Any
    command: str

    def _repo(self, repo: str, *, write: bool = False) -> Repo:
        raise NotImplementedError

    def ranged(self, data: bytes, headers: dict[str, str]) -> Answer:
        """A file, or the range of it that was asked for."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not asked:
            return Answer(200, data, headers | {"Content-Length": str(len(data))})
        start, end = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
        part = data[start : end + 1]
        more = {"Content-Range": f"bytes {start}-{end}/{len(data)}", "Content-Length": str(len(part))}
        return Answer(206, part, headers | more)


class XetPages(_Pages):
    """Tokens for the store, and the store."""

    def xet_token(self, query: Any, body: bytes, kind: str, repo: str, what: str) -> Any:
        if kind == "buckets":
            self.bucket(repo, write=what == "write")
        else:
            self._repo(repo, write=what == "write")
        expires = int(time.time()) + 3600
        headers = {
            "X-Xet-Cas-Url": self.hub.url,
            "X-Xet-Access-Token": _CAS_TOKEN,
            "X-Xet-Token-Expiration": str(expires),
        }
        raise Answer(200, {"casUrl": self.hub.url, "accessToken": _CAS_TOKEN, "exp": expires}, headers)

    def _check(self) -> None:
        if (self.headers.get("Authorization") or "") != f"Bearer {_CAS_TOKEN}":
            raise Answer(401, {"error": "no token of the store"})

    def put_xorb(self, query: Any, body: bytes, name: str) -> Any:
        self._check()
        return {"was_inserted": self.hub.xet.put_xorb(name, body)}

    def put_shard(self, query: Any, body: bytes) -> Any:
        self._check()
        try:
            self.hub.xet.put_shard(body)
        except ValueError as error:
            raise Answer(400, {"error": str(error)}) from error
        self.hub.objects |= {digest: self.hub.xet.content(file) for digest, file in self.hub.xet.digests.items()}
        return {"result": 1}

    def reconstruction(self, query: Any, body: bytes, name: str) -> Any:
        self._check()
        if name not in self.hub.xet.files:
            raise Answer(404, {"error": "no such file"})
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        stretch = (int(asked[1]), int(asked[2]) + 1) if asked else (0, None)
        answer = self.hub.xet.reconstruction(name, self.hub.url, *stretch)
        if not answer["terms"]:
            raise Answer(416, {"error": "beyond the file's end"})
        return answer

    def xorb(self, query: Any, body: bytes, name: str) -> Any:
        raise self.ranged(self.hub.xet.bodies[name], {})


class BucketPages(_Pages):
    """Buckets: files without commits, whose content lies in Xet's store."""

    def bucket(self, name: str, *, write: bool = False) -> Bucket:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        user = self.hub.tokens.get(token)
        found = self.hub.buckets.get(name)
        if token and user is None:
            raise Answer(401, {"error": "Invalid credentials in Authorization header"})
        if found is None or (found.private and user is None):
            raise Answer(404 if user else 401, {"error": "Bucket not found"}, {"X-Error-Code": "RepoNotFound"})
        if write and user != name.partition("/")[0]:
            raise Answer(403, {"error": "You don't have the rights to write here"})
        return found

    def create_bucket(self, query: Any, body: bytes, repo: str) -> Any:
        user = self.hub.tokens.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))
        if user is None:
            raise Answer(401, {"error": "Invalid username or password."})
        if repo.partition("/")[0] != user:
            raise Answer(403, {"error": "You don't have the rights to create a bucket under this namespace"})
        if repo in self.hub.buckets:
            raise Answer(409, {"error": "You already created this bucket"})
        self.hub.add_bucket(repo, private=is_private(json.loads(body)))
        return {"url": f"{self.hub.url}/buckets/{repo}", "name": repo, "id": repo}

    def bucket_info(self, query: Any, body: bytes, repo: str) -> Any:
        found = self.bucket(repo)
        sizes = [len(self.hub.xet.content(file)) for file in found.files.values()]
        return {"id": repo, "private": found.private, "createdAt": "2026-01-01T00:00:00.000Z", "size": sum(sizes),
                "totalFiles": len(sizes)}  # fmt: skip

    def bucket_batch(self, query: Any, body: bytes, repo: str) -> Any:
        found = self.bucket(repo, write=True)
        failed, changed = [], []
        for line in body.splitlines():
            one = json.loads(line)
            if one["type"] == "addFile" and one["xetHash"] in self.hub.xet.files and not found.refuses(one["path"]):
                found.files[one["path"]] = one["xetHash"]
                changed.append(one["path"])
            elif one["type"] == "deleteFile" and one["path"] in found.files:
                del found.files[one["path"]]
                changed.append(one["path"])
            else:
                failed.append({"path": one["path"], "error": "it cannot be done"})
        found.batches.append(changed)
        if failed:
            raise Answer(200 if changed else 422, {"success": False, "failed": failed})
        return {"success": True, "processed": len(changed), "succeeded": len(changed), "failed": []}

    def bucket_tree(self, query: Any, body: bytes, repo: str, prefix: str | None) -> Any:
        found, prefix = self.bucket(repo), prefix or ""
        is_recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
        paths = [path for path in sorted(found.files) if path.startswith(prefix)]
        if is_recursive:
            return [self._file(found, path) for path in paths]
        if any(path.startswith(f"{prefix}/") for path in paths):
            prefix += "/"
        entries: dict[str, Any] = {}
        for path in paths:
            name, slash, _ = path.removeprefix(prefix).partition("/")
            entry = {"type": "directory", "path": prefix + name} if slash else self._file(found, path)
            entries[prefix + name] = entry
        return list(entries.values())

    def _file(self, bucket: Bucket, path: str) -> Any:
        file = bucket.files[path]
        return {"type": "file", "path": path, "size": len(self.hub.xet.content(file)), "xetHash": file,
                "mtime": "2026-01-01T00:00:00.000Z"}  # fmt: skip

    def bucket_paths_info(self, query: Any, body: bytes, repo: str) -> Any:
        found = self.bucket(repo)
        return [self._file(found, path) for path in json.loads(body)["paths"] if path in found.files]

    def bucket_file(self, query: Any, body: bytes, repo: str, file: str) -> Any:
        found = self.bucket(repo)
        if file not in found.files:
            raise Answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        name = found.files[file]
        data = self.hub.xet.content(name)
        token = f"{self.hub.url}/api/buckets/{repo}/xet-read-token"
        raise self.ranged(data, {"ETag": f'"{name}"', "X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{name}"',
                                 "X-Xet-Hash": name, "X-Xet-Refresh-Route": token})  # fmt: skip


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_NAME = r"(?P<name>[0-9a-f]{64})"
ROUTES = [
    (rf"GET /api/(?P<kind>datasets|buckets)/{_REPO}/xet-(?P<what>read|write)-token(?:/[^/]+)?", "xet_token"),
    (rf"POST /v1/xorbs/default/{_NAME}", "put_xorb"),
    (r"POST (?:/v1)?/shards", "put_shard"),
    (rf"GET /v1/reconstructions/{_NAME}", "reconstruction"),
    (rf"GET /xet/xorbs/{_NAME}", "xorb"),
    (rf"POST /api/buckets/{_REPO}", "create_bucket"),
    (rf"GET /api/buckets/{_REPO}", "bucket_info"),
    (rf"POST /api/buckets/{_REPO}/batch", "bucket_batch"),
    (rf"GET /api/buckets/{_REPO}/tree(?:/(?P<prefix>.*))?", "bucket_tree"),
    (rf"POST /api/buckets/{_REPO}/paths-info", "bucket_paths_info"),
    (rf"(?:GET|HEAD) /buckets/{_REPO}/resolve/(?P<file>.+)", "bucket_file"),
]
