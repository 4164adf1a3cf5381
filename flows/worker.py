"""The worker loop, one for every mode: reap, claim a batch, generate, and finish it while the next one runs."""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import psycopg
from sqlalchemy.exc import OperationalError

from asset_store.errors import RightsRefused
from asset_store.repositories import jobs as job_table
from asset_store.repositories import libraries
from asset_store.repositories.jobs import CHANNEL, LOCK_SPACE, ClaimedJob
from asset_store.rights import licences
from flows import finishing
from flows.planning import models_key
from flows.progress import report
from flows.wiring import Store
from ipadapter_engine.errors import EngineError, GenerationFailed, RequestRefused
from ipadapter_engine.pipeline import Engine
from ipadapter_engine.requests import GeneratedImage, GenerationRequest, ReferencePrompt

LEASE_S = 60.0
HEARTBEAT_S = 10.0
IDLE_WAIT_S = 2.0
RECONNECT_S = 2.0


@dataclass
class WorkerTally:
    """What a worker did so far."""

    made: int = 0
    failed: int = 0
    lost: int = 0  # finished here, but another worker's picture counted
    batches: int = 0
    engine_s: float = 0.0
    problems: list[str] = field(default_factory=list)


class Worker:
    """Pulls jobs and makes pictures until told to stop. Killing it at any moment loses nothing: its advisory lock is
    freed with its connection, and whoever comes next queues its unfinished jobs again."""

    def __init__(self, store: Store, engine: Engine, *, name: str = "", batch_size: int | None = None) -> None:
        self.store, self.engine = store, engine
        self.name = name or f"{socket.gethostname()}/{os.getpid()}"
        self.number = random.SystemRandom().randrange(1, 2**31)
        self.batch_size = batch_size or store.settings.engine.max_batch or engine.family.max_batch
        self.tally = WorkerTally()
        self._stop = threading.Event()
        self._ended = threading.Event()
        self._warm = ""
        self._models = models_key(engine)

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
                        made = self._generate(batch)
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
            batch = job_table.claim(
                session, worker=self.number, size=self.batch_size, warm=self._warm, models=self._models, lease_s=LEASE_S
            )
        if batch:
            self._warm = batch[0].batch_key
        return batch

    def _generate(self, batch: list[ClaimedJob]) -> list[tuple[ClaimedJob, GeneratedImage, dict[str, Any]]]:
        """Pictures of the jobs that may be made; the others are cancelled or fail with their evidence."""
        ready: list[tuple[ClaimedJob, GenerationRequest]] = []
        for job in batch:
            try:
                ready.append((job, self._request(job)))
            except RightsRefused as error:
                self._cancel(job, error.message)
            except RequestRefused as error:
                self._fail(job, error.message, final=True)
            except Exception as error:
                self._fail(job, f"{type(error).__name__}: {error}")
        if not ready:
            return []
        began = time.monotonic()
        try:
            pictures = self.engine.generate([r for _, r in ready], max_batch=self.batch_size)
        except GenerationFailed as error:
            self.batch_size = max(1, self.batch_size // 2)  # the next batches fit, or one picture alone does not
            for job, _ in ready:
                self._fail(job, error.message)
            return []
        except Exception as error:
            final = isinstance(error, RequestRefused)
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
            "device": str(self.engine.checkpoint.unet.device),
            "dtype": str(self.engine.checkpoint.unet.dtype).removeprefix("torch."),
            "noise_device": "cpu",
            "batch": len(ready),
            "engine_s": round(took / len(ready), 4),
            "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        return [(job, picture, run) for (job, _), picture in zip(ready, pictures, strict=True)]

    def _request(self, job: ClaimedJob) -> GenerationRequest:
        """A recipe as a request; references must be usable today and made for the models that are loaded."""
        recipe = job.recipe
        loaded = [m.sha256 for m in self.engine.models]
        if [m["sha256"] for m in recipe["models"]] != loaded:
            raise RequestRefused("the job was planned for other models than this worker has loaded",
                                 "start a worker with the models of the campaign, or plan it again")  # fmt: skip
        with self.store.database.transaction() as session:
            licences.check_usable(session, [uuid.UUID(r["id"]) for r in recipe["references"]], datetime.now(UTC).date())
            found = libraries.embeddings_of(
                session, {r["sha256"] for r in recipe["references"]}, self.engine.encoder.sha256
            )
        references = []
        for r in recipe["references"]:
            row = found.get(r["sha256"])
            if row is None:
                raise RequestRefused(f"{r['key']} has no embedding of this encoder", "ingest its library again")
            if self.engine.needs_hidden:
                if row.hidden_sha256 is None:
                    raise RequestRefused(f"{r['key']} has no hidden states", "ingest its library again")
                raw = np.frombuffer(self.store.blobs.get(row.hidden_sha256), dtype=np.float16)
                vector = raw.reshape(-1, self.engine.encoder.hidden_dim).astype(np.float32)
            else:
                vector = np.asarray(row.pooled, dtype=np.float32)
            references.append(ReferencePrompt(vector, r["weight"]))
        return GenerationRequest(
            recipe["prompt"], recipe["seed"], tuple(references), recipe["negative_prompt"], recipe["scale"],
            (recipe["window"][0], recipe["window"][1]), recipe["width_px"], recipe["height_px"], recipe["steps"],
            recipe["guidance"], recipe["scheduler"],
        )  # fmt: skip

    def _finish(self, made: list[tuple[ClaimedJob, GeneratedImage, dict[str, Any]]]) -> None:
        """Blobs first, then one transaction a picture: a row never names a missing blob."""
        for job, picture, run in made:
            try:
                done = finishing.store_picture(self.store, picture.image, self.engine, finite=picture.finite)
                with self.store.database.transaction() as session:
                    counted = finishing.finish_job(session, job, done, run, self.engine)
                self.tally.made += counted
                self.tally.lost += not counted
                report("made", self.tally.made, 0)
            except RightsRefused as error:
                self._cancel(job, error.message)
            except Exception as error:
                self._fail(job, f"{type(error).__name__}: {error}")

    def _fail(self, job: ClaimedJob, message: str, *, final: bool = False) -> None:
        with self.store.database.transaction() as session:
            job_table.fail(session, job, message, final=final)
        self.tally.failed += 1
        self.tally.problems.append(message)

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


def work_until_told(store: Store, engine: Engine, *, batch_size: int | None = None) -> WorkerTally:
    """`onmodel worker`: run until SIGTERM or Ctrl-C, finishing the batch under way. A database that goes away is
    waited for: its jobs are queued again as soon as a worker is back."""
    worker = Worker(store, engine, batch_size=batch_size)
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
