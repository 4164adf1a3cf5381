"""Removing the bytes of pictures that have stood rejected for as long as a policy says; their rows stay.

A removal is written first, in one transaction with its audit row, and its blob is put down to be deleted; then it is deleted. What a
crash left undeleted is deleted later. So a row names a blob that is there, or a removal stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, Text, and_, any_, cast, delete, exists, func, or_, select, union, update
from sqlalchemy.dialects.postgresql import ARRAY, JSONPATH, insert
from sqlalchemy.orm import Session

from asset_store import audit
from asset_store.reviewing.states import ReviewState
from asset_store.tables import (
    Asset,
    AssetVersion,
    Decision,
    Delivery,
    Embedding,
    Job,
    JobState,
    Preset,
    Reference,
    Removal,
    RemovedBlob,
    Run,
    TrainedModel,
    Verdict,
)

MOST_AT_ONCE = 200  # pictures a transaction
ACTION = "remove pictures"
HELD = datetime.fromtimestamp(0, UTC)  # when a row was made that is there for others to wait at
_UNSEEN: dict[str, Any] = {"synchronize_session": False}  # no such row is looked at as an object here


@dataclass(frozen=True, slots=True)
class Policy:
    """Rejected pictures go when the decision that rejected them is older than so many days."""

    rejected_days: int

    @property
    def told(self) -> str:
        return f"rejected for {self.rejected_days} days"

    def cutoff(self, now: datetime) -> datetime:
        return now - timedelta(days=self.rejected_days)


@dataclass(frozen=True, slots=True)
class Due:
    """What the policy removes, and what it would remove if nothing else named it: sha256 of pictures."""

    removed: tuple[str, ...]
    kept: tuple[str, ...]


def due(session: Session, policy: Policy, now: datetime) -> Due:
    """What there is to remove at that time. Nothing is changed."""
    overdue = select(AssetVersion.sha256).join(Asset).where(_is_due(policy.cutoff(now)), ~_is_removed())
    found = session.scalars(overdue.distinct()).all()
    named = _named_elsewhere(session, found, policy.cutoff(now))
    return Due(tuple(sorted(set(found) - named)), tuple(sorted(named)))


def remove(session: Session, sha256s: Collection[str], policy: Policy, by: str, now: datetime) -> int:
    """Write the removal of those of these pictures that are due still, MOST_AT_ONCE at most, and put their blobs down to be deleted;
    the versions that lose their bytes. Their jobs hold no picture any more: who asks for one again has it made anew."""
    cutoff = policy.cutoff(now)
    its = AssetVersion.sha256 == any_(_array(sha256s))
    jobs_of = select(Job).where(Job.key.in_(select(AssetVersion.job_key).where(its))).order_by(Job.key)
    held = set(sha256s).union(*({c["sha256"] for c in _candidates(job)} for job in session.scalars(jobs_of)))
    _hold(session, held)  # so that what is asked below who names them stays true until the end
    # In the order in which finishing a job locks: the blobs, the job, its assets, the audit. FOR UPDATE holds up whoever begins to wait for it.
    jobs = session.scalars(jobs_of.with_for_update(of=Job).execution_options(populate_existing=True)).all()
    assets_of = select(AssetVersion.asset_id).where(its)
    assets = session.scalars(
        select(Asset)
        .where(Asset.id.in_(assets_of))
        .order_by(Asset.id)
        .with_for_update(of=Asset)
        .execution_options(populate_existing=True)
    ).all()
    still = select(AssetVersion).join(Asset).where(its, _is_due(cutoff), ~_is_removed()).order_by(AssetVersion.id)
    versions = session.scalars(still).all()
    named = _named_elsewhere(session, {v.sha256 for v in versions}, cutoff)
    versions = [v for v in versions if v.sha256 not in named]
    gone = {v.sha256 for v in versions}
    session.add_all(Removal(version_id=v.id, sha256=v.sha256, policy=policy.told, by=by, made_at=now) for v in versions)
    for job in jobs:
        if job.picture_sha256 in gone:
            job.picture_sha256 = None
    session.flush()
    candidates = {c["sha256"] for job in jobs if job.picture_sha256 is None for c in _candidates(job)} & held - gone
    doomed = gone | (candidates - names(session, candidates))
    session.execute(
        update(RemovedBlob).where(_of(doomed)).values(made_at=now, deleted_at=None).execution_options(**_UNSEEN)
    )
    unmarked = delete(RemovedBlob).where(_of(held), RemovedBlob.made_at == HELD)
    session.execute(unmarked.execution_options(**_UNSEEN))
    of = {asset.id: [v for v in versions if v.asset_id == asset.id] for asset in assets}
    for asset in assets:
        if any(v.number == asset.current_number for v in of[asset.id]):
            asset.removed_at = now
    session.flush()
    for id_, mine in of.items():
        if mine:
            told = {"policy": policy.told, "versions": [v.number for v in mine], "sha256s": [v.sha256 for v in mine]}
            audit.record(session, by, ACTION, f"asset {id_}", told)
    return len(versions)


def pending(session: Session, after: str = "") -> list[str]:
    """The next of the blobs that were put down to be deleted, by sha256, MOST_AT_ONCE at most. What a row names by now is kept, and is
    not put down any more."""
    rows = select(RemovedBlob.sha256).where(RemovedBlob.deleted_at.is_(None), RemovedBlob.sha256 > after)
    found = session.scalars(rows.order_by(RemovedBlob.sha256).limit(MOST_AT_ONCE)).all()
    locked = select(RemovedBlob.sha256).where(_of(found)).with_for_update(skip_locked=True)
    named = names(session, session.scalars(locked).all())
    session.execute(delete(RemovedBlob).where(_of(named)).execution_options(**_UNSEEN))
    return list(found)


def delete_pending(session: Session, sha256: str, delete_blob: Callable[[str], None], now: datetime) -> bool:
    """Have a blob deleted if it is put down for it still; whether it was. It is held meanwhile, so that `call_off` waits. A transaction
    has one, so that another that cannot be deleted holds up neither it nor who waits for it."""
    its = select(RemovedBlob.sha256).where(RemovedBlob.sha256 == sha256, RemovedBlob.deleted_at.is_(None))
    if session.scalar(its.with_for_update(skip_locked=True)) is None:
        return False
    delete_blob(sha256)
    session.execute(update(RemovedBlob).where(_of([sha256])).values(deleted_at=now).execution_options(**_UNSEEN))
    return True


def name_blobs(session: Session, sha256s: Collection[str], store_again: Callable[[str], object]) -> None:
    """For whoever stored blobs and is about to name them in rows: none of them is removed until the transaction ends, and then the rows
    name them. What was put down to be deleted meanwhile, or was deleted, is handed to `store_again`.

    Call it once, before anything else is locked or recorded: `remove` locks in that order, too.
    """
    for sha256 in sorted(call_off(session, sha256s)):
        store_again(sha256)


def call_off(session: Session, sha256s: Collection[str]) -> set[str]:
    """Those of these blobs that were deleted or put down for it: they stay from now on, as the caller's transaction names them. Where one
    is deleted just now, that is waited for: the caller stores them once more."""
    again = _hold(session, sha256s)
    session.execute(delete(RemovedBlob).where(_of(sha256s)).execution_options(**_UNSEEN))
    return again


def _hold(session: Session, sha256s: Collection[str]) -> set[str]:
    """Be the only transaction to name, remove or delete these blobs until it ends, and those of them that were put down before. The rest
    have a row made at HELD, for others to wait at; it goes before the transaction ends, and nobody else sees it."""
    if not sha256s:
        return set()
    rows = insert(RemovedBlob).values([{"sha256": sha256, "made_at": HELD} for sha256 in sorted(set(sha256s))])
    held = rows.on_conflict_do_update(index_elements=["sha256"], set_={"sha256": rows.excluded.sha256})
    found = session.execute(held.returning(RemovedBlob.sha256, RemovedBlob.made_at))
    return {sha256 for sha256, made_at in found if made_at != HELD}


def names(session: Session, sha256s: Collection[str]) -> set[str]:
    """Those of these blobs that a row names: all but the versions whose bytes were removed."""
    mine = select(AssetVersion.sha256).where(~_is_removed())
    pictures = select(Job.picture_sha256).where(Job.picture_sha256.is_not(None))
    return _among([mine, pictures, *_named_by()], session, sha256s)


def all_named() -> Iterable[Select[Any]]:
    """Questions for every blob that a row names."""
    yield select(AssetVersion.sha256).where(~_is_removed()).distinct()
    yield select(Job.picture_sha256).distinct()
    yield from _named_by()


def _named_elsewhere(session: Session, sha256s: Collection[str], cutoff: datetime) -> set[str]:
    """Those of these pictures that something else names than versions that are due, and the jobs that made those."""
    kept = select(AssetVersion.sha256).join(Asset).where(~_is_removed(), ~_is_due(cutoff))
    delivered = select(AssetVersion.sha256).join(Delivery, Delivery.version_id == AssetVersion.id)
    its_own = exists().where(AssetVersion.job_key == Job.key, AssetVersion.sha256 == Job.picture_sha256)
    made = exists().where(AssetVersion.asset_id == Asset.id, AssetVersion.job_key == Job.key)
    awaited = exists().where(Asset.job_key == Job.key, ~made)
    pictures = select(Job.picture_sha256).where(or_(~its_own, awaited))
    return _among([kept, delivered, pictures, *_named_by(Job.picture_sha256)], session, sha256s)


def _named_by(chosen: Any = None) -> Iterable[Select[Any]]:
    """Questions for what rows name besides versions and jobs' pictures. chosen: not as the candidate that was kept."""
    for column in (
        Reference.sha256,
        Embedding.hidden_sha256,
        TrainedModel.sha256,
        Preset.picture_sha256,
        Delivery.sha256,
    ):
        yield select(column).distinct()
    held = Job.picture_sha256.is_not(None)  # of a picture that was removed the candidates are garbage, too
    for document, path, where in (
        (Job.recipe, "$.controls[*].sha256", None), (Job.recipe, "$.source.sha256", None),
        (Job.recipe, "$.source.mask_sha256", None), (Job.recipe, "$.regions[*].sha256", None),
        (Job.picture, "$.run.candidates[*].sha256", held), (Run.result, "$.files.*", None), (Run.result, "$.cells[*].sha256", None),
    ):  # fmt: skip
        value = func.jsonb_path_query(document, cast(path, JSONPATH)).op("#>>")(cast([], ARRAY(Text)))
        rows = select(
            value.label("sha256"), *([chosen.label("chosen")] if chosen is not None and where is held else [])
        )
        found = (rows if where is None else rows.where(where)).subquery()
        named = select(found.c.sha256).distinct()
        yield named.where(found.c.sha256 != found.c.chosen) if "chosen" in found.c else named


