"""The whole flow on checkpoints that the settings name: SD1.5 with a plus adapter, SDXL with a base one."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from sqlalchemy import select

from asset_store.tables import Embedding, LineageRecord
from flows.brief import parse_brief
from flows.campaign import run_campaign
from flows.library import ingest_library
from flows.planning import plan_campaign
from flows.wiring import open_store
from ipadapter_engine.errors import RequestRefused
from tests.ipadapter_engine import original_layout as original
from tests.ipadapter_engine import tiny_checkpoints as tiny
from tests.ipadapter_engine import tiny_loras
from tests.studio_home import Home

pytestmark = pytest.mark.usefixtures("prefect")

BRIEF = """\
campaign: configured
brand: lumen
defaults: {steps: 2, variants: 2, choose: 2, size: 64x64}
checks: {identity_min: -1, blank_spread: 0}
shots:
  - {name: one, character: Pip, prompt: a picture}
"""


@pytest.mark.parametrize(("layout", "variant"), [("sd15", "plus"), ("sdxl", "base")])
def test_a_campaign_runs_on_the_checkpoint_of_the_settings(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, variant: str
) -> None:
    folder = {"sd15": tiny.write_sd15, "sdxl": tiny.write_sdxl}[layout](tmp_path / layout)
    state = {"plus": tiny.plus_adapter_state, "base": tiny.base_adapter_state}[variant](tiny.open_unet(folder))
    monkeypatch.setenv("ONMODEL_ENGINE__BASE", str(folder))
    monkeypatch.setenv("ONMODEL_ENGINE__ADAPTER", str(tiny.write_safetensors(tmp_path / "adapter.safetensors", state)))
    monkeypatch.setenv("ONMODEL_ENGINE__ENCODER", str(tiny.write_encoder(tmp_path / "clip")))
    asyncio.run(ingest_library(str(home.library), "pat"))
    report = asyncio.run(run_campaign(BRIEF, "brief.yaml", "pat"))
    assert (report["made"], report["problems"]) == (2, [])
    with home.database.transaction() as session:
        hidden = session.scalars(select(Embedding.hidden_sha256)).all()
        records = session.scalars(select(LineageRecord.record)).all()
    assert all(hidden) == (variant == "plus")
    assert {r["settings"]["family"] for r in records} == {layout}
    assert {m["name"] for m in records[0]["models"] if m["role"] == "ip-adapter"} == {"adapter.safetensors"}


def test_a_campaign_runs_on_a_base_in_one_file_with_a_taught_word(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.write_sd15(tmp_path / "sd15", as_original=True)
    base = original.write_base(tmp_path / "file" / "base.safetensors", folder)
    (base.parent / "tokenizer").rename(tmp_path / "vocabulary")
    adapter = tiny.write_safetensors(tmp_path / "a.safetensors", tiny.base_adapter_state(tiny.open_unet(folder)))
    save_file({"emb_params": torch.ones(1, tiny.WIDTH)}, tmp_path / "fox.safetensors")
    monkeypatch.setenv("ONMODEL_ENGINE__BASE", str(base))
    monkeypatch.setenv("ONMODEL_ENGINE__TOKENIZER", str(tmp_path / "vocabulary"))
    monkeypatch.setenv("ONMODEL_ENGINE__WORDS__FOX", str(tmp_path / "fox.safetensors"))
    monkeypatch.setenv("ONMODEL_ENGINE__ADAPTER", str(adapter))
    monkeypatch.setenv("ONMODEL_ENGINE__ENCODER", str(tiny.write_encoder(tmp_path / "clip")))
    asyncio.run(ingest_library(str(home.library), "pat"))
    report = asyncio.run(run_campaign(BRIEF.replace("a picture", "a <fox>"), "brief.yaml", "pat"))
    assert (report["made"], report["problems"]) == (2, [])
    with home.database.transaction() as session:
        records = session.scalars(select(LineageRecord.record)).all()
    named = {m["role"]: m["name"] for m in records[0]["models"]}
    assert named["checkpoint"] == "base.safetensors"
    assert named["word fox"] == "fox.safetensors"
    assert "unet" not in named


def test_another_encoder_embeds_what_is_stored_without_reading_the_library_again(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.run(ingest_library(str(home.library), "pat"))
    folder = tiny.write_sd15(tmp_path / "sd15")
    adapter = tiny.write_safetensors(tmp_path / "a.safetensors", tiny.base_adapter_state(tiny.open_unet(folder)))
    monkeypatch.setenv("ONMODEL_ENGINE__BASE", str(folder))
    monkeypatch.setenv("ONMODEL_ENGINE__ADAPTER", str(adapter))
    monkeypatch.setenv("ONMODEL_ENGINE__ENCODER", str(tiny.write_encoder(tmp_path / "clip")))
    report = asyncio.run(ingest_library(str(home.library), "pat"))
    assert (report["loaded"], report["embedded"], report["unchanged"]) == (0, 16, 16)
    with open_store() as store, store.database.transaction() as session:
        assert len(session.scalars(select(Embedding)).all()) == 32


def test_a_brief_names_a_lora_of_the_settings(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In kohya's layout. Other strengths are other jobs; one that is not set is refused by name."""
    folder = tiny.write_sd15(tmp_path / "sd15")
    adapter = tiny.write_safetensors(tmp_path / "a.safetensors", tiny.base_adapter_state(tiny.open_unet(folder)))
    lora = tiny_loras.write_kohya(tmp_path / "paint.safetensors", folder)
    monkeypatch.setenv("ONMODEL_ENGINE__BASE", str(folder))
    monkeypatch.setenv("ONMODEL_ENGINE__ADAPTER", str(adapter))
    monkeypatch.setenv("ONMODEL_ENGINE__ENCODER", str(tiny.write_encoder(tmp_path / "clip")))
    monkeypatch.setenv("ONMODEL_ENGINE__LORAS__PAINT", str(lora))
    asyncio.run(ingest_library(str(home.library), "pat"))
    shots = """\
  - {name: plain, character: Pip, prompt: a picture, seeds: [5]}
  - {name: half, character: Pip, prompt: a picture, seeds: [5], loras: [{name: paint, strength: 0.5}]}
  - {name: whole, character: Pip, prompt: a picture, seeds: [5], loras: [{name: paint}]}
"""
    brief = BRIEF.split("shots:")[0].replace(", variants: 2", "") + "shots:\n" + shots
    report = asyncio.run(run_campaign(brief, "brief.yaml", "pat"))
    assert (report["made"], report["problems"]) == (3, [])
    with home.database.transaction() as session:
        records = session.scalars(select(LineageRecord.record)).all()
    hashes = {m["sha256"] for r in records for m in r["models"] if m["role"] == "lora"}
    assert hashes == {hashlib.sha256(lora.read_bytes()).hexdigest()}
    assert sorted(len(r["settings"].get("loras", ())) for r in records) == [0, 1, 1]
    assert len({r["output"]["sha256"] for r in records}) == 3
    with pytest.raises(RequestRefused, match="no LoRA 'ink'; set are paint"), open_store() as store:
        plan_campaign(
            store, parse_brief(brief.replace("name: paint}", "name: ink}"), file="brief.yaml"), folder=tmp_path
        )
