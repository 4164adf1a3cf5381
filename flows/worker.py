"""The worker loop, one for every mode: reap, claim a batch, generate, and finish it while the next one runs."""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

import psycopg
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session

from asset_store.errors import RightsRefused
from asset_store.repositories import jobs as job_table
from asset_store.repositories.jobs import CHANNEL, LOCK_SPACE, ClaimedJob
from asset_store.retention import name_blobs
from asset_store.tables import JobState
from flows import finishing
from flows.looking import Finished, store_picture
from flows.progress import report
from flows.recipes import models_key, obstacle
from flows.requesting import requests_of
from flows.wiring import Store
from ipadapter_engine.errors import EngineError, GenerationFailed, RequestRefused
from ipadapter_engine.requests import GeneratedImage, GenerationRequest

if TYPE_CHECKING:
    from ipadapter_engine.engines import PictureEngine

LEASE_S = 60.0
HEARTBEAT_S = 10.0
IDLE_WAIT_S = 2.0
RECONNECT_S = 2.0
LOOK_S = 1.0  # between looks for whether a batch is still wanted
RETRY_S = 30.0  # a job that this worker cannot make is left to others for so long
PATIENCE_S = 600.0  # for a worker that can make it, before a job is set aside


@dataclass
class WorkerTally:
    """What a worker did so far."""

    made: int = 0
    failed: int = 0
    lost: int = 0  # finished here, but another worker's picture counted
    batches: int = 0
    engine_s: float = 0.0
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Made:
    """A job's pictures, one a candidate, and how they were made."""

    job: ClaimedJob
    pictures: list[GeneratedImage]
    run: dict[str, Any]


