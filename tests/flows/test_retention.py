"""Rejected pictures go when their time is over: through the sweep and the command line, whatever is killed, and are made anew when asked."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from asset_store.blobs import FolderBlobs
from asset_store.database import Database
from asset_store.pictures.thumbnails import thumbnail
from asset_store.retention import Policy
from asset_store.reviewing import decide
from asset_store.tables import Asset, Decision, Job, Removal, RemovedBlob, Verdict
from flows import retention
from flows.campaign import run_campaign
from flows.garbage import collect
from flows.settings import Settings
from flows.sweep import sweep
from flows.wiring import Store, open_store
from tests.forking import Forked
from tests.studio_home import Home

pytestmark = pytest.mark.usefixtures("prefect")
MONTH, LATER = Policy(30), datetime.now(UTC) + timedelta(days=31)
BRIEF = """\
campaign: {}
brand: lumen
defaults: {{steps: 2, size: 64x64}}
checks: {{identity_min: -1.0}}
shots:
  - {{name: one, character: Bo, prompt: a mascot, seeds: [5], references: [bo/front.png]}}
"""


def made(name: str) -> dict[str, Any]:
    return asyncio.run(run_campaign(BRIEF.format(name), "brief.yaml", "pat"))


def rejected(home: Home, name: str = "first") -> str:
    """A picture that was made and rejected just now, by sha256."""
    made(name)
    with home.database.transaction() as session:
        asset = session.scalars(select(Asset)).one()
        assert asset.current is not None
        decide.decide(session, asset.id, Verdict.REJECT, "grace", "three ears", asset.current.sha256)
        return asset.current.sha256


def test_bytes_and_thumbnail_go_and_asking_again_makes_it_anew(ingested: Home) -> None:
    sha256 = rejected(ingested)
    with open_store() as store:
        thumbnail(store.blobs, sha256, ingested.path / "thumbnails")
        blobs = set(store.blobs.iter_keys())
        assert retention.apply(store, MONTH, "flow:sweep") == {"removed": 0, "deleted": 0, "undeleted": 0}
        gone = {"removed": 1, "deleted": 1, "undeleted": 0}
        assert retention.apply(store, MONTH, "flow:sweep", LATER) == gone
        assert blobs - set(store.blobs.iter_keys()) == {sha256}
        assert list((ingested.path / "thumbnails").rglob("*.webp")) == []
        assert collect(delete=False)["garbage"] == 0
        assert made("first")["made"] == 0  # its own campaign has it, and it is rejected
        assert not store.blobs.has(sha256)
        report = made("second")
        assert (report["made"], report["problems"]) == (1, [])
        with store.database.transaction() as session:
            job = session.scalars(select(Job)).one()
            first, second = session.scalars(select(Asset).order_by(Asset.made_at)).all()
            assert (first.removed_at, second.removed_at) == (LATER, None)
            assert (len(first.versions), len(second.versions)) == (1, 1)
            assert second.current is not None
            assert job.picture_sha256 == second.current.sha256
        assert store.blobs.has(second.current.sha256)
        assert retention.apply(store, MONTH, "flow:sweep", LATER) == {**gone, "removed": 0, "deleted": 0}
        assert collect(delete=True)["garbage"] == 0
        assert store.blobs.has(second.current.sha256)


def test_the_sweep_applies_the_policy_of_the_settings(ingested: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = rejected(ingested)
    with ingested.database.transaction() as session:  # as if it had been said then
        session.connection().exec_driver_sql("ALTER TABLE decisions DISABLE TRIGGER append_only")
        session.query(Decision).update({"made_at": datetime.now(UTC) - timedelta(days=8)})
        session.connection().exec_driver_sql("ALTER TABLE decisions ENABLE ALWAYS TRIGGER append_only")
    assert asyncio.run(sweep())["removed"] == 0  # kept for ever unless somebody says otherwise
    monkeypatch.setenv("ONMODEL_RETENTION__REJECTED_DAYS", "7")
    told = asyncio.run(sweep())
    assert (told["removed"], told["deleted"]) == (1, 1)
    with open_store() as store:
        assert not store.blobs.has(sha256)


def test_a_blob_that_cannot_be_deleted_holds_up_no_other_and_is_tried_again(
    own_database: Database, tmp_path: Path
) -> None:
    blobs = FolderBlobs(tmp_path / "blobs")
    store = Store(own_database, blobs, Settings(home=tmp_path))
    sha256s = sorted(blobs.put(name) for name in (b"one", b"two", b"three"))
    with own_database.transaction() as session:
        session.add_all(RemovedBlob(sha256=sha256) for sha256 in sha256s)
    (stuck,) = tmp_path.rglob(f"*{sha256s[0][-16:]}")
    stuck.unlink()
    stuck.mkdir()  # no file, which nobody can unlink
    assert retention.finish(store, LATER) == {"deleted": 2, "undeleted": 1}
    stuck.rmdir()
    assert retention.finish(store, LATER) == {"deleted": 1, "undeleted": 0}
    assert list(blobs.iter_keys()) == []


KILLED = """
import os
from flows import retention
from flows.wiring import open_store
from tests.flows.test_retention import LATER, MONTH
with open_store() as store:
    delete = store.blobs.delete
    def dies(sha256):
        {}
        os._exit(9)
    type(store.blobs).delete = lambda self, sha256: dies(sha256)
    retention.apply(store, MONTH, "flow:sweep", LATER)
