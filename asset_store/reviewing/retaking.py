"""Making an asset anew: the next version of its stack, from what its reviewers asked for."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from asset_store.errors import RetakeRefused, StaleVersion, TransitionRefused
from asset_store.repositories import jobs as job_table
from asset_store.repositories.jobs import NewJob
from asset_store.reviewing.decide import lock_asset, move
from asset_store.reviewing.policy import policy_of
from asset_store.reviewing.states import ReviewEvent, ReviewState, next_state
from asset_store.tables import Asset, AssetVersion, Job, JobState, Retake


@dataclass(frozen=True, slots=True)
class Change:
    """One setting of the picture, as a producer reads it before it runs."""

    name: str
    before: Any
    after: Any

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "before": self.before, "after": self.after}


def begin(
    session: Session, asset_id: uuid.UUID, job: NewJob, changes: Sequence[Change], by: str, seen_sha256: str,
    comments: Sequence[uuid.UUID] = (),
) -> Retake:  # fmt: skip
    """changes requested | check failed -> draft: the asset waits for `job`, whose picture is its next version. So does a
    draft whose retake came to nothing, as its job failed or was cancelled.

    Who has a picture made anew asked for it, and may not approve it; nor may the owner of a key that has. RetakeRefused where nothing changes, a version was
    made by the same job before, or the campaign's cap is reached; StaleVersion; TransitionRefused.
    """
    asset, version = lock_asset(session, asset_id)
    after = next_state(asset.review, ReviewEvent.RETAKE)
    if asset.review is ReviewState.DRAFT and not came_to_nothing(session, asset):
        raise TransitionRefused(asset.review, ReviewEvent.RETAKE)
    if seen_sha256 != version.sha256:
        raise StaleVersion("picture", seen_sha256, version.sha256)
    made = session.scalars(select(AssetVersion.job_key).where(AssetVersion.asset_id == asset_id)).all()
    if not changes or job.key in made:
        raise RetakeRefused("nothing is changed: the same picture would come", "Change a setting, such as the seed.")
    spent, most = retakes_of(session, asset_id), policy_of(asset.campaign).retakes
    if spent >= most:
        raise RetakeRefused(
            f"asset {asset_id} was made anew {spent} times, as often as its campaign allows",
            "Reject it and ask for another shot, or allow more in a new brief (`retakes:`).",
        )
    job_table.submit(session, [job])
    row = Retake(
        asset_id=asset_id, number=_asked(session, asset_id) + 1, parent_id=version.id, job_key=job.key,
        changes=[c.as_json() for c in changes], comments=[str(c) for c in comments], by=by,
    )  # fmt: skip
    session.add(row)
    asset.job_key = job.key
    told = {"retake": spent + 1, "job": job.key, "changes": row.changes, "comments": row.comments}
    move(session, asset, version, ReviewEvent.RETAKE, after, by, told)
    return row


def came_to_nothing(session: Session, asset: Asset) -> bool:
    """Whether the asset waits for a picture of a job that was set aside or cancelled."""
    state = session.scalar(select(Job.state).where(Job.key == asset.job_key))
    return state in (JobState.FAILED, JobState.CANCELLED)


def retakes_of(session: Session, asset_id: uuid.UUID) -> int:
    """How often the asset was made anew; what came to nothing does not count."""
    lost = (JobState.FAILED, JobState.CANCELLED)
    rows = select(func.count()).select_from(Retake).join(Job, Job.key == Retake.job_key)
    return session.scalars(rows.where(Retake.asset_id == asset_id, Job.state.not_in(lost))).one()


def _asked(session: Session, asset_id: uuid.UUID) -> int:
    return session.scalars(select(func.count()).select_from(Retake).where(Retake.asset_id == asset_id)).one()


def retake_of(session: Session, asset_id: uuid.UUID, job_key: str) -> Retake | None:
    """The retake that this job's picture is for; None where it is the first version's."""
    return session.scalar(
        select(Retake).where(Retake.asset_id == asset_id, Retake.job_key == job_key).order_by(Retake.number.desc())
    )
