"""What the docs show of the client, run as a reader runs it, against flows that make the pictures."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

from tests.studio.making import Studio
from tests.studio_home import ROOT

NOTEBOOK = ROOT / "docs" / "character-sheet.ipynb"


def test_the_notebook_is_kept_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) > 4
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


def test_the_notebook_makes_a_sheet_and_shows_it(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONMODEL_ADDRESS", studio.address)
    monkeypatch.setenv("ONMODEL_KEY", studio.secret("notebook"))
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=240, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [o["data"]["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 1
    told = "".join(output.get("text", "") for output in outputs)
    for words in (
        "3 of 3",
        "pip/front.png",
        "licence Lumen house artwork",
        "asked for by key:notebook of pat: to show",
    ):
        assert words in told


def test_the_script_saves_a_sheet_and_says_what_is_wrong(studio: Studio, tmp_path: Path) -> None:
    script, target = str(ROOT / "deploy" / "examples" / "ask_for_sheet.py"), tmp_path / "bo.png"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "ONMODEL_ADDRESS": studio.address,
        "ONMODEL_KEY": studio.secret("script"),
    }

    def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, script, *arguments], env=environment, capture_output=True, text=True, timeout=240, check=False
        )  # fmt: skip

    made = ask("lumen", "Bo", "--views", "front", "--to", str(target))
    assert made.returncode == 0, made.stderr
    assert Image.open(io.BytesIO(target.read_bytes())).format == "PNG"
    refused = ask("lumen", "Nobody")
    assert (refused.returncode, "Known characters" in refused.stderr) == (1, True)