"""


@pytest.mark.parametrize("before", ["pass", "delete(sha256)"], ids=["before the blob is deleted", "after it"])
def test_a_removal_that_was_killed_is_finished_by_the_next_sweep(ingested: Home, before: str) -> None:
    sha256 = rejected(ingested)
    killed = Forked((), program=KILLED.format(before))
    _, told = killed.communicate(timeout=120)
    assert killed.returncode == 9, told
    with open_store() as store:
        with store.database.transaction() as session:
            assert session.scalars(select(Removal.sha256)).all() == [sha256]  # what is not there any more is told of
        left = before == "pass"
        assert store.blobs.has(sha256) is left
        assert (found := collect(delete=False))["removed"] == found["garbage"] == int(left)
        assert asyncio.run(sweep())["deleted"] == 1  # also where the policy was taken back meanwhile
        assert not store.blobs.has(sha256)
        assert collect(delete=False)["garbage"] == 0


def test_the_command_counts_first_and_says_who_did_it(ingested: Home) -> None:
    sha256 = rejected(ingested)
    refused = ingested.onmodel("gc", "--rejected")
    assert refused.code != 0
    assert "ONMODEL_RETENTION__REJECTED_DAYS" in refused.err
    with ingested.database.transaction() as session:
        session.connection().exec_driver_sql("ALTER TABLE decisions DISABLE TRIGGER append_only")
        session.query(Decision).update({"made_at": datetime.now(UTC) - timedelta(days=8)})
        session.connection().exec_driver_sql("ALTER TABLE decisions ENABLE ALWAYS TRIGGER append_only")
    policy = {"ONMODEL_RETENTION__REJECTED_DAYS": "7"}
    counted = ingested.onmodel("gc", "--rejected", "--json", **policy).json
    assert (counted["pictures"], counted["removed"], counted["sha256s"]) == (1, 0, [sha256])
    done = ingested.onmodel("gc", "--rejected", "--delete", "--by", "otto", "--json", **policy).json
    assert (done["removed"], done["deleted"]) == (1, 1)
    with ingested.database.transaction() as session:
        assert [(r.by, r.policy) for r in session.scalars(select(Removal))] == [("otto", "rejected for 7 days")]
        asset = str(session.scalars(select(Asset.id)).one())
    saved = ingested.onmodel("review", "show", asset, "--save", str(ingested.path / "a.png"))
    assert saved.code != 0
    assert "by the retention policy" in saved.err
    assert "by the retention policy" in ingested.onmodel("lineage", asset).out
    assert ingested.onmodel("audit", "verify").code == 0
