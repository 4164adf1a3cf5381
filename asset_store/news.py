"""What of the audit is told to others, under which name, and how what it is of stands now: assets, and runs at their end."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from asset_store.reviewing.decide import person_behind
from asset_store.reviewing.states import AvailabilityEvent, ReviewEvent
from asset_store.tables import (
    Asset,
    AssetVersion,
    Assignment,
    AuditRow,
    Campaign,
    Descent,
    Reference,
    ReferenceState,
    Run,
    RunState,
    Subscription,
)

OVERDUE = "overdue"
ACTIONS = frozenset(
    {*(e.value for e in ReviewEvent), *(e.value for e in AvailabilityEvent), "ask to reinstate", "ask to withdraw",
     "assign", "unassign", "comment", "correct", "retract", OVERDUE}
)  # fmt: skip
RUN_FINISHED, NEEDS_REVIEW, APPROVED, RECALLED = (
    "run.finished",
    "asset.needs_review",
    "asset.approved",
    "asset.recalled",
)
EVENTS = (RUN_FINISHED, NEEDS_REVIEW, APPROVED, RECALLED)
# Actions of the audit that end a run, and those after which an asset waits at a stage it did not wait at before.
ENDS_RUN = frozenset({f"run {RunState.SUCCEEDED.value}", f"run {RunState.FAILED.value}", "cancel run", "skip run"})
ENTERS_STAGE = frozenset(
    {ReviewEvent.CHECKS_PASSED, ReviewEvent.WAIVE, ReviewEvent.ADVANCE, ReviewEvent.REOPEN, ReviewEvent.TAKE_BACK}
)


@dataclass(frozen=True, slots=True)
class News:
    """A row of the audit as it is told.

    type: the event that was asked for, else `asset.` and the action. about: the asset or run as it stands now. asked: addresses of
    who is asked to decide, or asked for the run.
    """

    seq: int
    id: str
    type: str
    action: str
    at: datetime
    actor: str
    detail: dict[str, Any]
    kind: Literal["asset", "run"]
    about: dict[str, Any]
    asked: tuple[str, ...]

    def as_json(self, address: str) -> dict[str, Any]:
        """address: where the pages are; empty where nobody has said so."""
        return {
            "id": self.id, "seq": self.seq, "type": self.type, "action": self.action, "at": self.at.isoformat(), "actor": self.actor,
            "link": self.link(address) or None, self.kind: self.about, "detail": self.detail,
        }  # fmt: skip

    def link(self, address: str) -> str:
        """The page of what it is of."""
        return f"{address.rstrip('/')}/{self.kind}s/{self.about['id']}" if address else ""


def news_of(session: Session, row: AuditRow, wanted: Subscription) -> News | None:
    """What a subscription is told of a row; None where that does not concern it."""
    kind, _, id_ = row.subject.partition(" ")
    if kind == "run" and RUN_FINISHED in wanted.actions and row.action in ENDS_RUN:
        return _of_run(session, row, uuid.UUID(id_), wanted)
    if kind == "asset" and row.action in ACTIONS:
        return _of_asset(session, row, uuid.UUID(id_), wanted)
    return None


def _of_run(session: Session, row: AuditRow, id_: uuid.UUID, wanted: Subscription) -> News | None:
    run = session.get(Run, id_)
    if run is None or (wanted.brand_id is not None and run.brand_id != wanted.brand_id):
        return None
    campaign = None if run.campaign_id is None else session.get_one(Campaign, run.campaign_id)
    its = select(func.count()).select_from(AssetVersion).join(Asset, Asset.id == AssetVersion.asset_id)
    made = its.where(Asset.campaign_id == run.campaign_id, AssetVersion.made_at <= run.finished_at)
    about = {
        "id": str(run.id), "kind": run.kind.value, "brand": run.brand.name, "state": run.state.value,
        "requested_by": run.requested_by, "reason": run.reason, "trigger": run.trigger, "problem": run.problem,
        "campaign": None if campaign is None else campaign.name, "pictures": run.pictures,
        "made": run.done if campaign is None else session.scalar(made) or 0,
        "finished_at": None if run.finished_at is None else run.finished_at.isoformat(),
    }  # fmt: skip
    asked = tuple(person for person in [person_behind(run.requested_by)] if "@" in person)
    return News(row.seq, row.sha256, RUN_FINISHED, row.action, row.at, row.actor, row.detail, "run", about, asked)


def _of_asset(session: Session, row: AuditRow, id_: uuid.UUID, wanted: Subscription) -> News | None:
    if wanted.actions and row.action not in wanted.actions and set(wanted.actions).isdisjoint(EVENTS):
        return None
    asset = session.get(Asset, id_)
    if asset is None or (wanted.brand_id is not None and asset.campaign.brand_id != wanted.brand_id):
        return None
    event = _event(session, row, asset)
    if event in wanted.actions:
        type_ = str(event)
    elif not wanted.actions or row.action in wanted.actions:
        type_ = f"asset.{row.action.replace(' ', '_')}"
    else:
        return None
    asked = session.scalars(
        select(Assignment.person).where(Assignment.asset_id == asset.id, Assignment.stage.in_(asset.waits_at))
    )
    about = {
        "id": str(asset.id), "brand": asset.campaign.brand.name, "campaign": asset.campaign.name, "shot": asset.shot,
        "variant": asset.variant, "review": asset.review.value, "availability": asset.availability.value,
        "waits_at": list(asset.waits_at),
    }  # fmt: skip
    addresses = tuple(sorted({person for person in asked if "@" in person}))
    return News(row.seq, row.sha256, type_, row.action, row.at, row.actor, row.detail, "asset", about, addresses)


def _event(session: Session, row: AuditRow, asset: Asset) -> str | None:
    """The event that a row about an asset is, if it is one."""
    if row.action in ENTERS_STAGE:
        return NEEDS_REVIEW
    if row.action == ReviewEvent.APPROVE:
        return APPROVED
    if row.action == AvailabilityEvent.SUSPEND and "reference" in row.detail:  # by a recall, not by a person's own word
        return RECALLED
    if row.action == AvailabilityEvent.WITHDRAW:
        its = exists().where(
            AssetVersion.asset_id == asset.id, Descent.version_id == AssetVersion.id, Reference.id == Descent.reference_id,
            Reference.state == ReferenceState.WITHDRAWN,
        )  # fmt: skip
        return RECALLED if session.scalar(select(its)) else None
    return None
