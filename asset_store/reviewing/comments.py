"""What people say of a picture and of places in it: written once as sent, corrected by a new row, never lost."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from asset_store import audit
from asset_store.errors import NotFound, RemarkRefused
from asset_store.reviewing.decide import name_of
from asset_store.tables import AssetVersion, Comment

LONGEST_TEXT, MOST_POINTS = 4000, 2000
REGIONS = {"pin": ("x", "y"), "box": ("x", "y", "width", "height"), "path": ("points",)}


@dataclass(frozen=True, slots=True)
class Remark:
    """A comment as it stands now, after its corrections. `id` is that of its first row, which replies name."""

    id: uuid.UUID
    version_id: uuid.UUID
    version: int
    by: str
    text: str
    region: Mapping[str, Any] | None
    reply_to: uuid.UUID | None
    edited: bool
    made_at: datetime


def comment(
    session: Session, version_id: uuid.UUID, by: str, text: str, *, id_: uuid.UUID | None = None,
    region: Mapping[str, Any] | None = None, reply_to: uuid.UUID | None = None,
) -> Comment:  # fmt: skip
    """Write a remark on a version. With an id it is written once, however often it is sent.

    region: {"kind": "pin", "x", "y"}, {"kind": "box", "x", "y", "width", "height"} or {"kind": "path", "points": [[x, y], …]},
    in 0–1 of the picture's sides from its upper left. RemarkRefused; NotFound.
    """
    version = session.get(AssetVersion, version_id)
    if version is None:
        raise NotFound("version", str(version_id))
    if reply_to is not None:
        answered = session.get(Comment, reply_to)
        if answered is None or session.get_one(AssetVersion, answered.version_id).asset_id != version.asset_id:
            raise NotFound("comment of this asset", str(reply_to), "Look at its comments again.")
    row = Comment(
        id=id_ or uuid.uuid4(), version_id=version_id, by=_author(by), text=_said(text), region=checked_region(region),
        reply_to=reply_to, retracted=False,
    )  # fmt: skip
    return _written_once(session, row, version, "comment")


def correct(session: Session, comment_id: uuid.UUID, by: str, text: str, *, id_: uuid.UUID | None = None) -> Comment:
    """Other words for one's own remark. What was said before stays on record."""
    return _replace(session, comment_id, by, _said(text), retracted=False, id_=id_)


def retract(session: Session, comment_id: uuid.UUID, by: str) -> Comment:
    """Take one's own remark back. What was said stays on record."""
    return _replace(session, comment_id, by, "", retracted=True, id_=None)


def remarks_of(session: Session, *asset_ids: uuid.UUID) -> Sequence[Remark]:
    """What stands of all versions of these assets, oldest first."""
    rows = session.execute(
        select(Comment, AssetVersion.number)
        .join(AssetVersion, AssetVersion.id == Comment.version_id)
        .where(AssetVersion.asset_id.in_(asset_ids))
        .order_by(Comment.seq)
    ).all()
    replaced = {row.replaces: row for row, _ in rows if row.replaces is not None}
    standing = []
    for first, number in rows:
        if first.replaces is not None:
            continue
        last = first
        while (later := replaced.get(last.id)) is not None:
            last = later
        if not last.retracted:
            standing.append(
                Remark(first.id, first.version_id, number, first.by, last.text, first.region, first.reply_to,
                       last is not first, first.made_at)
            )  # fmt: skip
    return standing


def checked_region(region: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The region with exactly the fields of its kind; RemarkRefused where it is none, or leaves the picture."""
    if region is None:
        return None
    kind = region.get("kind")
    names = REGIONS.get(kind) if isinstance(kind, str) else None
    if names is None or set(region) != {"kind", *names}:
        told = "; ".join(f"{k} with {', '.join(v)}" for k, v in REGIONS.items())
        raise RemarkRefused(f"this is no region of a picture: {str(dict(region))[:80]}", f"Give one of: {told}.")
    if kind == "path":
        points = region["points"]
        if not isinstance(points, list | tuple) or not 2 <= len(points) <= MOST_POINTS:
            raise RemarkRefused("a path has too few or too many points", f"Give 2 to {MOST_POINTS} points.")
        return {"kind": kind, "points": [_point(p) for p in points]}
    values = {name: _within(region[name]) for name in names}
    if kind == "box" and (values["x"] + values["width"] > 1 + 1e-6 or values["y"] + values["height"] > 1 + 1e-6):
        raise RemarkRefused("a box leaves the picture", "Keep x + width and y + height at 1 or less.")
    return {"kind": kind, **values}


def _point(point: object) -> list[float]:
    if not isinstance(point, list | tuple) or len(point) != 2:
        raise RemarkRefused("a point of a path is not two numbers", "Give [x, y] pairs.")
    return [_within(value) for value in point]


def _within(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:  # NaN is neither
        raise RemarkRefused("a region leaves the picture", "Give shares of its width and height, from 0 to 1.")
    return round(float(value), 5)


def _author(by: str) -> str:
    if not by.strip():
        raise RemarkRefused("a comment needs the name of who writes it", "Give a name.")
    return by


def _said(text: str) -> str:
    said = text.strip()
    if not said or len(said) > LONGEST_TEXT or "\0" in said:
        raise RemarkRefused("a comment is empty or too long", f"Write 1 to {LONGEST_TEXT} characters of text.")
    return said


def _replace(
    session: Session, comment_id: uuid.UUID, by: str, text: str, *, retracted: bool, id_: uuid.UUID | None
) -> Comment:
    """`comment_id` is the remark's first row; its last one is what is replaced."""
    first = session.get(Comment, comment_id)
    if first is None or first.replaces is not None:
        raise NotFound("comment", str(comment_id), "Look at the asset's comments again.")
    if name_of(first.by) != name_of(by):
        raise RemarkRefused(f"this comment is {first.by}'s", "Answer it instead: only its writer may change it.")
    last = session.scalars(select(Comment).where(Comment.id == comment_id).with_for_update()).one()
    while (later := session.scalar(select(Comment).where(Comment.replaces == last.id))) is not None:
        last = later
    if last.retracted:
        raise RemarkRefused("this comment was taken back", "Write another one.")
    version = session.get_one(AssetVersion, first.version_id)
    row = Comment(
        id=id_ or uuid.uuid4(), version_id=first.version_id, by=by, text=text, region=None, reply_to=None,
        replaces=last.id, retracted=retracted,
    )  # fmt: skip
    return _written_once(session, row, version, "retract" if retracted else "correct")


def _written_once(session: Session, row: Comment, version: AssetVersion, action: str) -> Comment:
    there = session.get(Comment, row.id)
    if there is not None:
        same = ("version_id", "text", "region", "reply_to")
        if any(getattr(there, name) != getattr(row, name) for name in same) or name_of(there.by) != name_of(row.by):
            raise RemarkRefused(f"comment {row.id} was written with other words", "Send it with an id of its own.")
        return there
    session.add(row)
    session.flush()
    detail = {"comment": str(row.id), "version": version.number, "text": row.text, "region": row.region}
    audit.record(session, row.by, action, f"asset {version.asset_id}", detail)
    return row
