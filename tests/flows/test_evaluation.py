"""`onmodel evaluate` from the order to the stored table: every protocol end to end on tiny models."""

# ruff: noqa: F811  (fixtures are imported, then asked for by name)
from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from asset_store.repositories import evaluations
from flows.contestants import with_plus
from flows.evaluation import evaluate
from flows.evaluation_order import EvaluationOrder, EvaluationRefused
from flows.settings import EngineSettings
from flows.wiring import Store, open_store
from ipadapter_engine.checkpoints import EMBEDDED
from ipadapter_engine.errors import CheckpointRefused
from ipadapter_engine.evaluation import sheets
from ipadapter_engine.evaluation.reading import JUDGE_FILE
from ipadapter_engine.evaluation.subjects import SubjectsRefused
from ipadapter_engine.hashing import sha256_of_file
from studio.cli import evaluating  # noqa: F401  (it registers its command)
from studio.cli.app import app
from tests.evaluation.conftest import (  # noqa: F401  (fixtures)
    a_picture,
    base,
    clip,
    coco,
    dino,
    dreambench,
)
from tests.studio_home import Home


@pytest.fixture
def opened(home: Home, base: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("ONMODEL_ENGINE__BASE", str(base))
    monkeypatch.setenv("ONMODEL_ENGINE__DEVICE", "cpu")
    with open_store() as store:
        yield store


def test_the_papers_protocol_end_to_end(opened: Store, base: Path, coco: Path, clip: Path) -> None:
    order = EvaluationOrder("ip-adapter", images=coco, clip=clip, steps=2, size_px=64)
    told = evaluate(opened, order, "ada")
    assert [r["method"] for r in told["rows"]] == ["adapter", "plus"]
    assert [r["pictures"] for r in told["rows"]] == [3 * 4, 3 * 4]
    assert {x["method"]: x["why"].split(";")[0] for x in told["settings"]["left_out"]} == {
        "text": "its prompts are empty: the picture is all that is said",
        "lora": "a LoRA learns from 3 pictures or more, and here every subject is one",
        "both": "a LoRA learns from 3 pictures or more, and here every subject is one",
    }
    settings = told["settings"]
    assert settings["clip_t"] == "CLIPScore, 2.5 max(cosine, 0)"
    # what the paper laid down stands where the order says nothing else, and what was changed is told
    assert (settings["steps"], settings["guidance"], settings["scheduler"], settings["size_px"]) == (2, 7.5, "ddim", 64)
    assert settings["changed"] == ["3 subjects, not 5,000", "steps 2, not 50", "size in px 64, not 512"]
    assert settings["mismatched"] == ["not the protocol's CLIP ViT-L/14: published figures are no comparison"]
    assert settings["comparable"] is False
    assert settings["pictures_a_subject"] == [4, 4]
    assert len(settings["subjects_sha256"]) == 64
    adapter, encoder = (base / f for f in ("ip_adapter.safetensors", "image_encoder/model.safetensors"))
    assert told["rows"][0]["shared_bytes"] == adapter.stat().st_size + encoder.stat().st_size
    assert told["published"][0] == {"title": "IP-Adapter, SD1.5, 22 M", "figures": {"clip_t": 0.588, "clip_i": 0.828}}
    assert 0 <= told["rows"][0]["figures"]["clip_t"]["value"] <= 2.5
    again = evaluate(opened, order, "ada")
    assert (again["made_now"], again["made_before"]) == (0, 24)
    assert again["rows"] == [
        {**r, "figures": {**r["figures"], "setup_s": a["figures"]["setup_s"]}}
        for r, a in zip(told["rows"], again["rows"], strict=True)
    ]
    with opened.database.transaction() as session:
        stored = evaluations.latest(session)
        assert [str(e.id) for e in stored] == [again["id"], told["id"]]
        assert {m["role"] for m in stored[0].models} >= {"unet", "ip-adapter", "ip-adapter plus", "measure"}
        assert str(coco) not in json.dumps(stored[0].settings)


def test_dreambench_end_to_end(opened: Store, dreambench: Path, clip: Path, dino: Path, tmp_path: Path) -> None:
    order = EvaluationOrder(
        "dreambench", images=dreambench, clip=clip, dino=dino, methods=("text", "adapter"), seeds=2, steps=2, size_px=64,
        sheet=tmp_path / "sheet.png",
    )  # fmt: skip
    told = evaluate(opened, order, "ada")
    assert [r["pictures"] for r in told["rows"]] == [(2 + 3) * 2, (2 + 3) * 2, 3 + 2]
    assert told["rows"][-1]["method"] == "references"
    assert all(told["rows"][n]["figures"]["dino"] for n in range(3))
    assert told["rows"][-1]["figures"]["clip_t"] is None
    assert set(told["rows"][1]["against_text"]) == {"clip_i", "clip_t", "dino", "diversity"}
    assert told["settings"]["pictures_a_subject"] == [4, 6]
    assert told["settings"]["mismatched"] == ["not the protocol's DINO ViT-S/16: published figures are no comparison"]
    assert "2 to 3 prompts a subject, not 25" in told["settings"]["changed"]
    assert Image.open(tmp_path / "sheet.png").height > 2 * 256


def test_a_users_pictures_end_to_end_on_the_command_line(
    home: Home,
    base: Path,
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ONMODEL_ENGINE__BASE", str(base))
    for n in range(2):
        a_picture(n, tmp_path / "mine" / "red_fox" / f"{n}.png")
    command = ["evaluate", "--images", str(tmp_path / "mine"), "--prompt", "a {subject} at sea", "--seeds", "2",
               "--steps", "2", "--size", "64", "--methods", "text,adapter", "--clip", str(clip), "--by", "ada"]  # fmt: skip
    answer = CliRunner().invoke(app, command)
    assert answer.exit_code == 0, answer.output
    for word in ("IP-Adapter", "text only", "the references", "CLIP-T", "4 pictures made now", "Identity is CLIP-I",
                 "Less text only", f"CLIP-I by {clip.name};", "2 steps of dpmpp_2m, guidance 7.5, 64 px"):  # fmt: skip
        assert word in answer.output
    own = CliRunner().invoke(app, [a for a in command if a not in ("--clip", str(clip))])
    assert "the adapter's own encoder" in own.output
    told = CliRunner().invoke(app, [*command, "--json"])
    assert json.loads(told.stdout)["made_before"] == 4
    listed = json.loads(CliRunner().invoke(app, ["evaluate", "--list", "--json"]).stdout)["evaluations"]
    assert len(listed) == 3
    shown = CliRunner().invoke(app, ["evaluate", "--show", listed[1]["id"][:8]])
    assert (shown.exit_code, "IP-Adapter" in shown.output) == (0, True)
    assert "images" in CliRunner().invoke(app, ["evaluate", "--list"]).output
    unknown = CliRunner().invoke(app, ["evaluate", "--show", "ffffffff"])
    assert unknown.exit_code == 1


@pytest.mark.parametrize(
    ("order", "told", "step"),
    [
        (EvaluationOrder("ip-adapter"), "needs pictures", "--images"),
        (EvaluationOrder("ip-adapter", images=Path("x")), "CLIP ViT-L/14", "--clip"),
        (EvaluationOrder("dreambench", images=Path("x"), clip=Path("y")), "DINO ViT-S/16", "--dino"),
        (EvaluationOrder("coco"), "no protocol coco", "dreambench"),
        (EvaluationOrder("characters"), "of the studio model only", "--images"),
        (EvaluationOrder("characters", images=Path("x")), "characters are drawn", "--protocol images"),
        (EvaluationOrder("images", images=Path("x"), plus=Path("no.bin")), "no adapter file at no.bin", "--plus"),
    ],
)
def test_what_is_missing_is_said_with_what_to_do(opened: Store, order: EvaluationOrder, told: str, step: str) -> None:
    with pytest.raises(EvaluationRefused, match=told) as refused:
        evaluate(opened, order, "ada")
    assert step in refused.value.next_step


def test_a_method_asked_for_by_name_must_be_able_to(opened: Store, tmp_path: Path) -> None:
    a_picture(1, tmp_path / "mine" / "fox" / "1.png")
    order = EvaluationOrder("images", images=tmp_path / "mine", texts=("a {subject}",), methods=("lora",))
    with pytest.raises(EvaluationRefused, match="3 pictures or more, and a subject has 1"):
        evaluate(opened, order, "ada")
    with pytest.raises(EvaluationRefused, match="cannot hear 2 references of fox, which has 1") as refused:
        evaluate(opened, replace(order, methods=("adapter",), heard=2), "ada")
    assert "--heard 1" in refused.value.next_step


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({"methods": ("loras",)}, EvaluationRefused, "no method loras"),
        ({"images": Path("/no/folder")}, SubjectsRefused, "there is no folder"),
        ({"clip": Path("/no/clip")}, CheckpointRefused, "holds no CLIP"),
        ({"dino": Path("/no/dino")}, CheckpointRefused, "holds no ViT"),
        ({"sheet": Path("/no/folder/sheet.png")}, sheets.SheetRefused, "no folder"),
        ({"sheet": Path("sheet.xyz")}, sheets.SheetRefused, "no picture can be written"),
    ],
)
def test_what_can_be_known_is_refused_before_a_checkpoint_is_opened(
    home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changes: dict[str, Any], error: type, told: str
) -> None:
    """There is no checkpoint: opening it would be refused with another error."""
    monkeypatch.setenv("ONMODEL_ENGINE__BASE", str(tmp_path / "no checkpoint"))
    a_picture(1, tmp_path / "mine" / "fox" / "1.png")
    order = EvaluationOrder("images", images=tmp_path / "mine", texts=("a {subject}",))
    with open_store() as store, pytest.raises(error, match=told):
        evaluate(store, replace(order, **changes), "ada")


