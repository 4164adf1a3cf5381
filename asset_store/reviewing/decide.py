"""The events of review: each locks the asset, looks the transition up, and writes its rows beside the change.

An asset is locked before the audit chain, and decisions are of one version: a new version starts with none.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from asset_store import audit
from asset_store.errors import (
    BlobMissing,
    FourEyes,
    LineageIncomplete,
    NotFound,
    ReasonMissing,
    StaleVersion,
    TransitionRefused,
)
from asset_store.lineage.record import incomplete
from asset_store.reviewing.states import Availability, ReviewEvent, ReviewState, next_state
from asset_store.tables import Asset, AssetVersion, Check, CheckOutcome, Decision, LineageRecord, Verdict

DEFAULT_STAGES = ("brand",)
CHECKS_STAGE = "checks"  # where a waiver stands among the decisions
SYSTEM = "system"
NOT_A_PERSON = ("system", "flow:", "key:")  # how names of actors that are no people begin


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a check found; `value` and `threshold` in the check's own unit, None where it has none."""

    name: str
    outcome: CheckOutcome
    message: str
    policy_version: str
    value: float | None = None
    threshold: float | None = None


def stages_of(asset: Asset) -> tuple[str, ...]:
    """The stages that the asset goes through, in order."""
    return tuple(asset.campaign.stages) or DEFAULT_STAGES


def standing_decisions(session: Session, version_id: uuid.UUID) -> Sequence[Decision]:
    """The verdicts on a version that count: those after it was last reopened, oldest first."""
    reopened = (
        select(func.coalesce(func.max(Decision.seq), 0))
        .where(Decision.version_id == version_id, Decision.verdict == Verdict.REOPEN)
        .scalar_subquery()
    )
    return session.scalars(
        select(Decision)
        .where(Decision.version_id == version_id, Decision.seq > reopened, Decision.verdict.in_(VERDICTS))
        .order_by(Decision.seq)
    ).all()


def submit(session: Session, asset_id: uuid.UUID, by: str, blob_known: Callable[[str], bool]) -> Asset:
    """draft -> checking. BlobMissing where `blob_known(sha256)` is false; LineageIncomplete without a full record."""
    asset, version = lock_asset(session, asset_id)
    after = next_state(asset.review, ReviewEvent.SUBMIT)
    if not blob_known(version.sha256):
        raise BlobMissing(version.sha256, "the blob store")
    record = session.scalar(select(LineageRecord.record).where(LineageRecord.version_id == version.id))
    if missing := ["its whole record"] if record is None else incomplete(record):
        raise LineageIncomplete(f"asset {asset_id}", missing)
    return _move(session, asset, version, ReviewEvent.SUBMIT, after, by)


def finish_checks(session: Session, asset_id: uuid.UUID, results: Iterable[CheckResult], by: str = SYSTEM) -> Asset:
    """checking -> in review where at least one check ran and each passed or warned, else -> check failed.

    A check that did not run is not one that passed: it takes a waiver, as a failed one does.
    """
    asset, version = lock_asset(session, asset_id)
    results = list(results)
    passed = bool(results) and all(result.outcome in (CheckOutcome.PASS, CheckOutcome.WARN) for result in results)
    event = ReviewEvent.CHECKS_PASSED if passed else ReviewEvent.CHECKS_FAILED
    after = next_state(asset.review, event)
    session.add_all(Check(version_id=version.id, **asdict(result)) for result in results)
    asset.stage = 0
    return _move(session, asset, version, event, after, by, {result.name: result.outcome.value for result in results})


def waive(session: Session, asset_id: uuid.UUID, by: str, reason: str) -> Asset:
    """check failed -> in review, by a person with a reason, which stands among the decisions."""
    asset, version = lock_asset(session, asset_id)
    after = next_state(asset.review, ReviewEvent.WAIVE)
    _need_person(by, "waive a check")
    _need_reason(reason, "waive a check")
    _say(session, version, CHECKS_STAGE, Verdict.WAIVE, by, reason)
    asset.stage = 0
    return _move(session, asset, version, ReviewEvent.WAIVE, after, by, {"reason": reason})


