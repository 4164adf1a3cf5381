"""The job table as a queue: nothing is made twice, nothing is lost."""

from __future__ import annotations

import threading
import time

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from asset_store.database import Database
from asset_store.repositories import jobs
from asset_store.repositories.jobs import LOCK_SPACE, MAX_ATTEMPTS, MAX_LOST, ClaimedJob, MadePicture, NewJob
from asset_store.tables import Job, JobState

PICTURE = MadePicture("a" * 64, "b" * 64, "c" * 64, 64, 64, {"engine_s": 0.1})


def some_jobs(count: int, batch_key: str = "sd15/512") -> list[NewJob]:
    return [NewJob(f"{batch_key}-{i:03d}", batch_key, {"seed": i}) for i in range(count)]


def state_of(session: Session, key: str) -> JobState:
    return session.scalars(select(Job.state).where(Job.key == key)).one()


def test_the_same_job_submitted_twice_is_one(session: Session) -> None:
    assert jobs.submit(session, some_jobs(3)) == 3
    assert jobs.submit(session, some_jobs(4)) == 1
    assert jobs.queued(session) == 4


def test_a_batch_has_one_batch_key_and_the_warm_one_comes_first(session: Session) -> None:
    jobs.submit(session, [*some_jobs(2, "sd15/512"), *some_jobs(3, "sdxl/1024")])
    batch = jobs.claim(session, worker=1, size=8, warm="sdxl/1024")
    assert [j.key for j in batch] == [j.key for j in some_jobs(3, "sdxl/1024")]
    assert {j.batch_key for j in jobs.claim(session, worker=1, size=8, warm="sdxl/1024")} == {"sd15/512"}


def test_a_claimed_job_is_claimed_by_nobody_else(session: Session) -> None:
    jobs.submit(session, some_jobs(2))
    assert len(jobs.claim(session, worker=1, size=1)) == 1
    assert len(jobs.claim(session, worker=2, size=8)) == 1
    assert jobs.claim(session, worker=3, size=8) == []


def test_completing_is_fenced_by_the_attempt(session: Session) -> None:
    jobs.submit(session, some_jobs(1))
    (first,) = jobs.claim(session, worker=1, size=1)
    session.execute(text("UPDATE jobs SET lease_until = now() - interval '1 minute'"))
    assert jobs.reap(session) == 1
    (second,) = jobs.claim(session, worker=2, size=1)
    assert (first.attempt, second.attempt) == (1, 2)
    assert not jobs.complete(session, first, PICTURE)
    assert jobs.complete(session, second, PICTURE)
    assert not jobs.complete(session, second, PICTURE)


def test_a_job_that_fails_waits_then_is_set_aside_with_its_evidence(session: Session) -> None:
    jobs.submit(session, some_jobs(1))
    for attempt in range(1, MAX_ATTEMPTS + 1):
        session.execute(text("UPDATE jobs SET not_before = now() - interval '1 second'"))
        (job,) = jobs.claim(session, worker=1, size=1)
        state = jobs.fail(session, job, f"try {attempt}")
        assert jobs.claim(session, worker=1, size=1) == []
    assert state is JobState.FAILED
    evidence = session.scalars(select(Job.evidence)).one()
    assert [e["message"] for e in evidence] == [f"try {n}" for n in range(1, MAX_ATTEMPTS + 1)]


def test_a_set_aside_job_that_is_asked_for_again_starts_over(session: Session) -> None:
    jobs.submit(session, some_jobs(1))
    (job,) = jobs.claim(session, worker=1, size=1)
    jobs.fail(session, job, "cannot be made", final=True)
    assert jobs.submit(session, some_jobs(1)) == 1
    assert state_of(session, job.key) is JobState.QUEUED


def test_a_job_that_is_queued_again_takes_the_new_recipe(session: Session) -> None:
    """A cancelled one may name a reference's row of before it was renamed."""
    jobs.submit(session, some_jobs(1))
    (job,) = jobs.claim(session, worker=1, size=1)
    jobs.cancel(session, job, "pip/front.png is no longer in the library")
    again = NewJob(job.key, "sd15/768", {"seed": 0, "references": [{"id": "new"}]})
    jobs.submit(session, [again])
    (taken,) = jobs.claim(session, worker=1, size=1)
    assert (taken.recipe, taken.batch_key) == (again.recipe, again.batch_key)


def test_a_job_that_is_given_back_counts_no_failure_and_is_fenced(session: Session) -> None:
    jobs.submit(session, some_jobs(1))
    for _ in range(2 * MAX_ATTEMPTS):
        (job,) = jobs.claim(session, worker=1, size=1)
        assert jobs.release(session, job, 0.0) is JobState.QUEUED
        assert not jobs.complete(session, job, PICTURE)
        assert jobs.release(session, job, 0.0) is JobState.QUEUED
    assert session.scalars(select(Job.evidence)).one() == []
    (job,) = jobs.claim(session, worker=1, size=1)
    assert jobs.fail(session, job, "a true failure") is JobState.QUEUED
    session.execute(text("UPDATE jobs SET not_before = now() - interval '1 second'"))
    (job,) = jobs.claim(session, worker=1, size=1)
    jobs.release(session, job, 60.0)
    assert jobs.claim(session, worker=2, size=1) == []