def test_models_of_subjects_are_stored_with_their_hashes_and_settings(opened: Store, tmp_path: Path) -> None:
    for n in range(3):
        a_picture(n, tmp_path / "mine" / "fox" / f"{n}.png")
    order = EvaluationOrder(
        "images", images=tmp_path / "mine", texts=("a {subject}",), seeds=1, methods=("lora",), steps=2, size_px=64,
        lora_steps=1, out=tmp_path / "kept",
    )  # fmt: skip
    told = evaluate(opened, order, "ada")
    (file,) = (tmp_path / "kept" / "characters").rglob("character.safetensors")
    (character,) = (m for m in told["models"] if m["role"] == "character")
    assert (character["name"], character["sha256"]) == ("fox", sha256_of_file(file))
    (lora,) = told["settings"]["lora"]
    assert (lora["subjects"], lora["settings"]["steps"], lora["settings"]["size_px"]) == (["fox"], 1, 64)
    assert not {"subject", "phrase"} & set(lora["settings"])


def test_held_out_characters_are_read_by_the_judge(home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The shipped model, two characters, few steps: what is tested is the table, not the figures."""
    with open_store() as store:
        order = EvaluationOrder(subjects=2, prompts=1, methods=("text", "adapter"), steps=2, out=tmp_path / "kept")
        told = evaluate(store, order, "ada")
    assert [r["method"] for r in told["rows"]] == ["text", "adapter", "references"]
    assert told["settings"]["identity_by"] == "judge"
    assert told["settings"]["comparable"] is None
    judge = sha256_of_file(EMBEDDED / JUDGE_FILE)
    assert [m["sha256"] for m in told["models"] if m["role"] == "judge"] == [judge]
    drawn = told["rows"][-1]["figures"]
    assert drawn["identity"]["value"] > max(r["figures"]["identity"]["value"] for r in told["rows"][:2])
    assert list((tmp_path / "kept" / "pictures").rglob("*.png"))
    assert os.fspath(tmp_path) not in json.dumps(told)


def test_settings_take_a_plus_adapter_from_the_order_the_settings_or_the_base(base: Path, tmp_path: Path) -> None:
    own, other, third = base / "ip_adapter_plus.safetensors", tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    other.touch()
    settings = EngineSettings(base=base)
    assert with_plus(settings, EvaluationOrder()).adapters == {"plus": own}
    assert with_plus(settings, EvaluationOrder(plus=other)).adapters == {"plus": other}
    named = EngineSettings(base=base, adapters={"plus": third, "style": third})
    assert with_plus(named, EvaluationOrder()).adapters == {"plus": third, "style": third}
    assert with_plus(named, EvaluationOrder(plus=other)).adapters == {"plus": other, "style": third}
    assert with_plus(EngineSettings(base=tmp_path), EvaluationOrder()).adapters == {}
