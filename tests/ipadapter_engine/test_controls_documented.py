"""docs/controls.md: its example runs as it is written, on a folder of tiny models."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from ipadapter_engine.characters import KEPT
from tests.ipadapter_engine import tiny_checkpoints as tiny
from tests.ipadapter_engine.conftest import picture

DOCUMENT = Path(__file__).parents[2] / "docs" / "controls.md"


def test_the_example_runs_as_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    base = tiny.write_studio(tmp_path / "base")
    tiny.write_control_net(tmp_path / "edges", base, stride=8)
    tiny.write_character(tmp_path / "pip", base)
    for i, name in enumerate(("layout", "pip", "mood")):
        picture(i).save(tmp_path / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, str(DOCUMENT), "exec"), {})  # noqa: S102  the project's own document
    assert Image.open(tmp_path / "waving.png").size == (32, 32)
    told = capsys.readouterr().out
    assert all(f"role={role!r}" in told for role in ("ip-adapter", "ip-adapter style", "controlnet edges", "character"))


def test_the_number_of_kept_characters_is_the_documented_one() -> None:
    assert f"The last {KEPT} stay in memory" in " ".join(DOCUMENT.read_text(encoding="utf-8").split())