class Worker:
    """Pulls jobs and makes pictures until told to stop. Killing it at any moment loses nothing: its advisory lock is
    freed with its connection, and whoever comes next queues its unfinished jobs again."""

    def __init__(
        self, store: Store, engine: PictureEngine, *, name: str = "", batch_size: int | None = None,
        patience_s: float = PATIENCE_S, engine_name: str = "",
    ) -> None:  # fmt: skip
        """engine_name: of a further engine, whose own settings hold."""
        self.store, self.engine = store, engine
        self.name = name or f"{socket.gethostname()}/{os.getpid()}"
        self.number = random.SystemRandom().randrange(1, 2**31)
        own = store.settings.engines[engine_name] if engine_name else store.settings.engine
        self.batch_size = batch_size or own.max_batch or engine.family.max_batch
        self.patience_s = patience_s
        self.tally = WorkerTally()
        self._cannot: dict[str, float] = {}  # keys of jobs that other workers may make, and until when they are left
        self._stop = threading.Event()
        self._ended = threading.Event()
        self._warm = ""
        self._models = models_key(engine)
        self._where = _where(engine)

    def stop(self) -> None:
        """Finish the batch under way, then end."""
        self._stop.set()

    def run(self, until: Callable[[], bool] | None = None) -> WorkerTally:
        """Work until `stop`, or until `until()` is true with nothing left to claim."""
        with self.store.database.direct() as connection, ThreadPoolExecutor(1, thread_name_prefix="finish") as finisher:
            connection.execute("SELECT pg_advisory_lock(%s, %s)", [LOCK_SPACE, self.number])
            connection.execute(f"LISTEN {CHANNEL}")
            beat = threading.Thread(target=self._heartbeat, name="heartbeat", daemon=True)
            beat.start()
            pending: Future[None] | None = None
            try:
                while not self._stop.is_set():
                    connection.execute("SELECT 1")  # without its lock, what it claims would be taken from it at once
                    batch = self._claim()
                    if batch:
                        for made in self._generate(batch):
                            if pending is not None:
                                pending.result()
                            pending = finisher.submit(self._finish, made)
                        continue
                    if pending is not None:
                        pending.result()
                        pending = None
                    if until is not None and until():
                        break
                    self._wait(connection)
                if pending is not None:
                    pending.result()
            finally:
                self._ended.set()
                beat.join(timeout=HEARTBEAT_S)
        return self.tally

    # ------------------------------------------------------------------ the steps

    def _claim(self) -> list[ClaimedJob]:
        with self.store.database.transaction() as session:
            job_table.reap(session, me=self.number)
            self._cannot = {key: until for key, until in self._cannot.items() if until > time.monotonic()}
            batch = job_table.claim(
                session, worker=self.number, size=self.batch_size, warm=self._warm, models=self._models,
                without=list(self._cannot), lease_s=LEASE_S,
            )  # fmt: skip
        if batch:
            self._warm = batch[0].batch_key
        return batch

    def _generate(self, batch: list[ClaimedJob]) -> Iterator[list[_Made]]:
        """Pictures of the jobs that may be made, a batch of the engine at a time so that each can be finished while the
        next one runs; the others are cancelled, given back or fail with their evidence. Once told to stop, what is not
        under way is given back."""
        ready: list[tuple[ClaimedJob, list[GenerationRequest]]] = []
        for job in batch:
            if (lacks := obstacle(self.engine, job.recipe)) is not None:  # another worker may make it
                self._release(job, lacks)
                continue
            try:
                ready.append((job, requests_of(self.store, self.engine, job.recipe)))
            except RightsRefused as error:
                self._cancel(job, error.message)
            except RequestRefused as error:
                self._fail(job, f"{error.message}: {error.next_step}", final=True)
            except Exception as error:
                self._fail(job, f"{type(error).__name__}: {error}")
        while ready:
            if self._stop.is_set():
                for job, _ in ready:
                    self._release(job)
                return
            count = _fitting([len(requests) for _, requests in ready], self.batch_size)
            now, ready = ready[:count], ready[count:]
            if made := self._drawn(now):
                yield made

    def _drawn(self, ready: list[tuple[ClaimedJob, list[GenerationRequest]]]) -> list[_Made]:
        asked = [r for _, requests in ready for r in requests]
        began = time.monotonic()
        try:
            unwanted = _Unwanted(self.store, [job for job, _ in ready])
            pictures = iter(self.engine.generate(asked, max_batch=self.batch_size, on_step=unwanted.look))
        except _NobodyWaits:
            self.tally.problems.append(f"{len(ready)} cancelled while they were made")
            return []
        except GenerationFailed as error:
            self.batch_size = max(1, self.batch_size // 2)  # the next batches fit, or one picture alone does not
            for job, _ in ready:
                self._fail(job, error.message)
            return []
        except Exception as error:
            final = isinstance(error, RequestRefused)
            if final and len(ready) > 1:  # before anything was made: one job's fault is not the others'
                return [made for one in ready for made in self._drawn([one])]
            for job, _ in ready:
                self._fail(
                    job,
                    error.message if isinstance(error, EngineError) else f"{type(error).__name__}: {error}",
                    final=final,
                )
            return []
        took = time.monotonic() - began
        self.tally.batches += 1
        self.tally.engine_s += took
        run = {
            "worker": self.name,
            **self._where,
            "noise_device": "cpu",
            "batch": len(asked),
            "engine_s": round(took / len(asked), 4),
            "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        return [_Made(job, list(islice(pictures, len(requests))), run) for job, requests in ready]

    def _finish(self, made: list[_Made]) -> None:
        """Blobs first, then one transaction a job: a row never names a missing blob."""
        try:
            thresholds = finishing.thresholds_for(self.store, [m.job.key for m in made], self.engine)
        except Exception as error:
            for m in made:
                self._fail(m.job, f"{type(error).__name__}: {error}")
            return
        for m in made:
            try:
                done = [store_picture(self.store, p.image, self.engine, finite=p.finite) for p in m.pictures]
                with self.store.database.transaction() as session:
                    self._name(session, done)
                    counted = finishing.finish_job(session, m.job, done, m.run, self.engine, thresholds)
                self.tally.made += counted
                self.tally.lost += not counted
                report("made", self.tally.made, 0)
            except RightsRefused as error:
                self._cancel(m.job, error.message)
            except RequestRefused as error:  # as in best_of, where an embedding is gone
                self._fail(m.job, f"{error.message}: {error.next_step}", final=True)
            except Exception as error:
                self._fail(m.job, f"{type(error).__name__}: {error}")

    def _name(self, session: Session, done: list[Finished]) -> None:
        """A picture may be what was rejected and removed once."""
        data = {d.sha256: d.data for d in done}
        name_blobs(session, data, lambda sha256: self.store.blobs.put(data[sha256], "image/png"))

    def _fail(self, job: ClaimedJob, message: str, *, final: bool = False) -> None:
        with self.store.database.transaction() as session:
            job_table.fail(session, job, message, final=final)
        self.tally.failed += 1
        self.tally.problems.append(message)

    def _release(self, job: ClaimedJob, lacks: str = "") -> None:
        """Give a job back, for at most `patience_s` in all where the worker lacks something to make it."""
        with self.store.database.transaction() as session:
            state = job_table.release(session, job, 0.0, why=lacks, patience_s=self.patience_s)
        if lacks:
            self._cannot[job.key] = time.monotonic() + min(RETRY_S, self.patience_s)
        if state is JobState.FAILED:
            self.tally.failed += 1
            self.tally.problems.append(lacks)

    def _cancel(self, job: ClaimedJob, message: str) -> None:
        with self.store.database.transaction() as session:
            job_table.cancel(session, job, message)
        self.tally.problems.append(message)

    # ------------------------------------------------------------------ liveness

    def _wait(self, connection: psycopg.Connection) -> None:
        """Sleep until a job is announced, at most IDLE_WAIT_S."""
        for _ in connection.notifies(timeout=IDLE_WAIT_S, stop_after=1):
            pass

    def _heartbeat(self) -> None:
        """Extend the leases, from a thread and a connection of its own, while the engine is busy."""
        while not self._ended.wait(HEARTBEAT_S):
            try:
                with self.store.database.transaction() as session:
                    job_table.extend_lease(session, worker=self.number, lease_s=LEASE_S)
            except Exception as error:  # the database may be away for a moment; the lease outlives several beats
                self.tally.problems.append(f"heartbeat: {type(error).__name__}")


def _where(engine: PictureEngine) -> dict[str, str]:
    """What run records say of the machine that made a picture."""
    from ipadapter_engine.engines import (  # it loads torch, which those who only import a worker go without
        denoiser_of,
        device_of,
    )

    return {"device": str(device_of(engine)), "dtype": str(denoiser_of(engine).dtype).removeprefix("torch.")}


class _NobodyWaits(Exception):
    """All jobs of the batch were cancelled while the engine was at it."""


class _Unwanted:
    """Looks between two steps of the engine, every LOOK_S, whether anybody still wants the batch."""

    def __init__(self, store: Store, batch: list[ClaimedJob]) -> None:
        self.store, self.keys = store, [job.key for job in batch]
        self._looked_at = time.monotonic()

    def look(self, done: int, of: int) -> None:
        if done == of or time.monotonic() - self._looked_at < LOOK_S:
            return
        self._looked_at = time.monotonic()
        with suppress(SQLAlchemyError), self.store.database.reading() as session:
            found = job_table.states(session, self.keys)
            if found.get(JobState.CANCELLED) == len(set(self.keys)):
                raise _NobodyWaits


def _fitting(counts: list[int], most: int) -> int:
    """How many jobs, from the first on, fit into one batch of the engine with all their candidates; at least one."""
    total = 0
    for place, count in enumerate(counts):
        total += count
        if total > most and place:
            return place
    return len(counts)


def work_until_told(
    store: Store, engine: PictureEngine, *, batch_size: int | None = None, engine_name: str = ""
) -> WorkerTally:
    """`onmodel worker`: run until SIGTERM or Ctrl-C, finishing the batch under way. A database that goes away is
    waited for: its jobs are queued again as soon as a worker is back."""
    worker = Worker(store, engine, batch_size=batch_size, engine_name=engine_name)
    told = threading.Event()

    def end(*_: object) -> None:
        told.set()
        worker.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    while True:
        try:
            return worker.run()
        except OperationalError as error:
            if told.is_set():
                return worker.tally
            tally, worker = worker.tally, Worker(store, engine, batch_size=batch_size)
            worker.tally = tally
            worker.tally.problems.append(f"database: {str(error).splitlines()[0]}")
            told.wait(RECONNECT_S)
            if told.is_set():
                return worker.tally
