"""The measure of what one region's reference changes in another's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import regions


def test_one_pair_is_measured_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    regions.main(["--pairs", "1", "--sheet", str(tmp_path / "sheet.png")])
    row = json.loads(capsys.readouterr().out)
    assert 0 < row["value"] < row["peer_value"]
    assert row["met"] == (row["ratio"] <= regions.LESS)
    assert Image.open(tmp_path / "sheet.png").size[0] > 4 * 256


def test_bleed_is_what_changes_on_the_left_beside_what_changes_on_the_right() -> None:
    before = np.zeros((2, 4, 3), np.uint8)
    after = before.copy()
    after[:, 2:] = 80
    assert regions.bleed(before, after) == 0
    after[:, :2] = 20
    assert regions.bleed(before, after) == pytest.approx(0.25)
