"""The fidelity command's arithmetic, exact, and its second renderer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ipadapter_engine.checkpoints import EMBEDDED
from ipadapter_engine.errors import CheckpointRefused
from ipadapter_engine.evaluation import fidelity, sheets
from ipadapter_engine.evaluation.characters import IDENTITY, NAMES, PROMPT, Sample, drawn, portrait, samples, truths
from ipadapter_engine.evaluation.fidelity import Row, rows_of
from ipadapter_engine.evaluation.other_drawing import render_portrait
from ipadapter_engine.evaluation.reading import JUDGE_FILE, open_judge
from ipadapter_engine.families.studio import STUDIO
from ipadapter_engine.training.captions import prompt_for
from ipadapter_engine.training.mascots import (
    ATTRIBUTES,
    IDENTITY_ATTRIBUTES,
    Identity,
    Staging,
    held_out_identities,
    training_identities,
)
from tests.ipadapter_engine import tiny_checkpoints as tiny

WHO = Identity(*(a.values[1] for a in IDENTITY_ATTRIBUTES))


def measured(right: Callable[[int], float], ceiling: float = 1.0, scale: float = 1.0) -> dict[str, Row]:
    """Rows of 20 characters with 5 pictures, where attribute k is right in `right(k)` of them."""
    shape = (20, 5, len(ATTRIBUTES))
    order = np.random.default_rng(0).permutation(100).reshape(20, 5)
    shares = np.array([right(k) for k in range(len(ATTRIBUTES))])
    seen = np.broadcast_to(order[..., None], shape) < 100 * shares
    best = np.broadcast_to(order[..., None], shape) < 100 * ceiling
    return {r.name: r for r in rows_of(seen, best, scale, scale > 0)}


def test_targets_are_shares_of_the_ceiling() -> None:
    rows = measured(lambda k: 0.72, ceiling=0.8)
    assert rows["identity, mean at scale 1"].met
    assert rows["prompt, mean at scale 1"].met
    assert all(rows[f"{name} at scale 1"].met for name in IDENTITY)
    assert fidelity.exit_code(list(rows.values())) == 0
    rows = measured(lambda k: 0.71, ceiling=0.8)
    assert fidelity.exit_code(list(rows.values())) == 1
    assert not rows["identity, mean at scale 1"].met
    assert all(rows[f"{name} at scale 1"].met for name in IDENTITY)


@pytest.mark.parametrize("lost", [IDENTITY[2], *PROMPT])
def test_one_lost_attribute_is_a_miss_though_the_mean_is_reached(lost: str) -> None:
    rows = measured(lambda k: 0.6 if NAMES[k] == lost else 1.0)
    assert rows["identity, mean at scale 1"].met
    assert rows["prompt, mean at scale 1"].met
    assert fidelity.exit_code(list(rows.values())) == 1
    assert not rows[f"{lost} at scale 1"].met
    assert rows[f"{lost} at scale 1"].value == pytest.approx(0.6)


def test_without_the_adapter_identity_must_be_near_chance_and_the_prompt_may_be_right() -> None:
    chance = {a.name: 1 / len(a.values) for a in ATTRIBUTES}
    rows = measured(lambda k: chance[NAMES[k]] if NAMES[k] in IDENTITY else 1.0, scale=0.0)
    assert all(rows[f"{name} at scale 0"].met for name in IDENTITY)
    assert rows["identity, mean at scale 0"].met
    assert all(rows[f"{name} at scale 0"].target is None for name in PROMPT)
    told = measured(lambda k: 0.9, scale=0.0)
    assert not any(told[f"{name} at scale 0"].met for name in IDENTITY)


def test_a_row_says_all_that_is_asked_of_it() -> None:
    row = next(iter(measured(lambda k: 0.5).values())).as_json()
    assert list(row) == ["name", "value", "unit", "interval_95", "ceiling", "chance", "target", "met"]

    assert row["unit"] == "share of attributes read"
    assert measured(lambda k: 0.5)[f"{NAMES[0]} at scale 1"].unit == "share of pictures"


def test_what_the_adapter_costs_the_prompt_is_told_in_pairs() -> None:
    rng = np.random.default_rng(0)
    silent = rng.random((20, 5, len(ATTRIBUTES))) < 0.8
    spoken = silent.copy()
    scene = NAMES.index("scene")
    spoken[:10, :, scene] = False
    row = fidelity.paired_row(spoken, silent)
    assert row.value == pytest.approx(-silent[:10, :, scene].sum() / silent[..., scene].size / len(PROMPT))
    assert row.interval_95 is not None
    assert row.interval_95[1] < 0
    assert (row.unit, row.met) == ("share of attributes read, difference", None)
    assert fidelity.paired_row(silent, silent).interval_95 == (0.0, 0.0)


def test_a_skeleton_must_be_followed_and_may_cost_identity_three_hundredths() -> None:
    rng = np.random.default_rng(3)
    right = rng.random((20, 5, len(ATTRIBUTES))) < 0.9
    best = np.ones_like(right)
    steered = right.copy()
    steered[..., NAMES.index("pose")] = True
    followed, kept = fidelity.control_rows(steered, right, best)
    assert (followed.value, followed.met, kept.value, kept.met) == (1.0, True, 0.0, True)
    steered[:3, :, NAMES.index("pose")] = False
    steered[:2, :, [NAMES.index(n) for n in IDENTITY]] = False
    followed, kept = fidelity.control_rows(steered, right, best)
    assert (followed.value, followed.met) == (0.85, False)
    assert kept.value < -0.03
    assert not kept.met


def test_a_prompt_beside_a_skeleton_does_not_name_the_pose() -> None:
    staging = Staging(pose="waving")
    told = prompt_for(staging, pose=False)
    assert told == prompt_for(staging).replace("waving, ", "")


def test_only_characters_that_no_stage_saw_are_asked_for() -> None:
    asked = samples(50, 2)
    assert len(asked) == 100
    assert len({s.seed for s in asked}) == 100
    assert {s.who for s in asked} == set(held_out_identities()[:50])
    assert not {s.who for s in asked} & set(training_identities())
    with pytest.raises(ValueError, match="held out"):
        samples(len(held_out_identities()) + 1, 1)


def test_the_ceiling_is_drawn_in_the_stagings_that_are_asked_for() -> None:
    asked = [Sample(WHO, Staging(), 1), Sample(WHO, replace(Staging(), scene="night"), 1)]
    pictures = drawn(asked, 32)
    assert pictures.shape == (2, 32, 32, 3)
    assert (pictures[0] != pictures[1]).any()
    scene = NAMES.index("scene")
    assert truths(asked)[0, scene] != truths(asked)[1, scene]


@pytest.mark.parametrize("attribute", IDENTITY_ATTRIBUTES, ids=lambda a: a.name)
def test_the_second_renderer_draws_every_trait_and_draws_it_otherwise(attribute: object) -> None:
    name, values = attribute  # type: ignore[misc]
    mine = {v: np.asarray(render_portrait(replace(WHO, **{name: v}), 48)) for v in values}
    assert len({p.tobytes() for p in mine.values()}) == len(values)
    for value, picture in mine.items():
        first = np.asarray(portrait(replace(WHO, **{name: value}), 48)).astype(int)
        assert np.abs(first - picture).mean() > 8


def test_the_second_renderer_names_what_it_cannot_draw() -> None:
    with pytest.raises(ValueError, match="shape 'cloud'"):
        render_portrait(replace(WHO, **{fields(WHO)[0].name: "cloud"}), 32)


def test_a_sheet_is_large_enough_to_look_at_and_scales_without_smoothing() -> None:
    tile = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    sheet = sheets.pairs([(tile, tile, "a mascot, waving " * 40)] * 5)
    assert sheet.width > 4 * 2 * sheets.TILE_PX
    enlarged = np.asarray(sheets.enlarged(tile))
    assert (enlarged[:: sheets.TILE_PX // 4, :: sheets.TILE_PX // 4] == np.asarray(tile)).all()
    assert len(np.unique(enlarged.reshape(-1, 3), axis=0)) == 16


def test_a_judge_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "judge.safetensors"
    save_file({"heads.0.weight": torch.zeros(2, 256)}, file)
    with pytest.raises(CheckpointRefused, match="no judge of this vocabulary"):
        open_judge(file)


def told_by(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, list[dict[str, Any]]]:
    """The command's exit code and rows."""
    monkeypatch.setattr("sys.argv", ["fidelity", *arguments])
    with pytest.raises(SystemExit) as ended:
        fidelity.main()
    return int(ended.value.code or 0), [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_command_measures_the_shipped_model_and_says_by_its_exit_code_what_it_found(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sheet, table = tmp_path / "sheet.png", tmp_path / "table.md"
    asked = [
        "--characters",
        "3",
        "--pictures",
        "1",
        "--renderer",
        "other",
        "--sheet",
        str(sheet),
        "--table",
        str(table),
    ]
    code, rows = told_by(asked, capsys, monkeypatch)
    assert len(rows) == 2 * (len(ATTRIBUTES) + 2) + 2 + 2
    assert code == int(any(r["met"] is False for r in rows))
    assert Image.open(sheet).width > 1000
    lines = table.read_text().splitlines()
    assert sum(line.startswith("| ") for line in lines) == 1 + len(ATTRIBUTES) + 2
    mean, silent = (next(r for r in rows if r["name"] == f"identity, mean at scale {scale}") for scale in (1, 0))
    shown = next(line for line in lines if line.startswith("| identity, mean"))
    assert shown.startswith(f"| identity, mean | {mean['value']:.3f} | {silent['value']:.3f} |")
    assert shown.endswith("met |" if mean["met"] else "missed |")
    assert sum(line.startswith("- ") for line in lines) == 4


def test_a_model_that_cannot_draw_ends_with_exit_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Random weights, of the shipped model's size and read by its judge."""
    base = tiny.write_studio(tmp_path / "base")
    tiny.change_json(base / "unet" / "config.json", sample_size=STUDIO.size_px // 8)
    shutil.copy(EMBEDDED / JUDGE_FILE, base / JUDGE_FILE)
    code, rows = told_by(["--characters", "5", "--pictures", "1", "--model", str(base)], capsys, monkeypatch)
    assert code == 1
    assert any(r["met"] is False for r in rows)


@pytest.mark.parametrize("place", ["nowhere/sheet.png", "sheet.xyz", "sheet"])
def test_a_sheet_that_cannot_be_saved_is_refused_before_a_model_is_opened(
    place: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arguments = ["--sheet", str(tmp_path / place), "--model", str(tmp_path / "no model")]
    assert told_by(arguments, capsys, monkeypatch) == (2, [])


def test_a_table_without_a_folder_is_refused_before_a_model_is_opened(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert told_by(["--table", str(tmp_path / "nowhere" / "table.md")], capsys, monkeypatch) == (2, [])
