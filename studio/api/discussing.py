"""`/v1`: comments and pins, and who is asked to decide."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import Field
from sqlalchemy.orm import Session

from asset_store.errors import NotFound
from asset_store.people.permissions import Action, Principal
from asset_store.reviewing import assigning, comments
from asset_store.tables import AssetVersion, Comment
from studio.api.answers import AssignmentOut, AssignmentsOut, CommentOut, CommentsOut
from studio.api.assets import Asked
from studio.api.callers import Idempotency, StoreDep, Who, need
from studio.api.changing import seen_asset
from studio.api.once import answered

router = APIRouter(tags=["discussing"])
Text = Annotated[str, Field(min_length=1, max_length=comments.LONGEST_TEXT)]


class CommentIn(Asked):
    """`id` is chosen by who writes: sent twice, it is written once. `region`: a pin, box or path in 0 to 1 of the sides."""

    id: uuid.UUID
    version_id: uuid.UUID
    text: Text
    region: Annotated[dict[str, Any] | None, Field(examples=[{"kind": "pin", "x": 0.4, "y": 0.2}], max_length=5)] = None
    reply_to: uuid.UUID | None = None


class CorrectionIn(Asked):
    id: uuid.UUID
    text: Text


class AssignmentIn(Asked):
    stage: Annotated[str, Field(max_length=200)]
    person: Annotated[str, Field(max_length=254)]


@router.get("/assets/{asset_id}/comments")
def get_comments(asset_id: uuid.UUID, who: Who, store: StoreDep) -> CommentsOut:
    """What stands of all versions, the oldest first."""
    with store.database.reading() as session:
        return _comments(session, seen_asset(session, asset_id, who).id)


@router.post("/assets/{asset_id}/comments", status_code=201)
def write_comment(asset_id: uuid.UUID, body: CommentIn, who: Who, store: StoreDep) -> CommentOut:
    """Say something of a version, or of a place in it."""
    with store.database.transaction() as session:
        asset = seen_asset(session, asset_id, who, Action.COMMENT)
        version = session.get(AssetVersion, body.version_id)
        if version is None or version.asset_id != asset.id:
            raise NotFound("version of this asset", str(body.version_id))
        row = comments.comment(
            session, version.id, who.actor, body.text, id_=body.id, region=body.region, reply_to=body.reply_to
        )
        return _one(session, asset.id, row.id)


@router.put("/comments/{comment_id}")
def correct_comment(comment_id: uuid.UUID, body: CorrectionIn, who: Who, store: StoreDep) -> CommentOut:
    """Other words for one's own comment; what was said before stays on record."""
    with store.database.transaction() as session:
        asset_id = _asset_of(session, comment_id, who)
        comments.correct(session, comment_id, who.actor, body.text, id_=body.id)
        return _one(session, asset_id, comment_id)


@router.delete("/comments/{comment_id}")
def retract_comment(comment_id: uuid.UUID, who: Who, store: StoreDep) -> CommentsOut:
    """Take one's own comment back; what was said stays on record. Answers what stands of the asset."""
    with store.database.transaction() as session:
        asset_id = _asset_of(session, comment_id, who)
        comments.retract(session, comment_id, who.actor)
        return _comments(session, asset_id)


@router.get("/assets/{asset_id}/assignments")
def get_assignments(asset_id: uuid.UUID, who: Who, store: StoreDep) -> AssignmentsOut:
    """Who is asked to decide."""
    with store.database.reading() as session:
        return _assignments(session, seen_asset(session, asset_id, who).id)


@router.post("/assets/{asset_id}/assignments", status_code=201)
def assign(
    asset_id: uuid.UUID, body: AssignmentIn, who: Who, store: StoreDep, response: Response,
    idempotency_key: Idempotency = None,
) -> AssignmentsOut:  # fmt: skip
    """Ask somebody to decide at a stage."""

    def act(session: Session) -> AssignmentsOut:
        seen_asset(session, asset_id, who, Action.ASSIGN)
        assigning.assign(session, asset_id, body.stage, body.person, who.actor)
        return _assignments(session, asset_id)

    asked = {"assign": str(asset_id), **body.model_dump()}
    return answered(store, who, idempotency_key, asked, act, AssignmentsOut, response)


@router.delete("/assets/{asset_id}/assignments")
def unassign(asset_id: uuid.UUID, stage: str, person: str, who: Who, store: StoreDep) -> AssignmentsOut:
    """Ask them no more."""
    with store.database.transaction() as session:
        seen_asset(session, asset_id, who, Action.ASSIGN)
        assigning.unassign(session, asset_id, stage, person, who.actor)
        return _assignments(session, asset_id)


def _asset_of(session: Session, comment_id: uuid.UUID, who: Principal) -> uuid.UUID:
    row = session.get(Comment, comment_id)
    asset = None if row is None else session.get_one(AssetVersion, row.version_id).asset
    need(who, Action.COMMENT, None if asset is None else asset.campaign.brand_id, "comment", comment_id)
    assert asset is not None
    return asset.id


def _comments(session: Session, asset_id: uuid.UUID) -> CommentsOut:
    return CommentsOut(comments=[CommentOut.of(r) for r in comments.remarks_of(session, asset_id)])


def _one(session: Session, asset_id: uuid.UUID, comment_id: uuid.UUID) -> CommentOut:
    standing = comments.remarks_of(session, asset_id)
    found = next((r for r in standing if r.id == comment_id), None)
    if found is None:
        raise NotFound("comment", str(comment_id), "It was taken back.")
    return CommentOut.of(found)


def _assignments(session: Session, asset_id: uuid.UUID) -> AssignmentsOut:
    return AssignmentsOut(assignments=[AssignmentOut.of(a) for a in assigning.assignments_of(session, asset_id)])
