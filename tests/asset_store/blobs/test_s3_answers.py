"""Servers that answer otherwise than AWS: a small server of our own that gives the answers it is told to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from asset_store.blobs import S3Blobs, blob_key
from asset_store.blobs.s3_client import S3Place
from asset_store.errors import BlobStoreUnreachable


class ScriptedS3(ThreadingHTTPServer):
    """Keeps objects in a dict; each conditional put first takes the next scripted (status, code), if any."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.objects: dict[str, bytes] = {}
        self.script: list[tuple[int, str]] = []
        self.cut_short = 0
        self.puts: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answers(BaseHTTPRequestHandler):
    server: ScriptedS3
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        conditional = self.headers.get("If-None-Match") == "*"
        self.server.puts.append("conditional" if conditional else "plain")
        if conditional and self.server.script:
            self._refuse(*self.server.script.pop(0))
        else:
            self.server.objects[self.path] = body
            self._answer(200, b"")

    def do_GET(self) -> None:
        if self.path not in self.server.objects:
            self._refuse(404, "NoSuchKey")
            return
        data = self.server.objects[self.path]
        if self.server.cut_short:
            self.server.cut_short -= 1
            self._answer(200, data[: len(data) // 2], length=len(data))
            self.close_connection = True
        else:
            self._answer(200, data)

    def do_HEAD(self) -> None:
        found = self.server.objects.get(self.path.partition("?")[0])
        self._answer(404 if found is None else 200, b"", length=len(found or b""))

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, f"<Error><Code>{code}</Code><Message>scripted</Message></Error>".encode())

    def _answer(self, status: int, body: bytes, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(s3: object) -> Iterator[ScriptedS3]:
    """After `s3`, for its credentials."""
    scripted = ScriptedS3()
    threading.Thread(target=scripted.serve_forever, daemon=True).start()
    yield scripted
    scripted.shutdown()
    scripted.server_close()


@pytest.fixture
def blobs(server: ScriptedS3) -> S3Blobs:
    return S3Blobs(S3Place("bucket", ""), endpoint_url=server.url)


def test_a_server_without_conditional_puts_gets_plain_ones_from_then_on(server: ScriptedS3, blobs: S3Blobs) -> None:
    server.script = [(501, "NotImplemented")] * 9
    blobs.put(b"one")
    server.puts.clear()
    assert blobs.get(blobs.put(b"two")) == b"two"
    assert server.puts == ["plain"]


def test_a_conflict_is_tried_again(server: ScriptedS3, blobs: S3Blobs) -> None:
    server.script = [(409, "ConditionalRequestConflict")] * 2
    assert blobs.get(blobs.put(b"contended")) == b"contended"
    assert server.puts == ["conditional"] * 3


def test_conflicts_without_end_still_end_in_a_stored_blob(server: ScriptedS3, blobs: S3Blobs) -> None:
    server.script = [(409, "ConditionalRequestConflict")] * 99
    assert blobs.get(blobs.put(b"contended")) == b"contended"


def test_a_blob_deleted_between_the_put_and_the_look_is_written(server: ScriptedS3, blobs: S3Blobs) -> None:
    server.script = [(412, "PreconditionFailed")]
    server.objects["/bucket?list-type=2&prefix=&max-keys=1&encoding-type=url"] = b"<ListBucketResult/>"
    assert blobs.get(blobs.put(b"there, they said")) == b"there, they said"


def test_a_download_that_breaks_off_is_begun_again(server: ScriptedS3, blobs: S3Blobs) -> None:
    name = blobs.put(b"long " * 1000)
    server.cut_short = 2
    assert blobs.get(name) == b"long " * 1000


def test_a_download_that_always_breaks_off_is_told(server: ScriptedS3, blobs: S3Blobs) -> None:
    name = blobs.put(b"long " * 1000)
    server.cut_short = 99
    with pytest.raises(BlobStoreUnreachable):
        blobs.get(name)


def test_a_denied_put_names_the_permissions(server: ScriptedS3, blobs: S3Blobs) -> None:
    server.script = [(403, "AccessDenied")]
    with pytest.raises(BlobStoreUnreachable, match="denies PutObject") as caught:
        blobs.put(b"not for you")
    assert "s3:PutObject" in caught.value.next_step


def test_a_blob_of_the_wrong_size_is_written_over(server: ScriptedS3, blobs: S3Blobs) -> None:
    name = blobs.put(b"whole")
    server.objects[f"/bucket/{blob_key(name)}"] = b"wh"
    server.script = [(412, "PreconditionFailed")]
    blobs.put(b"whole")
    assert blobs.get(name) == b"whole"


def test_an_endpoint_where_no_one_listens_is_told(server: ScriptedS3) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(BlobStoreUnreachable, match="does not answer") as caught:
        S3Blobs(S3Place("bucket", ""), endpoint_url=server.url).check()
    assert "endpoint" in caught.value.next_step
