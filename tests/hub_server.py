"""A hub on the loopback that speaks the part of the Hugging Face hub's HTTP API which fetching models uses."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Repositories by owner/name, each files by path. `stop_at`: send so many bytes of big files, then hold the line."""

    files: dict[str, dict[str, bytes]]
    licence: str = "apache-2.0"
    commit: str = COMMIT
    gated: frozenset[str] = frozenset()
    stop_at: int | None = None
    held: threading.Event = field(default_factory=threading.Event)
    asked: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, range
    address: str = ""
    damaged: dict[str, bytes] = field(default_factory=dict)  # what is sent in place of a file, by its path


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    done = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append((self.command, path, self.headers.get("Range", "")))
            if path.startswith("/api/models/"):
                name, _, revision = path.removeprefix("/api/models/").partition("/revision/")
                self._info(name, revision or "main")
            else:
                name, _, rest = path.lstrip("/").partition("/resolve/")
                revision, _, file = rest.partition("/")
                self._file(name, revision, file, body=body)

        def _refuse(self, status: int, code: str) -> None:
            self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": code})

        def _known(self, name: str, revision: str) -> bool:
            if name in hub.gated:
                self._refuse(403, "GatedRepo")
            elif name not in hub.files:
                self._refuse(404, "RepoNotFound")
            elif revision not in ("main", hub.commit):
                self._refuse(404, "RevisionNotFound")
            else:
                return True
            return False

        def _info(self, name: str, revision: str) -> None:
            if not self._known(name, revision):
                return
            siblings = [
                {
                    "rfilename": path,
                    "size": len(data),
                    "lfs": {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 134},
                }
                for path, data in hub.files[name].items()
            ]
            told = {"_id": "1", "id": name, "modelId": name, "sha": hub.commit, "private": False, "tags": [],
                    "siblings": siblings, "cardData": {"license": hub.licence}}  # fmt: skip
            self._send(200, json.dumps(told).encode(), {"Content-Type": "application/json"})

        def _file(self, name: str, revision: str, file: str, *, body: bool) -> None:
            if not self._known(name, revision):
                return
            if file not in hub.files[name]:
                self._refuse(404, "EntryNotFound")
                return
            data = hub.damaged.get(file, hub.files[name][file])
            headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": hub.commit,
                       "Accept-Ranges": "bytes"}  # fmt: skip
            begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-") or 0)
            status = 206 if begin else 200
            if begin:
                headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
            self._send(status, data[begin:], headers, body=body)

        def _send(self, status: int, data: bytes, headers: dict[str, str], *, body: bool = True) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if not body or self.command == "HEAD":
                return
            if hub.stop_at is not None and len(data) > hub.stop_at:
                self.wfile.write(data[: hub.stop_at])
                self.wfile.flush()
                hub.held.set()
                done.wait(120)
                return
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        done.set()
        server.shutdown()
        server.server_close()
