"""A server on loopback that speaks as much of the hub's HTTP API as a push needs, and remembers what it got."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_" + "Zz9Qx7" * 5


@dataclass
class Repo:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)


@dataclass
class Hub:
    """The state of the server.

    Args:
        lfs_above: bytes above which a file goes by LFS.
        fault: (method, path) -> (status, message) to answer instead, or None.
        may_write: whether the token may create and commit.
    """

    lfs_above: int = 10**9
    fault: Callable[[str, str], tuple[int, str] | None] = lambda method, path: None
    may_write: bool = True
    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""

    def paths(self, method: str) -> list[str]:
        return [path for done, path in self.requests if done == method]


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self.serve("GET")

    def do_POST(self) -> None:
        self.serve("POST")

    def do_PUT(self) -> None:
        self.serve("PUT")

    def serve(self, method: str) -> None:
        path, body = self.path.partition("?")[0], self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append((method, path))
        signed = path.startswith("/upload/")  # such addresses carry their own right
        if not signed and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.refuse(401, f"Invalid credentials: {self.headers.get('Authorization')}")
            return
        if fault := self.hub.fault(method, path):
            self.refuse(*fault)
            return
        status, content = self.answer(method, path, body)
        if status >= 400:
            self.refuse(status, content)
        else:
            self.send(status, content)

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        hub, parts = self.hub, path.strip("/").split("/")
        name = "/".join(parts[2:4]) if parts[:2] == ["api", "datasets"] else "/".join(parts[1:3]).removesuffix(".git")
        if path == "/api/whoami-v2":
            return 200, {"name": "someone", "type": "user", "orgs": []}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if parts[0] == "upload":
            hub.objects[parts[1]] = body
            return 200, {}
        if path == "/api/repos/create":
            said = json.loads(body)
            made = f"{said.get('organization') or 'someone'}/{said['name']}"
            if not hub.may_write:
                return 403, "You don't have the rights to create a dataset under this namespace"
            if made in hub.repos:
                return 409, "You already created this dataset repo"
            hub.repos[made] = Repo(said.get("private", False) or said.get("visibility") == "private")
            return 200, {"url": f"{hub.url}/datasets/{made}"}
        repo = hub.repos.get(name)
        if repo is None:
            return 404, "Repository not found"
        if method == "GET" and "tree" not in parts:
            return 200, {
                "id": name,
                "sha": "0" * 40,
                "private": repo.private,
                "siblings": [{"rfilename": one} for one in repo.files],
                "cardData": {"tags": repo.tags} if repo.tags else None,
                "tags": repo.tags,
            }
        if len(parts) > 4 and parts[4] == "tree":
            return 200, [
                {"type": "file", "path": one, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for one, data in repo.files.items()
            ]
        if not hub.may_write:
            return 403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request"
        if len(parts) > 4 and parts[4] == "preupload":
            files = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["size"] > hub.lfs_above else "regular",
                    "shouldIgnore": False,
                }
                for one in json.loads(body)["files"]
            ]
            return 200, {"files": files}
        if path.endswith("info/lfs/objects/batch"):
            objects = [
                one | {"actions": {"upload": {"href": f"{hub.url}/upload/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            return 200, {"transfer": "basic", "objects": objects}
        if len(parts) > 4 and parts[4] == "commit":
            self.commit(repo, [json.loads(line) for line in body.splitlines()])
            oid = "1" * 40
            return 200, {"commitOid": oid, "commitUrl": f"{hub.url}/datasets/{name}/commit/{oid}"}
        return 404, f"no such address: {path}"

    def commit(self, repo: Repo, lines: list[dict[str, Any]]) -> None:
        for one in lines:
            value = one["value"]
            if one["key"] == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
            elif one["key"] == "lfsFile":
                data = self.hub.objects[value["oid"]]
                assert hashlib.sha256(data).hexdigest() == value["oid"]
                repo.files[value["path"]] = data
            elif one["key"] == "deletedFile":
                del repo.files[value["path"]]

    def refuse(self, status: int, message: Any) -> None:
        self.send(status, {"error": message}, {"X-Error-Message": str(message)[:300]})

    def send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serve_hub(hub: Hub) -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Ours", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
