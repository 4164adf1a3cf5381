"""Catches what an event or a worker lost: jobs of dead workers, done jobs whose assets have no version yet, and pictures that cannot
be found by their likeness yet. Removes rejected pictures that are kept no longer."""

from __future__ import annotations

import asyncio

from prefect import flow
from sqlalchemy import select

from asset_store.repositories import jobs as job_table
from asset_store.reviewing import similar
from asset_store.tables import Asset, Job, JobState
from flows import finishing, retention
from flows.wiring import engine, open_store

MOST_EMBEDDED = 500  # pictures a sweep
BY = "flow:sweep"


@flow(name="sweep")
async def sweep() -> dict[str, int]:
    """Take up what an event or a worker lost, and remove rejected pictures that are kept no longer. Safe to run at any time and from
    several places."""
    return await asyncio.to_thread(_sweep)


def _sweep() -> dict[str, int]:
    with open_store() as store:
        with store.database.transaction() as session:
            reaped = job_table.reap(session)
            job_table.make_anew(session)
            waiting = session.scalars(
                select(Asset.job_key)
                .join(Job, Job.key == Asset.job_key)
                .where(Job.state == JobState.SUCCEEDED, Job.picture_sha256.is_not(None), finishing.waits_for_its_job())
                .distinct()
                .limit(1000)
            ).all()
            encoder = similar.newest_encoder(session)
            unseen = encoder is not None and similar.unseen(session, encoder, 1)
        found = finishing.attach_waiting(store, waiting, engine(store.settings)) if waiting else finishing.Attached(0)
        embedded = finishing.embed_pictures(store, engine(store.settings), MOST_EMBEDDED) if unseen else 0
        kept = retention.apply(store, retention.policy_of(store.settings), by=BY)
    return {"reaped": reaped, "attached": found.jobs, "refused": len(found.refused), "embedded": embedded, **kept}
