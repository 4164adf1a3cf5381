"""Finding assets among many: filters that stand in an address, a page at a time, newest first.

All is asked of the assets' own rows and their indexes, so that a page costs the same among a thousand and a hundred thousand.
"""

from __future__ import annotations

import re
import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    Subquery,
    Text,
    Uuid,
    any_,
    cast,
    false,
    func,
    literal,
    literal_column,
    select,
    tuple_,
    union_all,
)
from sqlalchemy.dialects.postgresql import ARRAY, aggregate_order_by
from sqlalchemy.orm import Session

from asset_store.keyset import mark_of, read_mark
from asset_store.reviewing.questions import is_asked, is_current, waits_anywhere
from asset_store.reviewing.states import Availability, ReviewState
from asset_store.tables import Asset, AssetVersion, Brand, Campaign, Check, CheckOutcome

LONGEST_TEXT = 200
COUNTED = 500  # the newest so many are counted: what that costs does not grow with the rest
BETWEEN_WORDS = (
    r"""[\s\-_/\\.,;:!?'"()\[\]{}<>|&#*~^+=$%@`\0\u00a0-\u00bf\u2010-\u206f\u3000-\u303f]+"""  # as words_of has it
)


@dataclass(frozen=True, slots=True)
class Filters:
    """What a grid shows. within: ids of the brands that may be seen, None for all; text: beginnings of words in shot, character,
    campaign or prompt; check: the name of a check of the newest version, that ended as `outcome` if that is given; person: who is
    asked to decide."""

    within: Collection[uuid.UUID] | None = None
    brand: str | None = None
    campaign: str | None = None
    character: str | None = None
    review: ReviewState | None = None
    availability: Availability | None = None
    stage: str | None = None
    person: str | None = None
    check: str | None = None
    outcome: CheckOutcome | None = None
    since: datetime | None = None
    until: datetime | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Tile:
    """What a list shows of an asset; sha256 and number are of its newest version, None and 0 where there is none yet.

    doubts: names of the checks of that version that did not pass; removed_at: when its bytes were removed.
    """

    id: uuid.UUID
    brand: str
    campaign: str
    character: str
    shot: str
    variant: int
    review: ReviewState
    availability: Availability
    due_at: datetime | None
    row_version: int
    made_at: datetime
    sha256: str | None
    number: int
    removed_at: datetime | None
    waits_at: tuple[str, ...]
    doubts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Listed:
    """A tile with what else there is to its newest version, nothing and no checks where there is none yet.

    checks: name, outcome, value, threshold, message, policy_version of each, in the order that they were written down.
    """

    tile: Tile
    version_id: uuid.UUID | None
    parent_id: uuid.UUID | None
    width_px: int | None
    height_px: int | None
    made_at: datetime | None
    checks: Sequence[Mapping[str, Any]] | None


@dataclass(frozen=True, slots=True)
class ListedPage:
    """Give `next_after` as `after` for those that follow, None at the end."""

    assets: tuple[Listed, ...]
    next_after: str | None


@dataclass(frozen=True, slots=True)
class TilePage:
    """Tiles; give `next_after` as `after` for those that follow, None at the end."""

    tiles: tuple[Tile, ...]
    next_after: str | None


@dataclass(frozen=True, slots=True)
class Counts:
    """Of the newest COUNTED assets that pass, how many are in each review state; more: there are others behind those."""

    by_state: dict[str, int]
    more: bool


def page(session: Session, filters: Filters, after: str | None = None, limit: int = 50) -> ListedPage:
    """The newest assets that pass all filters, with their newest versions. NotFound for an `after` that was never given."""
    question = _LISTED.where(Asset.id.in_(_placed(select(Asset.id), session, filters, after, limit + 1)))
    found = [Listed(_tile(row[:_SHOWN]), *row[_SHOWN:]) for row in session.execute(question)]
    found.sort(key=lambda listed: (listed.tile.made_at, listed.tile.id), reverse=True)
    shown = found[:limit]
    next_after = mark_of(shown[-1].tile.made_at, shown[-1].tile.id) if len(found) > limit else None
    return ListedPage(tuple(shown), next_after)


