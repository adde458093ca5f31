"""A hub on this machine that takes uploads: what `huggingface_hub` asks for when it makes a repository, commits
small files, and stores large ones by the Git LFS protocol.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_test"


class UploadHub:
    """Attributes: url; repositories, name -> path -> bytes; private, name -> bool; requests, "METHOD path" of each;
    commits, messages; stored, LFS object -> bytes."""

    def __init__(self) -> None:
        self.url = ""
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.requests: list[str] = []
        self.commits: list[str] = []
        self.stored: dict[str, bytes] = {}


@contextmanager
def upload_hub() -> Iterator[UploadHub]:
    """An empty hub at a free port of this machine; TOKEN may write to lab/…, and to nobody else's."""
    hub = UploadHub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: UploadHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def do_PUT(self) -> None:
        self.answer()

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts: list[bytes] = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self) -> None:
        body = self.body()
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if self.command in ("GET", "HEAD"):
            self.read(path)
        elif path == "/api/validate-yaml":
            self.send_json({"errors": [], "warnings": []})
        elif path.startswith("/lfs/"):  # the address that the batch answer gave: no token there
            self.hub.stored[path.removeprefix("/lfs/")] = body
            self.send_json({})
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.send_json({"error": "Invalid username or password."}, 401)
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        else:
            self.write(path, body)

    def create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        if wanted["organization"] != "lab":
            self.send_json({"error": "You don't have the rights"}, 403)
            return
        known = name in self.hub.repositories
        self.hub.repositories.setdefault(name, {})
        self.hub.private.setdefault(
            name, wanted.get("visibility") == "private" or bool(wanted.get("private"))
        )
        url = {"url": f"{self.hub.url}/{name}", "name": name, "id": name}
        self.send_json(
            {"error": "You already created this repo", **url} if known else url, 409 if known else 200
        )

    def write(self, path: str, body: bytes) -> None:
        api = re.fullmatch(r"/api/models/(lab/[^/]+)/(preupload|commit)/main", path)
        batch = re.fullmatch(r"/(lab/[^/]+)\.git/info/lfs/objects/batch", path)
        if api and api[2] == "preupload":
            files = json.loads(body)["files"]
            modes = {f["path"]: "lfs" if f["path"].endswith(".safetensors") else "regular" for f in files}
            self.send_json(
                {
                    "files": [
                        {"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes.items()
                    ]
                }
            )
        elif batch:
            objects = [
                {
                    "oid": o["oid"],
                    "size": o["size"],
                    "actions": {"upload": {"href": f"{self.hub.url}/lfs/{o['oid']}"}},
                }
                for o in json.loads(body)["objects"]
            ]
            self.send_json({"transfer": "basic", "objects": objects})
        elif api:
            self.commit(api[1], [json.loads(line) for line in body.splitlines() if line])
        else:
            self.send_json({"error": "not found"}, 404)

    def commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        files = self.hub.repositories[name]
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.hub.commits.append(value["summary"])
            elif line["key"] == "file":
                assert value["encoding"] == "base64"
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                content = self.hub.stored[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                assert len(content) == value["size"]
                files[value["path"]] = content
        url = f"{self.hub.url}/{name}/commit/{COMMIT}"
        self.send_json({"success": True, "commitOid": COMMIT, "commitUrl": url})

    def read(self, path: str) -> None:
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/.*)?", path)
        if api and api[1] in self.hub.repositories:
            files = self.hub.repositories[api[1]]
            self.send_json({"id": api[1], "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]})
        else:
            self.send_json({}, 404, "EntryNotFound" if "/resolve/" in path else "RepoNotFound")

    def send_json(self, value: Any, status: int = 200, code: str = "") -> None:
        self.send_bytes(json.dumps(value).encode(), status, "application/json", code)

    def send_bytes(self, body: bytes, status: int, kind: str, code: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