def test_a_job_that_no_worker_can_make_is_set_aside_when_patience_ends(session: Session) -> None:
    jobs.submit(session, some_jobs(1))
    for _ in range(3):
        (job,) = jobs.claim(session, worker=1, size=1)
        assert jobs.release(session, job, 0.0, why="it lacks the edges", patience_s=100) is JobState.QUEUED
    ago = "jsonb_set(evidence, '{0,since}', to_jsonb((now() - interval '200 seconds')::timestamptz))"
    session.execute(text(f"UPDATE jobs SET evidence = {ago}"))
    session.expire_all()
    (job,) = jobs.claim(session, worker=1, size=1)
    assert jobs.release(session, job, 0.0, why="it lacks the edges", patience_s=100) is JobState.FAILED
    told = [e["message"] for e in session.scalars(select(Job.evidence)).one()]
    assert len(told) == 2
    assert told[-1].startswith("no worker that can make it came within 200 s: it lacks the edges")


def test_only_lost_workers_count_as_lost(session: Session) -> None:
    jobs.submit(session, some_jobs(1))
    for _ in range(2 * MAX_LOST):
        (job,) = jobs.claim(session, worker=1, size=1)
        jobs.release(session, job, 0.0)
    jobs.claim(session, worker=1, size=1)
    assert jobs.reap(session) == 1
    assert state_of(session, job.key) is JobState.QUEUED


def test_a_claim_counts_candidates_as_pictures_and_leaves_what_the_worker_cannot_make(session: Session) -> None:
    counts = (3, 1, 5, 1)
    many = [
        NewJob(f"job-{i}", "sd15/512", {"seed": i, **({"best_of": {"candidates": n}} if n > 1 else {})})
        for i, n in enumerate(counts)
    ]
    jobs.submit(session, many)
    assert [j.key for j in jobs.claim(session, worker=1, size=4)] == ["job-0", "job-1"]
    assert [j.key for j in jobs.claim(session, worker=1, size=4, without=["job-2"])] == ["job-3"]
    assert [j.key for j in jobs.claim(session, worker=1, size=4)] == ["job-2"]


def test_a_done_job_is_not_queued_again(session: Session) -> None:
    jobs.submit(session, some_jobs(1))
    (job,) = jobs.claim(session, worker=1, size=1)
    jobs.complete(session, job, PICTURE)
    assert jobs.submit(session, some_jobs(1)) == 0
    assert state_of(session, job.key) is JobState.SUCCEEDED


def test_jobs_of_a_worker_whose_connection_died_are_free_at_once(own_database: Database) -> None:
    with own_database.direct() as alive:
        with own_database.direct() as dying:
            for connection, number in ((alive, 11), (dying, 22)):
                connection.execute("SELECT pg_advisory_lock(%s, %s)", [LOCK_SPACE, number])
            with own_database.transaction() as session:
                jobs.submit(session, some_jobs(4))
                jobs.claim(session, worker=11, size=2)
                jobs.claim(session, worker=22, size=2)
            with own_database.transaction() as session:
                assert jobs.reap(session) == 0
        freed = 0
        deadline = time.monotonic() + 120
        while not freed and time.monotonic() < deadline:  # the server notices a closed connection in its own time
            with own_database.transaction() as session:
                freed = jobs.reap(session)
        assert freed == 2
        with own_database.transaction() as session:
            assert [j.key for j in jobs.claim(session, worker=33, size=8)] == [j.key for j in some_jobs(4)[2:]]


def test_a_worker_never_reaps_itself(own_database: Database) -> None:
    with own_database.transaction() as session:
        jobs.submit(session, some_jobs(1))
        jobs.claim(session, worker=5, size=1)
    with own_database.transaction() as session:
        assert jobs.reap(session, me=5) == 0
        assert jobs.reap(session, me=6) == 1


def test_a_heartbeat_keeps_the_lease(session: Session) -> None:
    jobs.submit(session, some_jobs(1))
    jobs.claim(session, worker=1, size=1, lease_s=-5)
    jobs.extend_lease(session, worker=1, lease_s=60)
    assert jobs.reap(session, me=1) == 0


@pytest.mark.parametrize("workers", [2, 8])
def test_many_workers_at_once_take_every_job_exactly_once(own_database: Database, workers: int) -> None:
    with own_database.transaction() as session:
        jobs.submit(session, some_jobs(60))
    taken: list[ClaimedJob] = []

    def work(number: int) -> None:
        while True:
            with own_database.transaction() as session:
                batch = jobs.claim(session, worker=number, size=4)
            if not batch:
                return
            taken.extend(batch)

    crew = [threading.Thread(target=work, args=(n,)) for n in range(1, workers + 1)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    assert sorted(j.key for j in taken) == [j.key for j in some_jobs(60)]


def test_a_job_that_kills_every_worker_is_set_aside(session: Session) -> None:
    jobs.submit(session, some_jobs(1))
    for number in range(1, MAX_LOST + 1):
        assert len(jobs.claim(session, worker=number, size=1)) == 1
        assert jobs.reap(session) == 1
    assert state_of(session, some_jobs(1)[0].key) is JobState.FAILED
    assert jobs.claim(session, worker=99, size=1) == []


def test_a_worker_takes_only_what_its_models_can_make(session: Session) -> None:
    jobs.submit(session, [*some_jobs(2, "sd15/abc/512"), *some_jobs(2, "sdxl/def/1024")])
    assert {j.batch_key for j in jobs.claim(session, worker=1, size=8, models="sdxl/def/")} == {"sdxl/def/1024"}
    assert jobs.claim(session, worker=1, size=8, models="flux/") == []


def test_ten_thousand_jobs_are_one_submission(session: Session) -> None:
    many = some_jobs(11_000)
    assert jobs.submit(session, many) == 11_000
    assert jobs.submit(session, many) == 0
    assert jobs.states(session, [j.key for j in many]) == {JobState.QUEUED: 11_000}
