"""A data folder of the test's own, with a database, and the command line run as a user runs it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from asset_store.database import Database

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

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """`onmodel …` as a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-c", "from studio.cli.app import run; run()", *arguments],
            env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.path,
        )  # fmt: skip

    def onmodel(self, *arguments: str, **environment: str) -> Spoken:
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=240)
        return Spoken(process.returncode, out, err)


@dataclass(frozen=True)
class Spoken:
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def home(tmp_path: Path, own_database: Database, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("ONMODEL_HOME", str(tmp_path))
    monkeypatch.setenv("ONMODEL_DATABASE__URL", own_database.url.render_as_string(hide_password=False))
    return Home(tmp_path, own_database)


SMALL_BRIEF = """\
campaign: small
brand: lumen
seed: 3
defaults: {steps: 3, variants: 3}
shots:
  - {name: pip-beach, character: Pip, prompt: "a mascot, waving, happy, front view, on the beach"}
  - {name: mora-snow, character: Mora, prompt: "a mascot, jumping, sad, front view, in the snow"}
"""