def decide(
    session: Session,
    asset_id: uuid.UUID,
    verdict: Verdict,
    by: str,
    reason: str,
    seen_sha256: str,
    expected_row_version: int | None = None,
) -> Asset:
    """What `by` says of the picture they saw, at the stage the asset is in.

    One approver fills a stage. An approval leads to the next stage or, at the last, to approved; anything else is
    stricter than any approval and takes effect at once. StaleVersion where another picture or, if given, another row
    version is current; TransitionRefused where it is not in review; FourEyes; ReasonMissing.
    """
    asset, version = lock_asset(session, asset_id)
    if verdict not in VERDICTS:
        raise TransitionRefused(asset.review, verdict)
    if seen_sha256 != version.sha256:
        raise StaleVersion("picture", seen_sha256, version.sha256)
    if expected_row_version is not None and expected_row_version != asset.row_version:
        raise StaleVersion("row version", str(expected_row_version), str(asset.row_version))
    stages = stages_of(asset)
    event = VERDICTS[verdict]
    if event is ReviewEvent.APPROVE and asset.stage < len(stages) - 1:
        event = ReviewEvent.ADVANCE
    after = next_state(asset.review, event)
    if verdict is Verdict.APPROVE:
        _need_four_eyes(session, asset, version, by)
    else:
        _need_reason(reason, verdict.value)
    stage = stages[min(asset.stage, len(stages) - 1)]
    _say(session, version, stage, verdict, by, reason)
    if event is ReviewEvent.ADVANCE:
        asset.stage += 1
    return _move(session, asset, version, event, after, by, {"stage": stage, "verdict": verdict, "reason": reason})


def reopen(session: Session, asset_id: uuid.UUID, by: str, reason: str) -> Asset:
    """Back into review at the first stage, before release. The decisions so far stay, and count no more."""
    asset, version = lock_asset(session, asset_id)
    after = next_state(asset.review, ReviewEvent.REOPEN)
    if asset.availability is not Availability.UNRELEASED:
        raise TransitionRefused(asset.availability, ReviewEvent.REOPEN)
    _need_person(by, "reopen an asset")
    _need_reason(reason, "reopen an asset")
    stages = stages_of(asset)
    _say(session, version, stages[min(asset.stage, len(stages) - 1)], Verdict.REOPEN, by, reason)
    asset.stage = 0
    return _move(session, asset, version, ReviewEvent.REOPEN, after, by, {"reason": reason})


VERDICTS = {
    Verdict.APPROVE: ReviewEvent.APPROVE,
    Verdict.REQUEST_CHANGES: ReviewEvent.REQUEST_CHANGES,
    Verdict.REJECT: ReviewEvent.REJECT,
}


def lock_asset(session: Session, asset_id: uuid.UUID) -> tuple[Asset, AssetVersion]:
    """The asset as it is now, held until the transaction ends, with its current version; NotFound without one."""
    asset = session.scalar(
        select(Asset).where(Asset.id == asset_id).with_for_update(of=Asset).execution_options(populate_existing=True)
    )
    if asset is None:
        raise NotFound("asset", str(asset_id))
    session.expire(asset, ["versions"])
    if asset.current is None:
        raise NotFound("picture of asset", str(asset_id), "Run its campaign again: the picture is made.")
    return asset, asset.current


def _move(
    session: Session,
    asset: Asset,
    version: AssetVersion,
    event: ReviewEvent,
    after: ReviewState,
    by: str,
    detail: dict[str, Any] | None = None,
) -> Asset:
    before, asset.review = asset.review, after
    session.flush()
    session.expire(version, ["checks", "decisions"])
    facts = {"from": before.value, "to": after.value, "version": version.number, "sha256": version.sha256}
    audit.record(session, by, event.value, f"asset {asset.id}", {**facts, **(detail or {})})
    return asset


def _say(session: Session, version: AssetVersion, stage: str, verdict: Verdict, by: str, reason: str) -> None:
    session.add(
        Decision(version_id=version.id, stage=stage, verdict=verdict, by=by, reason=reason, seen_sha256=version.sha256)
    )


def _need_reason(reason: str, action: str) -> None:
    if not reason.strip():
        raise ReasonMissing(action)


def _need_person(by: str, action: str) -> None:
    if not by.strip() or _name(by).startswith(NOT_A_PERSON):
        raise FourEyes(by or "nobody", f"only a person may {action}")


def _need_four_eyes(session: Session, asset: Asset, version: AssetVersion, by: str) -> None:
    _need_person(by, "approve")
    if _name(by) == _name(asset.campaign.requested_by):
        raise FourEyes(by, "they asked for it")
    for decision in standing_decisions(session, version.id):
        if decision.verdict is Verdict.APPROVE and _name(decision.by) == _name(by):
            raise FourEyes(by, f"they approved it at the stage {decision.stage}")


def _name(person: str) -> str:
    return person.strip().casefold()
