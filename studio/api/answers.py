"""What the API answers with: plain values of the store's rows."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from asset_store.people.permissions import Action, Principal
from asset_store.reviewing.comments import Remark
from asset_store.reviewing.grid import Counts, Listed
from asset_store.tables import ApiKey, Asset, AssetVersion, Assignment, AuditRow, Check, Person, Proposal, Role


class Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class CheckOut(Answer):
    name: str
    outcome: str
    value: float | None
    threshold: float | None
    message: str
    policy_version: str

    @classmethod
    def of(cls, check: Check) -> CheckOut:
        return cls(
            name=check.name, outcome=check.outcome.value, value=check.value, threshold=check.threshold,
            message=check.message, policy_version=check.policy_version,
        )  # fmt: skip


class VersionOut(Answer):
    """`sha256` is what a decision on this picture echoes; `picture` is where its bytes are, unless they were removed: `removed_at`."""

    id: uuid.UUID
    number: int
    parent_id: uuid.UUID | None
    sha256: str
    width_px: int
    height_px: int
    made_at: datetime
    picture: str
    removed_at: datetime | None
    checks: list[CheckOut]

    @classmethod
    def of(cls, version: AssetVersion, removed_at: datetime | None) -> VersionOut:
        return cls(
            id=version.id, number=version.number, parent_id=version.parent_id, sha256=version.sha256,
            width_px=version.width_px, height_px=version.height_px, made_at=version.made_at,
            picture=f"/v1/assets/{version.asset_id}/pictures/{version.sha256}", removed_at=removed_at,
            checks=[CheckOut.of(c) for c in version.checks],
        )  # fmt: skip


class AssetOut(Answer):
    """`waits_at`: the stages that lack an approval now; `row_version`: the ETag's number."""

    id: uuid.UUID
    brand: str
    campaign: str
    character: str
    shot: str
    variant: int
    review: str
    availability: str
    waits_at: list[str]
    due_at: datetime | None
    row_version: int
    made_at: datetime
    current: VersionOut | None

    @classmethod
    def of(cls, asset: Asset) -> AssetOut:
        return cls(
            id=asset.id, brand=asset.campaign.brand.name, campaign=asset.campaign.name, character=asset.character, shot=asset.shot,
            variant=asset.variant, review=asset.review.value, availability=asset.availability.value,
            waits_at=list(asset.waits_at), due_at=asset.due_at, row_version=asset.row_version, made_at=asset.made_at,
            current=None if asset.current is None else VersionOut.of(asset.current, asset.removed_at),
        )  # fmt: skip

    @classmethod
    def listed(cls, listed: Listed) -> AssetOut:
        """One of many."""
        tile = listed.tile
        current = tile.sha256 and VersionOut.model_validate(
            {
                "id": listed.version_id,
                "number": tile.number,
                "parent_id": listed.parent_id,
                "sha256": tile.sha256,
                "width_px": listed.width_px,
                "height_px": listed.height_px,
                "made_at": listed.made_at,
                "picture": f"/v1/assets/{tile.id}/pictures/{tile.sha256}",
                "removed_at": tile.removed_at,
                "checks": listed.checks or [],
            }
        )
        return cls(
            id=tile.id, brand=tile.brand, campaign=tile.campaign, character=tile.character, shot=tile.shot, variant=tile.variant,
            review=tile.review.value, availability=tile.availability.value, waits_at=list(tile.waits_at), due_at=tile.due_at,
            row_version=tile.row_version, made_at=tile.made_at, current=current or None,
        )  # fmt: skip


class CountsOut(Answer):
    """Of the newest 500 assets that pass the filters, how many are in each review state; `more`: there are others behind those."""

    by_state: dict[str, int]
    more: bool

    @classmethod
    def of(cls, counts: Counts) -> CountsOut:
        return cls(by_state=counts.by_state, more=counts.more)


class AssetPage(Answer):
    """`next_after`: the `after` of the next page; null at the end. `counts`: where they are asked for, whatever the page's review
    state."""

    assets: list[AssetOut]
    next_after: str | None
    counts: CountsOut | None = None


class DecisionOut(Answer):
    """One item of a bulk: the asset as it is now, or the problem that kept it as it was."""

    asset_id: uuid.UUID
    asset: AssetOut | None = None
    problem: dict[str, Any] | None = None


class DecisionsOut(Answer):
    results: list[DecisionOut]


