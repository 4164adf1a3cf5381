"""Training as a user meets it: which references are learnt, what is recorded, and that a kill loses nothing."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load
from sqlalchemy import func, select
from typer.testing import CliRunner

from asset_store import audit
from asset_store.errors import Ambiguous, FileInvalid, NotFound, RightsRefused
from asset_store.repositories import libraries, models
from asset_store.tables import AuditRow, Brand, Character, ModelKind, TrainedModel
from flows.deployments import deployments
from flows.library import ingest_library
from flows.progress import listening
from flows.recall import withdraw
from flows.settings import load_settings
from flows.training import train_adapter_model, train_character_model
from flows.training_report import listed
from flows.wiring import engine, open_store
from ipadapter_engine.requests import GenerationRequest
from ipadapter_engine.training import studio_data
from ipadapter_engine.training.errors import TrainingRefused
from studio.cli import training  # noqa: F401  (it registers its commands)
from studio.cli.app import app
from tests.ipadapter_engine.tiny_checkpoints import write_encoder, write_sd15
from tests.studio_home import ROOT, Home

pytestmark = pytest.mark.usefixtures("prefect")
SHORT = {"steps": 2, "class_pictures": 2, "rank": 4, "size_px": 64}


def train(character: str = "Pip", references: list[str] | None = None, **settings: Any) -> dict[str, Any]:
    return asyncio.run(train_character_model(character, "ada", references, {**SHORT, **settings}))


def count(home: Home, table: Any) -> int:
    with home.database.transaction() as session:
        return session.scalars(select(func.count()).select_from(table)).one()


def test_a_character_is_trained_stored_and_recorded_once(ingested: Home) -> None:
    made = train()
    assert (made["name"], made["version"], made["problems"]) == ("lumen/Pip", 1, [])
    assert made["references"] == ["pip/front.png", "pip/side.png", "pip/surprised.png", "pip/waving.png"]
    with open_store() as store:
        weights = load(store.blobs.get(made["sha256"]))
        assert any(v.abs().max() > 0 for k, v in weights.items() if "lora_B" in k or "lora.up" in k)
        with store.database.transaction() as session:
            row = session.scalars(select(AuditRow).where(AuditRow.action == "model trained")).one()
            assert row.detail["sha256"] == made["sha256"]
            assert audit.verify(session).broken is None
            model = session.scalars(select(TrainedModel)).one()
            assert model.settings["phrase"] == "sks mascot"
            assert model.base_sha256 == next(m.sha256 for m in engine(store.settings).models if m.role == "unet")
    (folder,) = (f for f in (ingested.path / "training").iterdir() if f.name != "class")
    assert sorted(f.suffix for f in folder.iterdir()) == [".jsonl", ".lock", ".png"]  # the weights are in the store
    assert train()["version"] == 1
    assert count(ingested, TrainedModel) == 1
    assert train(seed=1)["version"] == 2
    assert [(m["name"], m["version"]) for m in listed()] == [("lumen/Pip", 2), ("lumen/Pip", 1)]


def test_a_recalled_reference_ends_its_models_and_is_not_learnt_again(ingested: Home) -> None:
    train()
    withdraw("pip/front.png", by="rita", reason="contract ended")
    with open_store() as store, store.database.transaction() as session:
        pip = libraries.get_character(session, libraries.get_brand(session, "lumen"), "Pip")
        with pytest.raises(RightsRefused, match="pip/front.png was withdrawn"):
            models.get_character_model(session, pip)
    assert listed()[0]["problems"] == ["pip/front.png was withdrawn"]
    with pytest.raises(RightsRefused, match="pip/front.png"):
        train(references=["pip/front.png", "pip/side.png", "pip/waving.png"])
    again = train()
    assert (again["version"], again["references"]) == (2, ["pip/side.png", "pip/surprised.png", "pip/waving.png"])
    assert again["problems"] == []


def test_a_reference_that_is_recalled_meanwhile_leaves_nothing_of_what_was_learnt(ingested: Home) -> None:
    def recall(what: str, done: int, of: int) -> None:
        if (what, done) == ("steps", 1):
            withdraw("pip/front.png", by="rita", reason="contract ended")

    with open_store() as store:
        before = set(store.blobs.iter_keys())
        with listening(recall), pytest.raises(RightsRefused, match="pip/front.png was withdrawn"):
            train()
        assert set(store.blobs.iter_keys()) == before
    assert count(ingested, TrainedModel) == 0
    assert [f.name for f in (ingested.path / "training").iterdir()] == ["class"]


def test_pictures_that_are_made_meanwhile_are_those_of_the_base(ingested: Home) -> None:
    request = GenerationRequest("a mascot", 7, steps=2)
    seen: list[np.ndarray] = []

    def look(what: str, done: int, of: int) -> None:
        if what == "steps" and done > 1:  # something was learnt by then
            seen.append(made.generate([request])[0].pixels)

    with open_store() as store:
        made = engine(store.settings)
        (before,) = made.generate([request])
        with listening(look):
            train(steps=3, lr=0.1)
    assert len(seen) == 2
    assert all(np.array_equal(picture, before.pixels) for picture in seen)


def test_a_picture_that_moved_in_the_library_can_be_learnt_from_again(ingested: Home) -> None:
    train()
    for file in (ingested.library / "library.yaml", ingested.library / "pip" / "front.png"):
        if file.suffix == ".png":
            file.rename(file.with_name("facing.png"))
        else:
            file.write_text(file.read_text().replace("pip/front.png", "pip/facing.png"))
    asyncio.run(ingest_library(str(ingested.library), "pat"))
    assert listed()[0]["problems"] == ["pip/front.png is no longer in the library"]
    again = train()
    assert (again["version"], again["problems"]) == (2, [])
    assert "pip/facing.png" in again["references"]


def test_however_the_references_are_named_it_is_one_training(ingested: Home) -> None:
    keys = ["pip/front.png", "pip/side.png", "pip/waving.png"]
    assert train(references=keys)["version"] == train(references=keys[::-1])["version"] == 1


def test_of_more_than_eight_references_the_most_typical_are_learnt(home: Home) -> None:
    front = Image.open(home.library / "pip" / "front.png").convert("RGB")
    lines = []
    for i in range(6):
        changed = np.array(front)
        changed[:4, :4] = 30 * i  # other bytes, the same look
        Image.fromarray(changed).save(home.library / "pip" / f"again{i}.png")
        lines.append(f"  - {{file: pip/again{i}.png, character: Pip, role: identity}}\n")
    Image.new("RGB", (64, 64), "black").save(home.library / "pip" / "odd.png")
    lines.append("  - {file: pip/odd.png, character: Pip, role: identity}\n")
    with (home.library / "library.yaml").open("a") as file:
        file.writelines(lines)
    asyncio.run(ingest_library(str(home.library), "pat"))
    made = train(steps=1)
    assert len(made["references"]) == 8
    assert "pip/odd.png" not in made["references"]
    assert {f"pip/again{i}.png" for i in range(6)} <= set(made["references"])
    assert all("to the centre of 11" in line for line in made["chosen"])


def test_too_few_references_and_unknown_names_are_told_with_a_next_step(ingested: Home) -> None:
    with pytest.raises(TrainingRefused, match="2 different references are named"):
        train(references=["pip/front.png", "pip/side.png"])
    with pytest.raises(NotFound, match=r"pip/gone\.png"):
        train(references=["pip/gone.png"])
    with pytest.raises(NotFound) as caught:
        train("Nobody")
    assert "lumen/Pip" in caught.value.next_step
    for key in ("bo/front.png", "bo/side.png"):
        withdraw(key, by="rita", reason="contract ended")
    with pytest.raises(TrainingRefused, match="has 2 usable identity references"):
        train("Bo")
    with open_store() as store, store.database.transaction() as session:
        other = Brand(name="other", title="Other", palette=[], rules=[])
        session.add(other)
        session.flush()
        session.add(Character(brand_id=other.id, name="Pip"))
    with pytest.raises(Ambiguous, match="lumen/Pip"):
        train("Pip")
    with pytest.raises(TrainingRefused, match="no such setting"):
        train("lumen/Pip", stepz=3)
    with pytest.raises(TrainingRefused, match="steps: input should be a valid integer"):
        train("lumen/Pip", steps="many")
    with pytest.raises(TrainingRefused, match="crop: input should be 'centre' or 'pad'"):
        train("lumen/Pip", crop="middle")
    assert count(ingested, TrainedModel) == 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_training_goes_on_where_it_was(ingested: Home, how: signal.Signals) -> None:
    steps = 12
    command = ["train", "character", "Pip", "--steps", str(steps), "--class-pictures", "2", "--checkpoint-every", "2",
               "--size", "64"]  # fmt: skip
    process = ingested.start(*command)
    deadline = time.monotonic() + 200
    while not (found := list((ingested.path / "training").glob("*/character.ckpt"))):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(how)
    _, err = process.communicate(timeout=120)
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGINT: 130}[how], err
    assert "Traceback" not in err
    at = torch.load(found[0], weights_only=True)["step"]
    assert 0 < at < steps
    assert count(ingested, TrainedModel) == 0
    again = train(steps=steps, rank=None, seed=0, crop="centre")
    assert again["version"] == 1
    log = [json.loads(line)["step"] for line in (found[0].parent / "character.jsonl").read_text().splitlines()]
    assert log == sorted(set(log))
    assert log[-1] == steps - 1
    assert not found[0].exists()
    shown = CliRunner().invoke(app, ["train", "list"]).output
    assert again["sha256"][:16] in shown
    assert "pip/front.png" in shown


def a_folder(parent: Path) -> Path:
    folder = parent / "pictures"
    folder.mkdir()
    for i in range(4):
        colours = np.random.default_rng(i).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(colours).resize((128, 128), Image.Resampling.NEAREST).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a mascot, number {i}\n")
    return folder


@pytest.mark.parametrize("variant", ["base", "plus"])
def test_an_adapter_is_trained_on_a_folder_and_recorded_once(home: Home, tmp_path: Path, variant: str) -> None:
    folder, out = a_folder(tmp_path), tmp_path / "out"
    settings = {"steps": 2, "batch_size": 2, "sheet_every": 2, "sheet_rows": 1, "sheet_steps": 2}

    def run() -> dict[str, Any]:
        return asyncio.run(train_adapter_model(str(folder), str(out), variant, "ada", settings=settings))

    made = run()
    assert (made["kind"], made["name"], made["version"]) == (
        "adapter",
        {"base": "identity", "plus": "plus"}[variant],
        1,
    )
    data = Path(made["file"]).read_bytes()
    with open_store() as store:
        assert store.blobs.get(made["sha256"]) == data
    assert any(k.startswith("ip_adapter.") for k in load(data))
    assert Image.open(next((out / "sheets").glob("*.png"))).width > 300
    assert Image.open(io.BytesIO((out / "loss.png").read_bytes())).size == (640, 240)
    assert run()["version"] == 1
    with home.database.transaction() as session:
        assert [m.kind for m in models.list_models(session)] == [ModelKind.ADAPTER]


@pytest.mark.parametrize(("variant", "name"), [("plus", None), ("base", "style")])
def test_an_adapter_is_trained_on_the_studio_s_own_pictures(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str, name: str | None
) -> None:
    monkeypatch.setattr(studio_data, "PICTURES", 20)
    settings = {"steps": 1, "batch_size": 2, "name": name, "sheet_rows": 1, "sheet_steps": 2}
    made = asyncio.run(train_adapter_model("studio", str(tmp_path / "out"), variant, "ada", settings=settings))
    assert (made["kind"], made["name"]) == ("adapter", name or variant)
    assert any(k.startswith("ip_adapter.") for k in load(Path(made["file"]).read_bytes()))


def test_the_studio_s_own_pictures_teach_no_other_base(home: Home, tmp_path: Path) -> None:
    base, encoder = str(write_sd15(tmp_path / "sd15")), str(write_encoder(tmp_path))
    with pytest.raises(TrainingRefused, match="teach"):
        asyncio.run(
            train_adapter_model(
                "studio", str(tmp_path / "out"), "base", "ada", base=base, encoder=encoder, settings={"steps": 1}
            )
        )


def test_mistakes_of_a_folder_are_told_with_exit_code_2(home: Home, tmp_path: Path) -> None:
    folder = a_folder(tmp_path)
    (folder / "1.txt").unlink()
    (folder / "3.png").write_text("no picture")
    with pytest.raises(FileInvalid) as caught:
        asyncio.run(train_adapter_model(str(folder), str(tmp_path / "out"), by="ada", settings={"steps": 1}))
    assert [p.file for p in caught.value.problems] == ["1.png", "3.png"]
    answer = CliRunner().invoke(
        app, ["train", "adapter", "--data", str(folder), "--out", str(tmp_path), "--steps", "1"]
    )
    assert answer.exit_code == 2
    assert "1.png:1: it has no caption" in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize("command", ["train adapter", "train character", "train list"])
def test_every_command_explains_itself_and_is_in_the_docs(command: str) -> None:
    answer = CliRunner().invoke(app, [*command.split(), "--help"])
    assert answer.exit_code == 0
    assert f"## `onmodel {command}`" in (ROOT / "docs" / "cli.md").read_text()


def test_the_training_flows_are_served() -> None:
    served = {f"{d.flow_name}/{d.name}" for d in deployments(load_settings())}
    assert {"train-character/onmodel", "train-adapter/onmodel"} <= served
