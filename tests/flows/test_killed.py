"""Real processes killed at several moments: started again, the campaign ends with the same set of assets."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest
from sqlalchemy import func, select

from asset_store.database import Database
from asset_store.tables import Asset, AssetVersion, Job, JobState, LineageRecord
from tests.forking import Forked
from tests.studio_home import Home

pytestmark = pytest.mark.usefixtures("prefect")

BRIEF = """\
campaign: killed
brand: lumen
seed: 5
defaults: {steps: 4, variants: 5, size: 64x64}
shots:
  - {name: pip-beach, character: Pip, prompt: "a mascot, waving, happy, front view, on the beach"}
  - {name: bo-city, character: Bo, prompt: "a mascot, standing, sad, front view, in the city"}
"""
PICTURES = 10
Outcome = dict[tuple[str, int], str]


def count(database: Database, *where: object) -> int:
    with database.transaction() as session:
        return session.scalars(select(func.count()).select_from(Job).where(*where)).one()  # type: ignore[arg-type]


def outcome(database: Database) -> Outcome:
    """What there is: picture by shot and variant, after checking that nothing is there twice."""
    with database.transaction() as session:
        rows = session.execute(select(Asset.shot, Asset.variant, AssetVersion.pixel_sha256).join(AssetVersion)).all()
        versions = session.scalars(select(func.count()).select_from(AssetVersion)).one()
        records = session.scalars(select(func.count()).select_from(LineageRecord)).one()
    assert versions == records == len(rows)
    assert len({(r[0], r[1]) for r in rows}) == len(rows)
    return {(r[0], r[1]): r[2] for r in rows}


def wait_until(ready: Callable[[], bool], process: Forked, limit_s: float = 240) -> None:
    deadline = time.monotonic() + limit_s
    while not ready():
        assert time.monotonic() < deadline, "the moment to kill at did not come"
        if process.poll() is not None:
            return
        time.sleep(0.02)


MOMENTS: dict[str, Callable[[Database], bool]] = {
    "just queued": lambda db: count(db) == PICTURES,
    "first batch claimed": lambda db: count(db, Job.state == JobState.RUNNING) > 0,
    "some pictures stored": lambda db: count(db, Job.state == JobState.SUCCEEDED) >= 5,
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_run_again_nothing_is_lost_and_nothing_is_there_twice(ingested: Home, moment: str) -> None:
    brief = ingested.brief(BRIEF)
    small = {"ONMODEL_ENGINE__MAX_BATCH": "4"}
    process = ingested.start("campaign", "run", str(brief), "--json", **small)
    wait_until(lambda: MOMENTS[moment](ingested.database), process)
    process.kill()
    process.communicate()
    before = outcome(ingested.database)
    again = ingested.onmodel("campaign", "run", str(brief), "--json", **small)
    assert again.code in (0, 3), again.err
    after = outcome(ingested.database)
    assert len(after) == PICTURES
    assert before.items() <= after.items()
    assert again.json["made"] + again.json["reused"] == PICTURES


def test_ctrl_c_ends_with_130_and_the_next_run_goes_on(ingested: Home) -> None:
    brief = ingested.brief(BRIEF)
    process = ingested.start("campaign", "run", str(brief), "--json", ONMODEL_ENGINE__MAX_BATCH="2")
    wait_until(lambda: count(ingested.database, Job.state == JobState.SUCCEEDED) >= 2, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    again = ingested.onmodel("campaign", "run", str(brief), "--json")
    assert again.code in (0, 3), again.err
    assert len(outcome(ingested.database)) == PICTURES


def test_a_killed_workers_jobs_are_taken_by_another(ingested: Home) -> None:
    """The campaign waits without workers of its own; one worker process is killed at work, a second finishes."""
    campaign = ingested.start("campaign", "run", str(ingested.brief(BRIEF)), "--workers", "0", "--json")
    first = ingested.start("worker", "--batch", "3")
    wait_until(lambda: count(ingested.database, Job.state == JobState.SUCCEEDED) >= 3, first)
    first.kill()
    first.communicate()
    second = ingested.start("worker", "--batch", "3")
    try:
        _, err = campaign.communicate(timeout=200)
        assert campaign.returncode in (0, 3), err
    finally:
        second.send_signal(signal.SIGTERM)
        told, _ = second.communicate(timeout=60)
    assert second.returncode == 0
    assert "made in" in told
    assert len(outcome(ingested.database)) == PICTURES


def test_an_ingest_that_is_killed_goes_on(home: Home) -> None:
    process = home.start("ingest", str(home.library), "--json", ONMODEL_INGEST__BATCH="2")
    from asset_store.tables import Reference

    def some() -> bool:
        with home.database.transaction() as session:
            return session.scalars(select(func.count()).select_from(Reference)).one() >= 2

    wait_until(some, process)
    process.kill()
    process.communicate()
    report = home.onmodel("ingest", str(home.library), "--json").json
    assert report["loaded"] + report["unchanged"] == 16
    assert report["quarantined"] == []