class CommentOut(Answer):
    id: uuid.UUID
    version_id: uuid.UUID
    version: int
    by: str
    text: str
    region: Mapping[str, Any] | None
    reply_to: uuid.UUID | None
    edited: bool
    made_at: datetime

    @classmethod
    def of(cls, remark: Remark) -> CommentOut:
        return cls(
            id=remark.id, version_id=remark.version_id, version=remark.version, by=remark.by, text=remark.text,
            region=remark.region, reply_to=remark.reply_to, edited=remark.edited, made_at=remark.made_at,
        )  # fmt: skip


class CommentsOut(Answer):
    comments: list[CommentOut]


class AssignmentOut(Answer):
    stage: str
    person: str
    by: str
    made_at: datetime

    @classmethod
    def of(cls, row: Assignment) -> AssignmentOut:
        return cls(stage=row.stage, person=row.person, by=row.by, made_at=row.made_at)


class AssignmentsOut(Answer):
    assignments: list[AssignmentOut]


class ProposalOut(Answer):
    id: uuid.UUID
    asset_id: uuid.UUID
    event: str
    reason: str
    impact: dict[str, Any]
    by: str
    state: str
    made_at: datetime

    @classmethod
    def of(cls, row: Proposal) -> ProposalOut:
        return cls(
            id=row.id, asset_id=row.asset_id, event=row.event.value, reason=row.reason, impact=row.impact, by=row.by,
            state=row.state.value, made_at=row.made_at,
        )  # fmt: skip


class RoleOut(Answer):
    role: Role
    brand: str | None
    stage: str | None


class MeOut(Answer):
    """Who is asking, and what they may do. `actions` by brand; `csrf` is what a browser sends with changes."""

    actor: str
    name: str
    is_person: bool
    is_agent: bool
    actions: dict[str, list[Action]]
    csrf: str | None = Field(None, description="null for keys, which need none")


class PersonOut(Answer):
    handle: str
    name: str
    disabled: bool
    roles: list[RoleOut]

    @classmethod
    def of(cls, person: Person, brands: Mapping[uuid.UUID, str]) -> PersonOut:
        roles = [
            RoleOut(role=g.role, brand=None if g.brand_id is None else brands.get(g.brand_id), stage=g.stage)
            for g in person.grants
        ]
        return cls(handle=person.handle, name=person.name, disabled=person.disabled_at is not None, roles=roles)


class PeopleOut(Answer):
    people: list[PersonOut]


class LinkOut(Answer):
    """Where somebody signs in with it; the token stands behind the #, which no server sees."""

    address: str


class EndedOut(Answer):
    """How many sessions were ended."""

    ended: int


class KeyOut(Answer):
    name: str
    owner: str
    scopes: list[str]
    expires_at: datetime
    revoked: bool
    used_at: datetime | None
    agent: bool
    secret: str | None = Field(None, description="once, in the answer that made it")

    @classmethod
    def of(cls, key: ApiKey, secret: str | None = None) -> KeyOut:
        return cls(
            name=key.name, owner=key.owner.handle, scopes=key.scopes, expires_at=key.expires_at,
            revoked=key.revoked_at is not None, used_at=key.used_at, agent=key.agent, secret=secret,
        )  # fmt: skip


class KeysOut(Answer):
    keys: list[KeyOut]


class AuditRowOut(Answer):
    seq: int
    at: datetime
    actor: str
    action: str
    subject: str
    detail: dict[str, Any]
    sha256: str

    @classmethod
    def of(cls, row: AuditRow) -> AuditRowOut:
        return cls(
            seq=row.seq, at=row.at, actor=row.actor, action=row.action, subject=row.subject, detail=row.detail,
            sha256=row.sha256,
        )  # fmt: skip


class AuditPage(Answer):
    rows: list[AuditRowOut]
    next_before: int | None


class CampaignOut(Answer):
    """`review`: how many of its assets are in each state."""

    id: uuid.UUID
    name: str
    brand: str
    stages: list[Any]
    requested_by: str
    made_at: datetime
    review: dict[str, int]


class CampaignsOut(Answer):
    campaigns: list[CampaignOut]
    next_after: str | None


def abilities(who: Principal, brands: Mapping[uuid.UUID, str]) -> dict[str, list[Action]]:
    """What they may do, by brand; "*" is what belongs to no brand."""
    able = {name: [a for a in Action if who.may(a, id_)] for id_, name in brands.items()}
    everywhere = [a for a in Action if who.may(a, None)]
    return {"*": everywhere} | {name: actions for name, actions in able.items() if actions}
