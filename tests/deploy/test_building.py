"""Fetching the browser's libraries: the pinned bytes, nothing else, and a clear word where they cannot be had."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
from dataclasses import replace
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


def reachable() -> bool:
    npm = shutil.which("npm")
    return (
        npm is not None
        and subprocess.run([npm, "view", "htmx.org", "version"], capture_output=True, timeout=60).returncode == 0
    )


def test_what_is_served_is_what_was_pinned(building: ModuleType) -> None:
    for package in building.PACKAGES:
        for name, _, sha256 in package.files:
            assert hashlib.sha256((LIBRARIES / name).read_bytes()).hexdigest() == sha256, name


def test_they_are_fetched_once(building: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not reachable():
        pytest.skip("no registry of npm packages can be reached")
    building.fetch(tmp_path)
    assert {f.name for f in tmp_path.iterdir()} == {f.name for f in LIBRARIES.iterdir()}
    monkeypatch.setenv("PATH", "")  # what is there is not fetched again
    building.fetch(tmp_path)
    (tmp_path / "htmx.js").write_text("changed")
    with pytest.raises(SystemExit, match="There is no npm"):
        building.fetch(tmp_path)


def test_other_bytes_than_were_pinned_are_not_used(
    building: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not reachable():
        pytest.skip("no registry of npm packages can be reached")
    package = building.PACKAGES[0]
    wrong = tuple((name, path, "0" * 64) for name, path, _ in package.files)
    monkeypatch.setattr(building, "PACKAGES", (replace(package, files=wrong),))
    with pytest.raises(SystemExit, match="not the file that was pinned"):
        building.fetch(tmp_path)
    assert list(tmp_path.iterdir()) == []


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
    building: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building.shutil, "which", lambda name: "/usr/bin/npm")
    assert building.NODE not in building.get_requires_for_build_editable()
    monkeypatch.setattr(building.shutil, "which", lambda name: None)
    assert building.NODE in building.get_requires_for_build_wheel()
