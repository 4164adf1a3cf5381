"""A reference is taken back: what came of it stops, and the report says where it went."""

from __future__ import annotations

import threading
import uuid

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from asset_store import audit, releasing
from asset_store.database import Database
from asset_store.errors import NotFound, OnmodelError, ReasonMissing, RightsRefused
from asset_store.reviewing.states import Availability
from asset_store.rights.recall import withdraw_reference
from asset_store.tables import Asset, AuditRow, Embedding, JobState, Reference, ReferenceState
from tests.stories import (
    TODAY,
    a_delivery,
    a_job,
    a_reference,
    a_released_asset,
    an_approved_asset,
    an_asset_in_review,
    an_embedding,
)


def test_a_withdrawal_reaches_everything_that_came_of_the_reference(session: Session) -> None:
    taken, kept = a_reference(session, "taken.png"), a_reference(session, "kept.png")
    an_embedding(session, taken, "clip")
    an_embedding(session, taken, "dino")
    an_embedding(session, kept)
    released, waiting = a_released_asset(session, [taken, kept]), an_asset_in_review(session, references=[taken])
    untouched = a_released_asset(session, [kept])
    queued, running = a_job(session, [kept, taken], JobState.QUEUED), a_job(session, [taken], JobState.RUNNING)
    other = a_job(session, [kept], JobState.QUEUED)

    report = withdraw_reference(session, taken.id, "rights", "the contract ended")

    assert taken.state is ReferenceState.WITHDRAWN
    assert released.availability is Availability.SUSPENDED
    assert waiting.availability is Availability.UNRELEASED
    assert untouched.availability is Availability.RELEASED
    for job in (queued, running, other):
        session.refresh(job)
    assert (queued.state, running.state, other.state) == (JobState.CANCELLED, JobState.RUNNING, JobState.QUEUED)
    assert queued.finished_at is not None
    assert queued.evidence[-1]["reason"] == "the contract ended"
    assert list(session.scalars(select(Embedding.reference_sha256))) == [kept.sha256]
    assert {(a.id, a.suspended) for a in report.assets} == {(str(released.id), True), (str(waiting.id), False)}
    assert report.addresses == (f"s3://shop/{released.id}.png",)
    assert (report.cancelled_jobs, report.running_jobs) == ((queued.key,), (running.key,))
    assert report.embeddings_deleted == 2
    actions = select(AuditRow.action, AuditRow.subject).order_by(AuditRow.seq.desc()).limit(2)
    assert {tuple(row) for row in session.execute(actions)} == {
        ("withdraw", f"reference {taken.id}"),
        ("suspend", f"asset {released.id}"),
    }
    assert audit.verify(session).ok


def test_embeddings_stay_while_another_active_reference_has_the_same_bytes(session: Session) -> None:
    one, same = a_reference(session, "one.png", content="same"), a_reference(session, "two.png", content="same")
    an_embedding(session, one)
    assert withdraw_reference(session, one.id, "rights", "why").embeddings_deleted == 0
    assert withdraw_reference(session, same.id, "rights", "why").embeddings_deleted == 1


def test_withdrawing_twice_changes_nothing_more(session: Session) -> None:
    reference = a_reference(session)
    asset = a_released_asset(session, [reference])
    first = withdraw_reference(session, reference.id, "rights", "why")
    rows = audit.verify(session).rows
    again = withdraw_reference(session, reference.id, "rights", "why")
    assert (first.addresses, again.addresses) == ((f"s3://shop/{asset.id}.png",),) * 2
    assert [a.suspended for a in again.assets] == [False]
    assert audit.verify(session).rows == rows


def test_a_withdrawal_needs_a_reason_and_a_reference(session: Session) -> None:
    with pytest.raises(ReasonMissing):
        withdraw_reference(session, a_reference(session).id, "rights", " ")
    with pytest.raises(NotFound):
        withdraw_reference(session, uuid.uuid4(), "rights", "why")


def test_a_release_and_a_withdrawal_at_once_leave_nothing_released(own_database: Database) -> None:
    for _ in range(5):
        with own_database.transaction() as session:
            reference = a_reference(session, key=f"{uuid.uuid4()}.png")
            asset = an_approved_asset(session, references=[reference])
            asset_id, reference_id, delivery = asset.id, reference.id, a_delivery(asset)
        together = threading.Barrier(2)
        unexpected: list[BaseException] = []

        def release(id_: uuid.UUID, new: releasing.NewDelivery, start: threading.Barrier) -> None:
            start.wait()
            try:
                with own_database.transaction() as own:
                    releasing.finish(own, id_, [new], "releaser", on=TODAY)
            except RightsRefused:
                pass

        def withdraw(id_: uuid.UUID, start: threading.Barrier, problems: list[BaseException]) -> None:
            start.wait()
            try:
                with own_database.transaction() as own:
                    withdraw_reference(own, id_, "rights", "why")
            except OnmodelError as error:
                problems.append(error)

        threads = [
            threading.Thread(target=release, args=(asset_id, delivery, together)),
            threading.Thread(target=withdraw, args=(reference_id, together, unexpected)),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert unexpected == []
        with own_database.transaction() as session:
            assert session.get_one(Reference, reference_id).state is ReferenceState.WITHDRAWN
            assert session.get_one(Asset, asset_id).availability is not Availability.RELEASED
