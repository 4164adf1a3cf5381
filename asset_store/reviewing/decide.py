"""The events of review: each locks the asset, looks the transition up, and writes its rows beside the change.

An asset is locked before the audit chain, and decisions are of one version: a new version starts with none.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session, lazyload

from asset_store import audit
from asset_store.canonical import sha256_of
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
from asset_store.reviewing.policy import CHECKS_STAGE, ReviewPolicy, Stage, choose_stage, policy_of
from asset_store.reviewing.states import Availability, ReviewEvent, ReviewState, next_state
from asset_store.tables import Asset, AssetVersion, Check, CheckOutcome, Decision, LineageRecord, Retake, Verdict

SYSTEM = "system"
GUEST = "guest:"  # before the name of who comes by a share link
KEY, AGENT = "key:", "agent:"  # before the name of a key, "of" its owner: a program's, an AI agent's
OWNED = (KEY, AGENT)
NOT_A_PERSON = (SYSTEM, "flow:", *OWNED, GUEST)  # how names of actors that are no people begin


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a check found; `value` and `threshold` in the check's own unit, None where it has none."""

    name: str
    outcome: CheckOutcome
    message: str
    policy_version: str
    value: float | None = None
    threshold: float | None = None


def unfilled(stages: Iterable[Stage], decisions: Iterable[Decision]) -> tuple[str, ...]:
    """Those of the stages that these decisions leave short of approvals, each person counted once a stage."""
    approvers: dict[str, set[str]] = {}
    for d in decisions:
        if d.verdict is Verdict.APPROVE:
            approvers.setdefault(d.stage, set()).add(name_of(d.by))
    return tuple(s.name for s in stages if len(approvers.get(s.name, ())) < s.quorum)


def standing_decisions(session: Session, version_id: uuid.UUID) -> Sequence[Decision]:
    """The verdicts on a version that count: those after it was last reopened and not taken back, oldest first."""
    reopened = (
        select(func.coalesce(func.max(Decision.seq), 0))
        .where(Decision.version_id == version_id, Decision.verdict == Verdict.REOPEN)
        .scalar_subquery()
    )
    said = session.scalars(
        select(Decision)
        .where(Decision.version_id == version_id, Decision.seq > reopened)
        .where(Decision.verdict.in_((*VERDICTS, Verdict.TAKE_BACK)))
        .order_by(Decision.seq)
    )
    standing: list[Decision] = []
    for decision in said:
        if decision.verdict is Verdict.TAKE_BACK:
            standing.pop()  # only the newest is ever taken back
        else:
            standing.append(decision)
    return standing


def submit(session: Session, asset_id: uuid.UUID, by: str, blob_known: Callable[[str], bool]) -> Asset:
    """draft -> checking. BlobMissing where `blob_known(sha256)` is false; LineageIncomplete without a full record."""
    asset, version = lock_asset(session, asset_id)
    after = next_state(asset.review, ReviewEvent.SUBMIT)
    if not blob_known(version.sha256):
        raise BlobMissing(version.sha256, "the blob store")
    record = session.scalar(select(LineageRecord.record).where(LineageRecord.version_id == version.id))
    if missing := ["its whole record"] if record is None else incomplete(record):
        raise LineageIncomplete(f"asset {asset_id}", missing)
    return move(session, asset, version, ReviewEvent.SUBMIT, after, by)


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
    if passed:
        _enter(asset, 0)
    return move(session, asset, version, event, after, by, {result.name: result.outcome.value for result in results})


def waive(session: Session, asset_id: uuid.UUID, by: str, reason: str) -> Asset:
    """check failed -> in review, by a person with a reason, which stands among the decisions."""
    asset, version = lock_asset(session, asset_id)
    after = next_state(asset.review, ReviewEvent.WAIVE)
    need_person(by, "waive a check")
    need_reason(reason, "waive a check")
    _say(session, asset, version, CHECKS_STAGE, Verdict.WAIVE, by, reason)
    _enter(asset, 0)
    return move(session, asset, version, ReviewEvent.WAIVE, after, by, {"reason": reason})


