"""A campaign from brief to review, in one process."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from asset_store import audit
from asset_store.canonical import sha256_of
from asset_store.errors import FourEyes, NotFound, RightsRefused
from asset_store.lineage import record as lineage
from asset_store.repositories import jobs as job_table
from asset_store.repositories.jobs import NewJob
from asset_store.reviewing.decide import decide
from asset_store.reviewing.states import Availability, ReviewState
from asset_store.tables import Asset, AssetVersion, Job, JobState, LineageRecord, Reference, Verdict
from flows.brief import parse_brief
from flows.campaign import conclude, run_campaign
from flows.library import ingest_library
from flows.planning import cost_of, plan_campaign, submit_campaign
from flows.publish import release_assets
from flows.recall import withdraw
from flows.sweep import sweep
from flows.wiring import engine, open_store
from flows.worker import Worker
from tests.prefect_server import PrefectServer
from tests.studio_home import PASSING, SMALL_BRIEF, Home

pytestmark = pytest.mark.usefixtures("prefect")


TWINS = """\
campaign: {}
brand: lumen
defaults: {{steps: 2, size: 64x64}}
shots:
  - {{name: one, character: Bo, prompt: a mascot, seeds: [5], references: [bo/front.png]}}
"""


def run(brief: str = SMALL_BRIEF, **options: Any) -> dict[str, Any]:
    return asyncio.run(run_campaign(brief, "brief.yaml", "pat", **options))


def assets(home: Home) -> dict[tuple[str, int], Asset]:
    with home.database.transaction() as session:
        rows = session.scalars(select(Asset).order_by(Asset.shot, Asset.variant)).all()
        for row in rows:
            _ = row.versions, row.campaign.brand, [v.checks for v in row.versions]
        return {(a.campaign.name + "/" + a.shot, a.variant): a for a in rows}


def test_every_shot_gets_its_variants_checked_and_in_review(ingested: Home) -> None:
    report = run()
    made = assets(ingested)
    assert (report["pictures"], report["made"], report["problems"]) == (6, 6, [])
    assert len(made) == 6
    for asset in made.values():
        assert asset.current is not None
        assert {"decodes", "not blank", "palette", "not a duplicate", "identity"} == {
            c.name for c in asset.current.checks
        }
        assert asset.review in (ReviewState.IN_REVIEW, ReviewState.CHECK_FAILED)


def test_the_same_brief_again_makes_nothing(ingested: Home) -> None:
    run()
    before = {k: (a.id, a.current.sha256 if a.current else "") for k, a in assets(ingested).items()}
    report = run()
    assert (report["made"], report["reused"]) == (0, 6)
    assert {k: (a.id, a.current.sha256 if a.current else "") for k, a in assets(ingested).items()} == before


def test_two_campaigns_that_want_the_same_picture_share_its_job(ingested: Home) -> None:
    seeds = "campaign: {}\nbrand: lumen\ndefaults: {{steps: 2, size: 64x64}}\nshots:\n  - {{name: one, character: Bo, prompt: a mascot, seeds: [5]}}\n"
    run(seeds.format("first"))
    run(seeds.format("second"))
    first, second = assets(ingested).values()
    assert first.current is not None
    assert second.current is not None
    assert first.current.sha256 == second.current.sha256
    with ingested.database.transaction() as session:
        assert len(session.scalars(select(Job)).all()) == 1


def test_lineage_names_references_models_settings_and_run(ingested: Home) -> None:
    run()
    with ingested.database.transaction() as session:
        records = session.scalars(select(LineageRecord)).all()
        assert len(records) == 6
        assert lineage.verify_chain(session).ok
        assert audit.verify(session).ok
        known = {str(r.id): r.sha256 for r in session.scalars(select(Reference))}
    for row in records:
        record = row.record
        assert {"unet", "vae", "text_encoder", "image encoder", "ip-adapter"} == {m["role"] for m in record["models"]}
        assert all(known[r["id"]] == r["sha256"] for r in record["references"])
        assert record["run"]["requested_by"] == "pat"
        assert record["settings"]["steps"] == 3


def test_a_dry_run_plans_and_writes_nothing(ingested: Home) -> None:
    with open_store() as store:
        plan = plan_campaign(store, parse_brief(SMALL_BRIEF, file="brief.yaml")).as_json()
    assert (plan["pictures"], plan["to_make"], plan["engine_seconds"]) == (6, 6, None)
    assert not assets(ingested)
    run()
    with open_store() as store:
        plan = plan_campaign(store, parse_brief(SMALL_BRIEF, file="brief.yaml")).as_json()
    assert (plan["made_already"], plan["to_make"]) == (6, 0)
    assert plan["engine_seconds_a_picture"] > 0


def test_the_contact_sheet_is_a_picture_and_an_artifact(ingested: Home, prefect: PrefectServer, tmp_path: Path) -> None:
    report = run(sheet=str(tmp_path / "sheet.png"))
    with Image.open(report["contact_sheet"]) as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > 600
        assert len(set(sheet.convert("RGB").resize((60, 60)).get_flattened_data())) > 50
    newest = prefect.ask("flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})[0]["id"]
    found = prefect.ask("artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [newest]}}})
    assert {"contact-sheet", "campaign-report"} == {a["key"] for a in found}


def test_a_brief_for_an_unknown_character_names_those_there_are(ingested: Home) -> None:
    with pytest.raises(NotFound) as caught:
        run(SMALL_BRIEF.replace("character: Pip", "character: Popeye"))
    assert "Bo, Mora, Pip, Tilda" in caught.value.next_step


def test_a_withdrawn_reference_cannot_be_planned_with(ingested: Home) -> None:
    withdraw("pip/front.png", by="rita", reason="the contract ended")
    named = "campaign: c\nbrand: lumen\nshots:\n  - {name: one, character: Pip, prompt: a mascot, references: [pip/front.png]}\n"
    with pytest.raises(RightsRefused):
        run(named)


def test_a_job_whose_reference_is_withdrawn_while_it_waits_is_never_made(ingested: Home) -> None:
    with open_store() as store:
        plan = plan_campaign(store, parse_brief(SMALL_BRIEF, file="brief.yaml"))
        _, keys = submit_campaign(store, plan, by="pat", trigger="test")
        used = {r["key"] for p in plan.pictures if p.shot == "pip-beach" for r in p.job.recipe["references"]}
        for key in used:
            withdraw(key, by="rita", reason="the contract ended")
        Worker(store, engine(store.settings)).run(until=lambda: True)
        with store.database.transaction() as session:
            states = job_table.states(session, keys)
    assert states == {JobState.CANCELLED: 3, JobState.SUCCEEDED: 3}


def test_an_expired_licence_stops_a_queued_job(ingested: Home) -> None:
    with open_store() as store:
        plan = plan_campaign(store, parse_brief(SMALL_BRIEF, file="brief.yaml"))
        _, keys = submit_campaign(store, plan, by="pat", trigger="test")
        with store.database.transaction() as session:
            session.execute(update(Reference).values(licence_until="2020-01-01"))
        tally = Worker(store, engine(store.settings)).run(until=lambda: True)
        with store.database.transaction() as session:
            assert job_table.states(session, keys) == {JobState.CANCELLED: 6}
    assert tally.made == 0


def test_who_asked_may_not_approve_and_an_approved_picture_is_delivered(ingested: Home, tmp_path: Path) -> None:
    run(SMALL_BRIEF + PASSING)
    asset = next(a for a in assets(ingested).values() if a.review is ReviewState.IN_REVIEW)
    assert asset.current is not None
    with pytest.raises(FourEyes), ingested.database.transaction() as session:
        decide(session, asset.id, Verdict.APPROVE, "pat", "", asset.current.sha256)
    with ingested.database.transaction() as session:
        decide(session, asset.id, Verdict.APPROVE, "rosa", "", asset.current.sha256)
    report = asyncio.run(release_assets([asset.id], str(tmp_path / "out"), "lee"))
    files = sorted(Path(f) for f in report["released"][0]["files"])
    assert [f.suffix for f in files] == [".json", ".png", ".webp"]
    with open_store() as store:
        assert files[1].read_bytes() == store.blobs.get(asset.current.sha256)
    again = asyncio.run(release_assets([asset.id], str(tmp_path / "out"), "lee"))
    assert again["released"][0]["files"] == report["released"][0]["files"]
    reports = withdraw(next(iter(_used(ingested, asset))), by="rita", reason="the contract ended")
    assert {a.id for r in reports for a in r.assets if a.suspended} == {str(asset.id)}
    assert assets(ingested)[(f"small/{asset.shot}", asset.variant)].availability is Availability.SUSPENDED
    refused = asyncio.run(release_assets([asset.id], str(tmp_path / "out"), "lee"))
    assert len(refused["refused"]) == 1


def _used(home: Home, asset: Asset) -> set[str]:
    with home.database.transaction() as session:
        row = session.scalars(select(LineageRecord).join(AssetVersion).where(AssetVersion.asset_id == asset.id)).one()
    return {r["key"] for r in row.record["references"]}


def test_the_sweep_gives_a_done_job_its_asset(ingested: Home) -> None:
    run()
    other = SMALL_BRIEF.replace("campaign: small", "campaign: twin")
    with open_store() as store:
        plan = plan_campaign(store, parse_brief(other, file="brief.yaml"))
        seeds = plan_campaign(store, parse_brief(SMALL_BRIEF, file="brief.yaml"))
        moved = tuple(
            type(p)(p.shot, p.variant, p.character, q.job) for p, q in zip(plan.pictures, seeds.pictures, strict=True)
        )
        submit_campaign(
            store, type(plan)(plan.brief, plan.brief_sha256, moved, plan.chosen, 0, None), by="pat", trigger="test"
        )
    assert asyncio.run(sweep())["attached"] == 6
    assert all(a.current for a in assets(ingested).values())
    assert asyncio.run(sweep()) == {
        "reaped": 0,
        "attached": 0,
        "refused": 0,
        "embedded": 0,
        "removed": 0,
        "deleted": 0,
        "undeleted": 0,
    }


def test_a_reference_withdrawn_between_a_finished_job_and_its_attaching_is_refused(ingested: Home) -> None:
    """The second campaign wants pictures that the first one made; it is queued before the recall, and concluded after."""
    run(TWINS.format("first"))
    with open_store() as store:
        plan = plan_campaign(store, parse_brief(TWINS.format("second"), file="brief.yaml"))
        campaign_id, keys = submit_campaign(store, plan, by="pat", trigger="test")
        withdraw("bo/front.png", by="rita", reason="the contract ended")
    review, problems = asyncio.run(conclude.fn(campaign_id, keys))
    assert review == {"draft": 1}
    assert problems == ["made before, and not used: bo/front.png was withdrawn"]
    assert assets(ingested)["second/one", 0].current is None
    assert asyncio.run(sweep())["attached"] == 0


def test_a_reference_that_was_renamed_is_found_again_by_the_next_run(ingested: Home) -> None:
    with open_store() as store:
        plan = plan_campaign(store, parse_brief(TWINS.format("first"), file="brief.yaml"))
        submit_campaign(store, plan, by="pat", trigger="test")
        (ingested.library / "bo" / "front.png").rename(ingested.library / "bo" / "ahead.png")
        file = ingested.library / "library.yaml"
        file.write_text(file.read_text().replace("bo/front.png", "bo/ahead.png"))
        asyncio.run(ingest_library(str(ingested.library), "pat"))
        Worker(store, engine(store.settings)).run(until=lambda: True)
        with store.database.transaction() as session:
            assert [j.state for j in session.scalars(select(Job))] == [JobState.CANCELLED]
    report = run(TWINS.format("first").replace("bo/front.png", "bo/ahead.png"))
    assert (report["made"], report["problems"]) == (1, [])
    with ingested.database.transaction() as session:
        assert len(session.scalars(select(Job)).all()) == 1


def test_the_cost_of_a_campaign_is_of_pictures_of_its_kind(session: Session) -> None:
    def job(seed: int, kinds: tuple[str, ...], engine_s: float | None = None, candidates: int = 1) -> NewJob:
        recipe = {"seed": seed, "controls": [{"kind": k} for k in kinds], "best_of": {"candidates": candidates}}
        key = sha256_of([seed, kinds])
        if engine_s is not None:
            session.add(Job(key=key, batch_key="b", recipe=recipe if kinds else {"seed": seed}, state=JobState.SUCCEEDED,
                            picture={"run": {"engine_s": engine_s}}, finished_at=datetime.now(UTC)))  # fmt: skip
            session.flush()
        return NewJob(key, "b", recipe)

    job(1, (), 1.0)
    job(2, ("edges",), 4.0)
    assert cost_of(session, [job(3, ())]) == 1.0
    assert cost_of(session, [job(4, ("edges",))]) == 4.0
    assert cost_of(session, [job(5, ()), job(6, ("edges",), candidates=2)]) == 3.0
    assert cost_of(session, [job(7, ()), job(8, ("pose",))]) is None


def test_a_library_that_changed_between_two_runs_leaves_made_pictures_alone(ingested: Home) -> None:
    run()
    before = {k: (a.id, a.job_key) for k, a in assets(ingested).items()}
    Image.new("RGB", (90, 90), "gold").save(ingested.library / "pip" / "front.png")
    asyncio.run(ingest_library(str(ingested.library), "pat"))
    report = run()
    assert (report["made"], report["reused"], report["problems"]) == (0, 6, [])
    assert {k: (a.id, a.job_key) for k, a in assets(ingested).items()} == before


def test_a_recall_between_two_runs_plans_the_missing_pictures_anew(ingested: Home) -> None:
    with open_store() as store:
        plan = plan_campaign(store, parse_brief(SMALL_BRIEF, file="brief.yaml"))
        submit_campaign(store, plan, by="pat", trigger="test")
    used = {r["key"] for p in plan.pictures for r in p.job.recipe["references"]}
    for key in used:
        withdraw(key, by="rita", reason="the contract ended")
    report = run()
    assert (report["made"], report["problems"]) == (6, [])
    assert not used & {key for asset in assets(ingested).values() for key in _used(ingested, asset)}


def test_jobs_for_other_models_are_left_to_workers_that_have_them(ingested: Home) -> None:
    with open_store() as store:
        plan = plan_campaign(store, parse_brief(SMALL_BRIEF, file="brief.yaml"))
        _, keys = submit_campaign(store, plan, by="pat", trigger="test")
        with store.database.transaction() as session:
            session.execute(update(Job).values(batch_key="sdxl/other/1024x1024/30/euler"))
        tally = Worker(store, engine(store.settings)).run(until=lambda: True)
        with store.database.transaction() as session:
            assert job_table.states(session, keys) == {JobState.QUEUED: 6}
    assert (tally.made, tally.failed) == (0, 0)


def test_withdrawn_bytes_under_another_name_stay_withdrawn(ingested: Home) -> None:
    withdraw("pip/front.png", by="rita", reason="the contract ended")
    copy = ingested.library / "pip" / "again.png"
    copy.write_bytes((ingested.library / "pip" / "front.png").read_bytes())
    with (ingested.library / "library.yaml").open("a") as file:
        file.write("  - {file: pip/again.png, character: Pip, role: identity}\n")
    asyncio.run(ingest_library(str(ingested.library), "pat"))
    with ingested.database.transaction() as session:
        states = session.scalars(select(Reference.state).where(Reference.key == "pip/again.png")).all()
    assert [s.value for s in states] == ["withdrawn"]


def test_job_keys_speak_of_contents_not_of_this_database(ingested: Home) -> None:
    with open_store() as store:
        first = plan_campaign(store, parse_brief(SMALL_BRIEF, file="brief.yaml"))
        with store.database.transaction() as session:
            for row in session.scalars(select(Reference)):
                row.key = "moved/" + row.key
        second = plan_campaign(store, parse_brief(SMALL_BRIEF, file="brief.yaml"))
    assert [p.job.key for p in first.pictures] == [p.job.key for p in second.pictures]
