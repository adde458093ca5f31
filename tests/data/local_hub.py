"""A hub of datasets on this machine: the few HTTP endpoints that `datasets` and `huggingface_hub` ask for.

It serves real bytes, by range where asked, so that the libraries stream from it as from the real one.
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

REVISION = "0123456789abcdef0123456789abcdef01234567"


class LocalHub:
    """repositories: "owner/name" -> path -> bytes. Attributes: url; requests, "METHOD path" of each."""

    def __init__(self, repositories: dict[str, dict[str, bytes]]) -> None:
        self.repositories = repositories
        self.requests: list[str] = []
        self.url = ""


@contextmanager
def local_hub(repositories: dict[str, dict[str, bytes]]) -> Iterator[LocalHub]:
    """A hub with these datasets, at a free port of this machine."""
    hub = LocalHub(repositories)

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
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        file = re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        api = re.fullmatch(
            r"/api/datasets/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?", path
        )
        if file and file[2] in (REVISION, "main"):
            self.send_file(file[1], file[3])
        elif api and api[1] in self.hub.repositories and api[3] in (None, REVISION, "main"):
            recursive = parse_qs(urlsplit(self.path).query).get("recursive", [""])[0].lower() == "true"
            self.send_json(self.described(api[1], api[2], api[4] or "", recursive, body))
        else:
            self.send_missing("RepoNotFound")

    def described(self, name: str, what: str | None, folder: str, recursive: bool, body: bytes) -> Any:
        """The dataset, the entries of one of its folders, or the entries that are asked for by path."""
        files = self.hub.repositories[name]
        entries = {path: _entry(path, content) for path, content in files.items()}
        for path in files:
            for parent in list(PurePosixPath(path).parents)[:-1]:
                entries[str(parent)] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": str(parent)}
        if what == "paths-info":
            return [entries[path] for path in json.loads(body)["paths"] if path in entries]
        if what == "tree":
            inside = [path for path in entries if not folder or path.startswith(f"{folder}/")]
            return [
                entries[p] for p in inside if recursive or str(PurePosixPath(p).parent) == (folder or ".")
            ]
        return {
            "id": name,
            "sha": REVISION,
            "private": False,
            "tags": [],
            "siblings": [{"rfilename": p} for p in files],
        }

    def send_file(self, name: str, path: str) -> None:
        content = self.hub.repositories.get(name, {}).get(path)
        if content is None:
            self.send_missing("EntryNotFound")
            return
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        first = int(wanted[1]) if wanted else 0
        last = min(int(wanted[2]) if wanted and wanted[2] else len(content) - 1, len(content) - 1)
        part = content[first : last + 1]
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{_oid(content)}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.finish_with(part, "application/octet-stream")

    def send_json(self, value: Any) -> None:
        self.send_response(200)
        self.finish_with(json.dumps(value).encode(), "application/json")

    def send_missing(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.finish_with(b"{}", "application/json")

    def finish_with(self, body: bytes, kind: str) -> None:
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "oid": _oid(content), "size": len(content), "path": path}