def decide(
    session: Session,
    asset_id: uuid.UUID,
    verdict: Verdict,
    by: str,
    reason: str,
    seen_sha256: str,
    expected_row_version: int | None = None,
    stage: str | None = None,
) -> Asset:
    """What `by` says of the picture they saw, at a stage that the asset waits at.

    A stage is filled by as many people as its quorum asks for; the round ends when all its stages are filled. Anything
    but an approval is stricter than any approval and takes effect at once, and a rejection is stricter than a request
    for changes: it may still follow one. StaleVersion where another picture or, if given, another row version is
    current; TransitionRefused where it is not in review; StageRefused; FourEyes; ReasonMissing.
    """
    asset, version = lock_asset(session, asset_id)
    if verdict not in VERDICTS:
        raise TransitionRefused(asset.review, verdict)
    if seen_sha256 != version.sha256:
        raise StaleVersion("picture", seen_sha256, version.sha256)
    if expected_row_version is not None:
        need_row_version(asset, expected_row_version)
    event = VERDICTS[verdict]
    next_state(asset.review, event)
    policy = policy_of(asset.campaign)
    at = choose_stage(asset.waits_at, stage)
    if verdict is Verdict.APPROVE:
        _need_four_eyes(session, asset, version, by)
    else:
        need_reason(reason, verdict.value)
    _say(session, asset, version, at, verdict, by, reason)
    if verdict is Verdict.APPROVE:
        event = _approved(session, asset, version, policy)
    after = next_state(asset.review, event)
    return move(session, asset, version, event, after, by, {"stage": at, "verdict": verdict, "reason": reason})


def _approved(session: Session, asset: Asset, version: AssetVersion, policy: ReviewPolicy) -> ReviewEvent:
    """What one more approval does to the round that the asset is in."""
    session.flush()
    stages = policy.round_at(asset.stage)
    if waits_at := unfilled(stages, standing_decisions(session, version.id)):
        _wait(asset, stages, waits_at)
        return ReviewEvent.ENDORSE
    if asset.stage < len(policy.rounds) - 1:
        _enter(asset, asset.stage + 1)
        return ReviewEvent.ADVANCE
    _wait(asset, stages, ())
    return ReviewEvent.APPROVE


def reopen(session: Session, asset_id: uuid.UUID, by: str, reason: str) -> Asset:
    """Back into review at the first stage, before release. The decisions so far stay, and count no more."""
    asset, version = lock_asset(session, asset_id)
    after = next_state(asset.review, ReviewEvent.REOPEN)
    _need_picture(asset, ReviewEvent.REOPEN)
    if asset.availability is not Availability.UNRELEASED:
        raise TransitionRefused(asset.availability, ReviewEvent.REOPEN)
    need_person(by, "reopen an asset")
    need_reason(reason, "reopen an asset")
    last = policy_of(asset.campaign).round_at(asset.stage)[-1].name
    _say(session, asset, version, last, Verdict.REOPEN, by, reason)
    _enter(asset, 0)
    return move(session, asset, version, ReviewEvent.REOPEN, after, by, {"reason": reason})


def take_back(session: Session, asset_id: uuid.UUID, by: str) -> Asset:
    """Undo one's own decision, while it is the newest that counts and before release; what was decided before it by others
    stands. TransitionRefused where it is another's, none is there, or a stricter one stands before it."""
    asset, version = lock_asset(session, asset_id)
    after = next_state(asset.review, ReviewEvent.TAKE_BACK)
    _need_picture(asset, ReviewEvent.TAKE_BACK)
    if asset.availability is not Availability.UNRELEASED:
        raise TransitionRefused(asset.availability, ReviewEvent.TAKE_BACK)
    said = standing_decisions(session, version.id)
    last, standing = said[-1] if said else None, said[:-1]
    stricter = any(d.verdict is not Verdict.APPROVE for d in standing)
    if last is None or name_of(last.by) != name_of(by) or stricter:
        raise TransitionRefused(asset.review, ReviewEvent.TAKE_BACK)
    _say(session, asset, version, last.stage, Verdict.TAKE_BACK, by, "")
    rounds = policy_of(asset.campaign).rounds
    index = next(i for i, stages in enumerate(rounds) if unfilled(stages, standing))
    if index != asset.stage or asset.round_at is None:
        _enter(asset, index)
    _wait(asset, rounds[index], unfilled(rounds[index], standing))
    told = {"stage": last.stage, "verdict": last.verdict.value}
    return move(session, asset, version, ReviewEvent.TAKE_BACK, after, by, told)


VERDICTS = {
    Verdict.APPROVE: ReviewEvent.APPROVE,
    Verdict.REQUEST_CHANGES: ReviewEvent.REQUEST_CHANGES,
    Verdict.REJECT: ReviewEvent.REJECT,
}


def lock_all(session: Session, asset_ids: Iterable[uuid.UUID]) -> None:
    """Hold these assets until the transaction ends, in one order for all who do: the audit's lock comes after."""
    wanted = select(Asset.id).where(Asset.id.in_(sorted(set(asset_ids)))).order_by(Asset.id)
    session.execute(wanted.with_for_update(of=Asset)).all()


