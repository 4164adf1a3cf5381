"""A character sheet from the request to the file, with the embedded model."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import time
import uuid
from typing import Any

import numpy as np
import pikepdf
import pytest
from PIL import Image
from sqlalchemy import func, select, update

from asset_store.errors import NotFound
from asset_store.lineage.tree import tree_of
from asset_store.repositories import runs
from asset_store.reviewing.states import ReviewState
from asset_store.tables import Asset, AuditRow, Job, JobState, RemovedBlob, Run, RunState
from flows.character_sheet import make_character_sheet, try_again
from flows.garbage import collect
from flows.settings import QuotaSettings
from flows.sheet_request import SheetRequest
from flows.sheet_result import alike, conclude_sheet
from flows.starting import start_one, start_sheet
from flows.wiring import engine, open_store
from flows.worker import Worker
from tests.prefect_server import PrefectServer
from tests.studio_home import Home

pytestmark = pytest.mark.usefixtures("prefect")
FREE = QuotaSettings(brand=None, asker=None)


def begun(home: Home, **fields: Any) -> uuid.UUID:
    asked = {
        "brand": "lumen",
        "character": "Bo",
        "views": ["front", "side"],
        "steps": 2,
        "format": "64x64",
        "identity_min": -1.0,
        **fields,
    }
    with home.database.transaction() as session:
        request = SheetRequest.model_validate(asked)
        return start_sheet(session, request, FREE, by="pat", trigger="api", sent=True).id


def made(run_id: uuid.UUID, workers: int = 1) -> dict[str, Any]:
    return asyncio.run(make_character_sheet(run_id, workers))


def run_of(home: Home, run_id: uuid.UUID) -> Run:
    with home.database.transaction() as session:
        return session.get_one(Run, run_id)


def test_a_sheet_is_made_drawn_and_put_into_review(ingested: Home) -> None:
    run_id = begun(ingested, expressions=["sad"], reason="for the style book")
    told = made(run_id)
    assert (told["state"], told["problem"]) == ("succeeded", None)
    result = told["result"]
    assert [(c["section"], c["label"], c["tries"], c["on_model"]) for c in result["cells"]] == [
        ("views", "front", 1, True), ("views", "side", 1, True), ("expressions", "sad", 1, True),
    ]  # fmt: skip
    assert -1 <= result["consistency"] <= 1
    assert result["palette"]
    with open_store() as store:
        png = Image.open(io.BytesIO(store.blobs.get(result["files"]["png"])))
        assert png.width > 500
        pdf = pikepdf.open(io.BytesIO(store.blobs.get(result["files"]["pdf"])))
        assert "/OCProperties" in pdf.Root
        assert json.loads(store.blobs.get(result["files"]["json"]))["cells"] == result["cells"]
        assert collect(delete=True)["garbage"] == 0
        with store.database.transaction() as session:
            assets = session.scalars(select(Asset)).all()
            assert {a.review for a in assets} == {ReviewState.IN_REVIEW}
            run = tree_of(session, assets[0]).as_json()["versions"][0]["run"]
            assert (run["requested_by"], run["trigger"], run["reason"]) == ("pat", "api", "for the style book")
    run = run_of(ingested, run_id)
    assert (run.done, run.total, run.phase) == (3, 3, "succeeded")
    assert run.flow_run_id is not None


def test_the_flow_run_has_the_sheet_and_a_link_to_its_page(
    ingested: Home, prefect: PrefectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONMODEL_TELLING__ADDRESS", "https://onmodel.example/")
    run_id = begun(ingested, views=["front"])
    made(run_id)
    flow_run = run_of(ingested, run_id).flow_run_id
    artifacts = prefect.ask("artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [flow_run]}}})
    shown = {a["key"]: a["data"] for a in artifacts}
    assert f"(https://onmodel.example/runs/{run_id})" in shown["run-page"]
    assert "character-sheet" in shown


def test_cells_that_are_off_model_are_tried_again_and_say_so(ingested: Home) -> None:
    told = made(begun(ingested, views=["front"], identity_min=1.0, attempts=3))
    (cell,) = told["result"]["cells"]
    assert (cell["tries"], cell["on_model"], cell["failed"]) == (3, False, ["identity"])
    assert told["state"] == "succeeded"
    assert told["problem"] == "off model or not made: front"
    with ingested.database.transaction() as session:
        asset = session.scalars(select(Asset)).one()
        seeds = {session.get_one(Job, v.job_key).recipe["seed"] for v in asset.versions}
        assert (len(seeds), asset.review) == (3, ReviewState.CHECK_FAILED)


def test_a_flow_that_is_started_again_makes_nothing_twice(ingested: Home) -> None:
    run_id = begun(ingested, identity_min=1.0, attempts=2)
    first = made(run_id)
    with ingested.database.transaction() as session:  # as one that was lost before its end
        session.execute(update(Run).values(state=RunState.RUNNING, result=None, finished_at=None))
        session.add_all(RemovedBlob(sha256=s) for s in first["result"]["files"].values())  # and its files put down
    again = made(run_id)
    assert (again["state"], again["result"]) == ("succeeded", first["result"])
    with ingested.database.transaction() as session:
        assert session.scalars(select(RemovedBlob)).all() == []
        assert session.scalar(select(func.count()).select_from(Job)) == 4  # two cells, each tried twice
        assert session.scalars(select(Run.pictures)).one() == 4


def test_a_cell_whose_other_try_came_to_nothing_is_off_model(ingested: Home) -> None:
    run_id = begun(ingested, views=["front"], identity_min=1.0, attempts=1)
    made(run_id)
    with ingested.database.transaction() as session:
        session.execute(update(Asset).values(review=ReviewState.DRAFT))
        session.execute(update(Job).values(state=JobState.FAILED))
    with open_store() as store:
        (cell,) = conclude_sheet(store, run_id, engine(store.settings).encoder.sha256)[0]["cells"]
    assert (cell["on_model"], cell["failed"]) == (False, ["identity"])


def test_nothing_is_tried_again_of_a_run_that_was_cancelled_meanwhile(ingested: Home) -> None:
    run_id = begun(ingested, views=["front"], identity_min=1.0, attempts=1)
    made(run_id)
    with ingested.database.transaction() as session:
        session.execute(update(Run).values(state=RunState.RUNNING, result=None, finished_at=None))
        campaign_id = session.scalars(select(Run.campaign_id)).one()
        runs.cancel(session, run_id, "max")
    assert campaign_id is not None
    assert asyncio.run(try_again.fn(run_id, campaign_id)) == []
    with ingested.database.transaction() as session:
        assert session.scalars(select(Asset.review)).all() == [ReviewState.CHECK_FAILED]


def test_a_run_that_is_cancelled_before_it_is_planned_makes_nothing(ingested: Home) -> None:
    run_id = begun(ingested)
    with ingested.database.transaction() as session:
        runs.cancel(session, run_id, "max")
    assert made(run_id)["state"] == "cancelled"
    with ingested.database.transaction() as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 0


def test_cancelling_half_way_stops_the_engine_between_two_steps(
    ingested: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.worker.LOOK_S", 0.0)
    run_id = begun(ingested, views=["front", "side", "back"], steps=200)
    steps: list[int] = []
    with open_store() as store:
        worker = Worker(store, engine(store.settings), batch_size=4)
        generate = worker.engine.generate

        def counted(requests: Any, *, max_batch: int, on_step: Any) -> Any:
            def step(done: int, of: int) -> None:
                steps.append(done)
                if done == 3:
                    with store.database.transaction() as session:
                        runs.cancel(session, run_id, "max")
                on_step(done, of)

            return generate(requests, max_batch=max_batch, on_step=step)

        monkeypatch.setattr(worker.engine, "generate", counted)
        thread = threading.Thread(target=worker.run)
        thread.start()
        told = made(run_id, workers=0)
        deadline = time.monotonic() + 60
        while not worker.tally.problems and time.monotonic() < deadline:
            time.sleep(0.05)
        worker.stop()
        thread.join(60)
    assert told["state"] == "cancelled"
    assert steps == [1, 2, 3]
    assert worker.tally.problems == ["3 cancelled while they were made"]
    with ingested.database.transaction() as session:
        assert set(session.scalars(select(Job.state))) == {JobState.CANCELLED}
        assert session.scalars(select(AuditRow.actor).where(AuditRow.action == "cancel run")).all() == ["max"]


def test_what_cannot_be_made_ends_the_run_with_the_reason(ingested: Home) -> None:
    run_id = begun(ingested, format="130x130")
    with pytest.raises(Exception, match="130 px"):
        made(run_id)
    run = run_of(ingested, run_id)
    assert run.state is RunState.FAILED
    assert "130 px" in (run.problem or "")


def test_a_character_that_there_is_not_is_refused_at_once(ingested: Home) -> None:
    with pytest.raises(NotFound, match="character"):
        begun(ingested, character="Nobody")
    with pytest.raises(NotFound, match="brand"):
        begun(ingested, brand="none")


def test_the_starter_starts_what_was_asked_for_once(ingested: Home) -> None:
    with ingested.database.transaction() as session:
        request = SheetRequest(brand="lumen", character="Bo")
        run_id = start_sheet(session, request, FREE, by="pat", trigger="api").id
    sent: list[tuple[str, uuid.UUID, int]] = []

    def send(deployment: str, run: uuid.UUID, times: int) -> None:
        sent.append((deployment, run, times))
        if len(sent) == 1:
            raise ConnectionError("Prefect is away")

    with open_store() as store:
        assert not start_one(store, send)
        assert not start_one(store, send)  # it is not tried again at once
        assert run_of(ingested, run_id).sent == 0
        with store.database.transaction() as session:
            session.get_one(Run, run_id).sent_at = None
        assert start_one(store, send)
        assert not start_one(store, send)
    assert sent == [("make-character-sheet/onmodel", run_id, 1)] * 2


def test_likeness_is_of_pairs() -> None:
    told = alike({0: np.array([1.0, 0.0]), 1: np.array([2.0, 0.0]), 4: np.array([0.0, 1.0])})
    assert told.consistency == round(1 / 3, 4)
    assert told.each == {0: 0.5, 1: 0.5, 4: 0.0}
    assert (alike({0: np.array([1.0, 0.0])}).consistency, alike({}).each) == (None, {})
