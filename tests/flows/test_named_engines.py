"""A brief may name another engine: its pictures are planned, made, checked and recorded as all others."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from asset_store.errors import NotFound
from asset_store.tables import Asset, AssetVersion, Check, LineageRecord
from flows.brief import parse_brief
from flows.campaign import run_campaign
from flows.library import ingest_library
from flows.planning import plan_campaign
from flows.requesting import requests_of
from flows.wiring import engine, open_store, unet_engine
from ipadapter_engine.errors import CheckpointRefused, RequestRefused
from tests.ipadapter_engine import tiny_checkpoints as tiny
from tests.ipadapter_engine import tiny_native
from tests.studio_home import Home

pytestmark = pytest.mark.usefixtures("prefect")

BRIEF = """\
campaign: engines
brand: lumen
defaults: {steps: 2, size: 64x64}
checks: {identity_min: -1, blank_spread: 0}
shots:
  - {name: adapted, character: Pip, prompt: a mascot}
  - {name: native, character: Pip, prompt: a mascot, engine: flux2, choose: 2}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_native.write_flux2(tmp_path_factory.mktemp("engines") / "flux2")


@pytest.fixture
def named(home: Home, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """The embedded model, with FLUX.2 beside it and a library that the embedded model read."""
    monkeypatch.setenv("ONMODEL_ENGINES__FLUX2__BASE", str(folder))
    asyncio.run(ingest_library(str(home.library), "pat"))
    return home


def planned(text: str) -> dict[str, dict[str, Any]]:
    """The recipe of each shot."""
    with open_store() as store:
        plan = plan_campaign(store, parse_brief(text, file="brief.yaml"))
        return {p.shot: p.job.recipe for p in plan.pictures}


def test_a_campaign_is_made_by_the_engines_that_it_names(named: Home) -> None:
    report = asyncio.run(run_campaign(BRIEF, "brief.yaml", "pat"))
    assert (report["made"], report["problems"]) == (2, [])
    with named.database.transaction() as session:
        rows = session.execute(
            select(Asset.shot, LineageRecord.record)
            .join(AssetVersion, AssetVersion.asset_id == Asset.id)
            .join(LineageRecord, LineageRecord.version_id == AssetVersion.id)
        ).all()
        checks = session.execute(select(Check.version_id, Check.name)).all()
    records: dict[str, dict[str, Any]] = {row.shot: row.record for row in rows}
    own, other = records["adapted"], records["native"]
    assert (own["settings"]["family"], other["settings"]["family"]) == ("studio", "flux2")
    assert other["settings"]["engine"] == "flux2"
    assert "engine" not in own["settings"]
    assert {m["role"] for m in other["models"]} == {"transformer", "vae", "text_encoder", "scheduler"}
    assert all(m["licence"].startswith("non-commercial") for m in other["models"])
    assert len(other["references"]) == 2
    assert set(own["references"][0]) == set(other["references"][0])
    assert own["encoder"] == other["encoder"]
    assert {k: v for k, v in other["run"].items() if k in ("device", "dtype")} == {"device": "cpu", "dtype": "float32"}
    by_version: dict[Any, set[str]] = {}
    for version, name in checks:
        by_version.setdefault(version, set()).add(name)
    first, second = by_version.values()
    assert first == second


def test_the_engine_is_shown_the_references_themselves(named: Home) -> None:
    recipe = planned(BRIEF)["native"]
    with open_store() as store:
        (request,) = requests_of(store, engine(store.settings, "flux2"), recipe)
        with pytest.raises(RequestRefused, match="the worker has not loaded transformer"):
            requests_of(store, engine(store.settings), recipe)
    assert [r.embedding for r in request.references] == [None, None]
    assert all(r.picture is not None and min(r.picture.shape[:2]) >= 64 for r in request.references)


def test_a_recipe_of_the_engine_that_reads_libraries_names_none(named: Home) -> None:
    """So keys stay what they were, with and without engines beside it."""
    recipe = planned(BRIEF)["adapted"]
    assert "engine" not in recipe
    assert "engine" not in parse_brief(BRIEF, file="brief.yaml").model_dump(mode="json")["defaults"]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("negative_prompt: rain", "FLUX.2 has no negative prompt"),
        ("scale: 0.5", "FLUX.2 has no scale of its references"),
        ("window: [0, 0.5]", "FLUX.2 has no window of its references"),
        ("scheduler: ddim", "FLUX.2 has no scheduler 'ddim'"),
        ("size: 70x64", "a width of 70 px cannot be made by FLUX.2"),
        ("references: [{file: pip/front.png}, {file: pip/side.png, weight: 0.5}]", "FLUX.2 has no weights of its"),
        ("references: [{file: pip/front.png, tiled: true}]", "FLUX.2 cannot be told to see references in tiles"),
        ("style_references: [styles/pastel.png]", "no style adapter is loaded"),
    ],
)
def test_what_the_family_has_not_is_refused_when_it_is_planned(named: Home, said: str, message: str) -> None:
    text = BRIEF.replace("choose: 2}", f"{said}}}")
    library = sorted(p.relative_to(named.library).as_posix() for p in named.library.rglob("*.png"))
    pip = [p for p in library if "pip" in p.lower()]
    text = text.replace("pip/front.png", pip[0]).replace("pip/side.png", pip[1])
    with pytest.raises(RequestRefused) as refused:
        planned(text)
    assert message in refused.value.message


def test_an_engine_that_is_not_set_is_named(named: Home) -> None:
    with pytest.raises(NotFound) as refused:
        planned(BRIEF.replace("engine: flux2", "engine: kontext"))
    assert "ONMODEL_ENGINES__KONTEXT__BASE" in str(refused.value.next_step)


def test_an_engine_that_sees_otherwise_than_the_library_was_read_is_refused(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny.write_sd15(tmp_path / "sd15")
    monkeypatch.setenv("ONMODEL_ENGINES__OTHER__BASE", str(base))
    monkeypatch.setenv("ONMODEL_ENGINES__OTHER__ENCODER", str(tiny.write_encoder(tmp_path / "clip")))
    with open_store() as store, pytest.raises(CheckpointRefused, match="ONMODEL_ENGINE|libraries are read with"):
        engine(store.settings, "other")


def test_what_trains_a_unet_says_that_there_is_none(home: Home, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONMODEL_ENGINE__BASE", str(folder))
    with open_store() as store, pytest.raises(RequestRefused, match="FLUX.2 is not trained here"):
        unet_engine(store.settings)