def lock_asset(session: Session, asset_id: uuid.UUID) -> tuple[Asset, AssetVersion]:
    """The asset as it is now, held until the transaction ends, with its current version; NotFound without one."""
    its = (
        select(Asset).where(Asset.id == asset_id).options(lazyload(Asset.campaign))
    )  # that never changes, and is large
    asset = session.scalar(its.with_for_update(of=Asset).execution_options(populate_existing=True))
    if asset is None:
        raise NotFound("asset", str(asset_id))
    session.expire(asset, ["versions"])
    if asset.current is None:
        raise NotFound("picture of asset", str(asset_id), "Run its campaign again: the picture is made.")
    return asset, asset.current


def _enter(asset: Asset, index: int) -> None:
    """Begin a round of stages: their time runs from now."""
    asset.stage, asset.round_at = index, datetime.now(UTC)
    stages = policy_of(asset.campaign).round_at(index)
    _wait(asset, stages, [s.name for s in stages])


def _wait(asset: Asset, stages: Iterable[Stage], waits_at: Collection[str]) -> None:
    """Wait at these of the stages, until the first time by which one of them is to decide."""
    due = [s.due_hours for s in stages if s.name in waits_at and s.due_hours is not None]
    asset.waits_at = list(waits_at)
    asset.due_at = asset.round_at + timedelta(hours=min(due)) if due and asset.round_at is not None else None


def move(
    session: Session,
    asset: Asset,
    version: AssetVersion,
    event: ReviewEvent,
    after: ReviewState,
    by: str,
    detail: dict[str, Any] | None = None,
) -> Asset:
    before, asset.review = asset.review, after
    if after is not ReviewState.IN_REVIEW:
        asset.due_at = None
        if after is not ReviewState.CHANGES_REQUESTED:  # there a stricter word may still be said
            asset.waits_at = []
    session.flush()
    session.expire(version, ["checks", "decisions"])
    facts = {"from": before.value, "to": after.value, "version": version.number, "sha256": version.sha256}
    audit.record(session, by, event.value, f"asset {asset.id}", {**facts, **(detail or {})})
    return asset


def _say(
    session: Session, asset: Asset, version: AssetVersion, stage: str, verdict: Verdict, by: str, reason: str
) -> None:
    """A decision, bound to the bytes that were seen, to what the checks had found and to the policy's version."""
    found = [[c.name, c.outcome.value, c.value, c.threshold, c.policy_version] for c in version.checks]
    session.add(
        Decision(
            version_id=version.id, stage=stage, verdict=verdict, by=by, reason=reason, seen_sha256=version.sha256,
            checks_sha256=sha256_of(found), policy_sha256=policy_of(asset.campaign).sha256,
        )
    )  # fmt: skip


def _need_picture(asset: Asset, event: ReviewEvent) -> None:
    if asset.removed_at is not None:
        on = asset.removed_at.date().isoformat()
        raise TransitionRefused(f"{asset.review}, whose picture was removed on {on},", event)


def need_row_version(asset: Asset, seen: int) -> None:
    """StaleVersion where the asset was changed since it was seen so."""
    if seen != asset.row_version:
        raise StaleVersion("row version", str(seen), str(asset.row_version))


def need_reason(reason: str, action: str) -> None:
    if not reason.strip():
        raise ReasonMissing(action)


def need_person(by: str, action: str) -> None:
    if not by.strip() or name_of(by).startswith(NOT_A_PERSON):
        raise FourEyes(by or "nobody", f"only a person may {action}")


def _need_four_eyes(session: Session, asset: Asset, version: AssetVersion, by: str) -> None:
    need_person(by, "approve")
    if is_same(by, asset.campaign.requested_by):
        raise FourEyes(by, "they asked for it")
    retaken = select(Retake.by).where(Retake.asset_id == asset.id)
    if any(is_same(by, who) for who in session.scalars(retaken)):
        raise FourEyes(by, "they had it made anew")
    for decision in standing_decisions(session, version.id):
        if decision.verdict is Verdict.APPROVE and is_same(decision.by, by):
            raise FourEyes(by, f"they approved it at the stage {decision.stage}")


def person_behind(actor: str) -> str:
    """The person who answers for an actor: a key's owner ("key:calendar of pat", "agent:planner of pat"), else the actor themselves."""
    name = name_of(actor)
    return name.rpartition(" of ")[2] if name.startswith(OWNED) else name


def is_same(one: str, other: str) -> bool:
    """Whether two actors are, or may well be, one person: `pat` of a terminal is taken for pat@lumen.example of a browser.
    Four eyes rather refuse a namesake than let one person be two."""
    a, b = person_behind(one), person_behind(other)
    if a == b:
        return True
    return ("@" in a) != ("@" in b) and a.partition("@")[0] == b.partition("@")[0]


def name_of(person: str) -> str:
    """What makes two names the same person."""
    return person.strip().casefold()
