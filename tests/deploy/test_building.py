"""Fetching the browser's libraries: the pinned bytes, nothing else, and a clear word where they cannot be had."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import json
import shutil
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest

from studio.pages.rendering import HERE

LIBRARIES = HERE / "static" / "libraries"


@pytest.fixture
def building() -> ModuleType:
    place = Path(__file__).parents[2] / "deploy" / "building.py"
    spec = importlib.util.spec_from_file_location("building", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["building"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def registry(building: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A registry of npm packages on the loopback interface, with what was fetched when this was installed."""
    if shutil.which("npm") is None:
        pytest.skip("no npm")
    answers: dict[str, bytes] = {}

    class Registry(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = answers.get(self.path.split("?")[0])
            self.send_response(404 if data is None else 200)
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            self.wfile.write(data or b"")

        def log_message(self, format: str, *values: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    address = f"http://127.0.0.1:{server.server_port}"
    for package in building.PACKAGES:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            files = {f"package/{path}": (LIBRARIES / name).read_bytes() for name, path, _ in package.files}
            said = json.dumps({"name": package.name, "version": package.version}).encode()
            for path, data in {"package/package.json": said, **files}.items():
                member = tarfile.TarInfo(path)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        tarball = f"/{package.name}.tgz"
        integrity = f"sha512-{base64.b64encode(hashlib.sha512(packed.getvalue()).digest()).decode()}"
        version = {
            "name": package.name,
            "version": package.version,
            "dist": {"tarball": address + tarball, "integrity": integrity},
        }
        told = {"name": package.name, "dist-tags": {"latest": package.version}, "versions": {package.version: version}}
        answers |= {f"/{package.name}": json.dumps(told).encode(), tarball: packed.getvalue()}
    for name, value in (("registry", address), ("fetch_retries", "0"), ("cache", str(tmp_path / "cache"))):
        monkeypatch.setenv(f"npm_config_{name}", value)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield
    server.shutdown()
    server.server_close()


def test_what_is_served_is_what_was_pinned(building: ModuleType) -> None:
    for package in building.PACKAGES:
        for name, _, sha256 in package.files:
            assert hashlib.sha256((LIBRARIES / name).read_bytes()).hexdigest() == sha256, name


@pytest.mark.usefixtures("registry")
def test_they_are_fetched_once(building: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    into = tmp_path / "into"
    building.fetch(into)
    assert {f.name for f in into.iterdir()} == {f.name for f in LIBRARIES.iterdir()}
    monkeypatch.setenv("PATH", "")  # what is there is not fetched again
    building.fetch(into)
    (into / "htmx.js").write_text("changed")
    with pytest.raises(SystemExit, match="There is no npm"):
        building.fetch(into)


@pytest.mark.usefixtures("registry")
def test_other_bytes_than_were_pinned_are_not_used(
    building: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = building.PACKAGES[0]
    wrong = tuple((name, path, "0" * 64) for name, path, _ in package.files)
    monkeypatch.setattr(building, "PACKAGES", (replace(package, files=wrong),))
    with pytest.raises(SystemExit, match="not the file that was pinned"):
        building.fetch(tmp_path / "into")
    assert not (tmp_path / "into").exists()


def test_a_registry_that_is_away_is_told(building: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("npm") is None:
        pytest.skip("no npm")
    for name, value in (
        ("registry", "http://127.0.0.1:9/"),
        ("fetch_retries", "0"),
        ("cache", str(tmp_path / "cache")),
    ):
        monkeypatch.setenv(f"npm_config_{name}", value)
    with pytest.raises(SystemExit, match="npm could not fetch"):
        building.fetch(tmp_path / "into")


def test_npm_of_a_package_is_asked_for_only_where_the_machine_has_none(
    building: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building.shutil, "which", lambda name: "/usr/bin/npm")
    assert building.NODE not in building.get_requires_for_build_editable()
    monkeypatch.setattr(building.shutil, "which", lambda name: None)
    assert building.NODE not in building.get_requires_for_build_wheel()  # all is there
    monkeypatch.setattr(building, "FETCHED", tmp_path)
    assert building.NODE in building.get_requires_for_build_wheel()


def test_a_source_distribution_can_be_built_from() -> None:
    """What a build from it begins with is in it."""
    root = Path(__file__).parents[2]
    assert "include deploy/building.py" in (root / "MANIFEST.in").read_text().splitlines()