def _among(questions: Iterable[Select[Any]], session: Session, sha256s: Collection[str]) -> set[str]:
    if not sha256s:
        return set()
    asked = _array(sha256s)
    columns = [question.subquery().columns[0] for question in questions]
    return set(session.scalars(union(*(select(column).where(column == any_(asked)) for column in columns))))


def _is_due(cutoff: datetime) -> ColumnElement[bool]:
    """Whether an asset has stood rejected since then: the newest decision that rejected it was before."""
    its = select(func.max(Decision.made_at)).join(AssetVersion, AssetVersion.id == Decision.version_id)
    rejected_at = its.where(AssetVersion.asset_id == Asset.id, Decision.verdict == Verdict.REJECT).correlate(Asset)
    return and_(Asset.review == ReviewState.REJECTED, rejected_at.scalar_subquery() <= cutoff)


def _is_removed() -> ColumnElement[bool]:
    return exists().where(Removal.version_id == AssetVersion.id)


def _candidates(job: Job) -> list[dict[str, str]]:
    run = (job.picture or {}).get("run", {})
    candidates: list[dict[str, str]] = run.get("candidates", []) if job.state is JobState.SUCCEEDED else []
    return candidates


def _of(sha256s: Collection[str]) -> ColumnElement[bool]:
    """Which rows of removed blobs are of these."""
    return RemovedBlob.sha256 == any_(_array(sha256s))


def _array(sha256s: Collection[str]) -> ColumnElement[Sequence[str]]:
    """As one value: a statement binds at most 65,535."""
    return cast(sorted(sha256s), ARRAY(Text))
