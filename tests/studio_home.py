"""A data folder of the test's own, with a database, and the command line run as a user runs it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from asset_store.database import Database
from asset_store.tables import Library
from flows.wiring import address_of
from tests.database import cloned
from tests.forking import COMMAND, Forked

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "deploy" / "examples"


@dataclass
class Home:
    """ONMODEL_HOME and the settings beside it, in this process's environment while the test runs."""

    path: Path
    database: Database

    @property
    def library(self) -> Path:
        """A copy of the example library that the test may change."""
        target = self.path / "lumen"
        if not target.exists():
            shutil.copytree(EXAMPLES / "lumen", target)
        return target

    def brief(self, text: str) -> Path:
        target = self.path / "brief.yaml"
        target.write_text(text, encoding="utf-8")
        return target

    def start(self, *arguments: str, **environment: str) -> Forked:
        """`onmodel …` as a process of its own, in a moment."""
        return Forked(arguments, {**os.environ, **environment}, self.path)

    def start_fresh(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """`onmodel …` in an interpreter that imports all it needs by itself, as on a user's machine."""
        return subprocess.Popen(
            [sys.executable, "-c", COMMAND, *arguments],
            env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.path,
        )  # fmt: skip

    def onmodel(self, *arguments: str, **environment: str) -> Spoken:
        return _spoken(self.start(*arguments, **environment))

    def onmodel_fresh(self, *arguments: str, **environment: str) -> Spoken:
        return _spoken(self.start_fresh(*arguments, **environment))


@dataclass(frozen=True)
class Spoken:
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def _spoken(process: Forked | subprocess.Popen[str]) -> Spoken:
    out, err = process.communicate(timeout=240)
    assert process.returncode is not None
    return Spoken(process.returncode, out, err)


@pytest.fixture
def home(tmp_path: Path, own_database: Database, monkeypatch: pytest.MonkeyPatch) -> Home:
    return _settled(tmp_path, own_database, monkeypatch)


@pytest.fixture(scope="session")
def ingested_once(database: Database, prefect: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """What pat's ingest of the example library leaves, for `ingested` to copy: no test works in it."""
    from flows.library import ingest_library  # here, as it loads Prefect

    path = tmp_path_factory.mktemp("ingested")
    with cloned(database, "migrated", path) as own, pytest.MonkeyPatch.context() as environment:
        made = _settled(path, own, environment)
        asyncio.run(ingest_library(str(made.library), "pat"))
        environment.undo()
        own.engine.dispose()  # nobody may be connected to what is copied
        yield made


@pytest.fixture
def ingested(
    ingested_once: Home, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Home]:
    """A home of the test's own in which pat has ingested the example library, with the studio model."""
    shutil.copytree(ingested_once.path, tmp_path, dirs_exist_ok=True)
    with cloned(database, ingested_once.database.url.database or "", tmp_path) as own:
        with own.transaction() as session:
            session.execute(update(Library).values(url=address_of(str(tmp_path / "lumen"))))
        yield _settled(tmp_path, own, monkeypatch)


def _settled(path: Path, database: Database, environment: pytest.MonkeyPatch) -> Home:
    environment.setenv("ONMODEL_HOME", str(path))
    environment.setenv("ONMODEL_DATABASE__URL", database.url.render_as_string(hide_password=False))
    return Home(path, database)


SMALL_BRIEF = """\
campaign: small
brand: lumen
seed: 3
defaults: {steps: 3, variants: 3, size: 64x64}
shots:
  - {name: pip-beach, character: Pip, prompt: "a mascot, waving, happy, front view, on the beach"}
  - {name: mora-snow, character: Mora, prompt: "a mascot, jumping, sad, front view, in the snow"}
"""
PASSING = "checks: {identity_min: -1, blank_spread: 0}\n"  # of a brief whose pictures come to review, small as they are