def tiles(session: Session, filters: Filters, after: str | None = None, limit: int = 50) -> TilePage:
    """The same without their versions."""
    found = _tiles(session, Asset.id.in_(_placed(select(Asset.id), session, filters, after, limit + 1)))
    found.sort(key=lambda tile: (tile.made_at, tile.id), reverse=True)
    shown = found[:limit]
    return TilePage(tuple(shown), mark_of(shown[-1].made_at, shown[-1].id) if len(found) > limit else None)


@dataclass(frozen=True, slots=True)
class Around:
    """An asset among others: the one before its place, if any, and those behind it, the next first."""

    tile: Tile
    before: Sequence[Tile]
    later: Sequence[Tile]


def around(session: Session, filters: Filters, asset: Asset, later: int) -> Around:
    """An asset with the one before its place among those that pass, and so many behind it."""
    place, passing = mark_of(asset.made_at, asset.id), list(conditions(session, filters))
    before = _at(select(Asset.id), place, backwards=True).where(*passing).limit(1)
    behind = _at(select(Asset.id), place).where(*passing).limit(later)
    return beside(session, asset.id, before, behind, (Asset.made_at.desc(), Asset.id.desc()))


def beside(
    session: Session, asset_id: uuid.UUID, before: Select[Any], later: Select[Any], order: Sequence[Any]
) -> Around:
    """An asset between those that two questions for ids answer, in one question of all of them."""
    sides = ((-1, before), (0, select(Asset.id).where(Asset.id == asset_id)), (1, later))
    asked = union_all(
        *(select(q.subquery().c.id, literal_column(str(side)).label("side")) for side, q in sides)
    ).subquery()
    found = _TILES.add_columns(asked.c.side).join(asked, asked.c.id == Asset.id).order_by(asked.c.side, *order)
    by_side: dict[int, list[Tile]] = {-1: [], 0: [], 1: []}
    for *row, side in session.execute(found):
        by_side[side].append(_tile(row))
    return Around(by_side[0][0], by_side[-1], by_side[1])


def tiles_of(session: Session, ids: Sequence[uuid.UUID]) -> tuple[Tile, ...]:
    """These assets as tiles, in this order; what there is not is left out."""
    wanted = any_(cast(list(ids), ARRAY(Uuid)))  # one array: the question is the same text whatever their number
    by_id = {tile.id: tile for tile in _tiles(session, Asset.id == wanted)}
    return tuple(by_id[id_] for id_ in ids if id_ in by_id)


def _tiles(session: Session, which: ColumnElement[bool]) -> list[Tile]:
    """Of the assets that this holds for, in no order."""
    return [_tile(row) for row in session.execute(_TILES.where(which))]


def tiles_beside(session: Session, found: Subquery) -> list[tuple[Tile, float]]:
    """The assets of a question for (id, likeness), with that, the likest first."""
    beside = _TILES.add_columns(found.c.likeness).join(found, found.c.id == Asset.id)
    rows = session.execute(beside.order_by(found.c.likeness.desc(), Asset.id))
    return [(_tile(row), float(likeness)) for *row, likeness in rows]


def _tile(row: Sequence[Any]) -> Tile:
    waits_at, checked, *shown = row
    return Tile(*(*shown, tuple(waits_at), _doubts(checked)))


def counts(session: Session, filters: Filters) -> Counts:
    """How many of the newest assets that pass the filters are in each review state, the state's own filter left aside."""
    all_states = replace(filters, review=None)
    placed: Any = select(cast(Asset.review, Text).label("state"), Asset.made_at, Asset.id)
    newest = _placed(placed, session, all_states, None, COUNTED + 1).subquery()
    ordered = aggregate_order_by(newest.c.state, newest.c.made_at.desc(), newest.c.id.desc())
    found = session.scalar(select(func.array_agg(ordered))) or []  # one row, not five hundred
    counted = Counter(found[:COUNTED])
    return Counts({state.value: counted[state] for state in ReviewState if counted[state]}, len(found) > COUNTED)


def _placed(question: Select[Any], session: Session, filters: Filters, after: str | None, limit: int) -> Select[Any]:
    """The newest that pass, behind that place."""
    return _at(question, after).where(*conditions(session, filters)).limit(limit)


def _at(question: Select[Any], after: str | None, *, backwards: bool = False) -> Select[Any]:
    place = (Asset.made_at, Asset.id)
    if after is not None:
        here, there = tuple_(*place), tuple_(*map(literal, read_mark(after, "the grid")))
        question = question.where(here > there if backwards else here < there)
    return question.order_by(*(place if backwards else [column.desc() for column in place]))


def conditions(session: Session, f: Filters) -> Iterable[ColumnElement[bool]]:
    """The filters as conditions on the asset's own columns; names are looked up before, so that the planner knows how many there are."""
    if f.within is not None:
        yield Asset.brand_id.in_(f.within)
    if f.brand is not None:
        yield Asset.brand_id.in_(session.scalars(select(Brand.id).where(Brand.name == f.brand)).all())
    if f.campaign is not None:
        yield Asset.campaign_id.in_(session.scalars(select(Campaign.id).where(Campaign.name == f.campaign)).all())
    if f.character is not None:
        yield Asset.character == f.character
    if f.review is not None:
        yield Asset.review == f.review
    if f.availability is not None:
        yield Asset.availability == f.availability
    if f.stage is not None:
        yield waits_anywhere()
        yield Asset.waits_at.contains([f.stage])
    if f.person is not None:
        yield waits_anywhere()
        yield is_asked(f.person)
    if f.check is not None or f.outcome is not None:
        yield Asset.checked.contains(["=".join(filter(None, (f.check, f.outcome)))])
    if f.since is not None:
        yield Asset.made_at >= f.since
    if f.until is not None:
        yield Asset.made_at < f.until
    if f.text:
        words = [w for w in re.split(BETWEEN_WORDS, f.text[:LONGEST_TEXT]) if w]
        query = " & ".join(f"'{word}':*" for word in words)
        yield Asset.words.op("@@")(func.to_tsquery("simple", query)) if words else false()


# In the order of the fields that they fill.
_TILES: Any = (
    select(
        Asset.waits_at, Asset.checked, Asset.id, Brand.name, Campaign.name, Asset.character, Asset.shot, Asset.variant, Asset.review,
        Asset.availability, Asset.due_at, Asset.row_version, Asset.made_at, Asset.current_sha256, Asset.current_number,
        Asset.removed_at,
    )
    .join(Campaign, Campaign.id == Asset.campaign_id)
    .join(Brand, Brand.id == Asset.brand_id)
)  # fmt: skip
_SHOWN = len(_TILES.selected_columns)
_SAID = (
    select(
        func.json_agg(
            aggregate_order_by(
                func.json_build_object(
                    "name", Check.name, "outcome", Check.outcome, "value", Check.value, "threshold", Check.threshold,
                    "message", Check.message, "policy_version", Check.policy_version,
                ),
                Check.seq,
            )
        )
    )
    .where(Check.version_id == AssetVersion.id)
    .correlate(AssetVersion)
    .scalar_subquery()
)  # fmt: skip
_LISTED: Any = _TILES.add_columns(
    AssetVersion.id, AssetVersion.parent_id, AssetVersion.width_px, AssetVersion.height_px, AssetVersion.made_at, _SAID
).outerjoin(AssetVersion, is_current())


def _doubts(checked: Iterable[str]) -> tuple[str, ...]:
    ended = (said.rpartition("=") for said in checked if "=" in said)
    return tuple(sorted(name for name, _, outcome in ended if outcome != CheckOutcome.PASS))
