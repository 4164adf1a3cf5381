"""What lists of assets share: the filters of an address, whose queue it is, and tiles as cards."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi import Request
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from asset_store.errors import NotFound, NotSignedIn
from asset_store.people.permissions import Action, Principal
from asset_store.people.saved import KNOWN, LIKE
from asset_store.reviewing import similar
from asset_store.reviewing.grid import Filters, Tile
from asset_store.reviewing.states import Availability, ReviewState
from asset_store.tables import Brand, Campaign, Character, CheckOutcome
from studio.api.callers import StoreDep, caller
from studio.api.changing import seen_asset, seen_reference

PAGE = 60
QUEUE = "queue"
MORE = {"stage", "person", "check", "outcome", "since", "until"}  # filters that are folded away until one is used
MOST_NAMES = 200


@dataclass(frozen=True, slots=True)
class Card:
    """What the template of a card shows, in as few pieces as it has: a page has 60 of them."""

    id: str
    href: str
    title: str
    told: str
    place: str
    review: str
    state: str
    availability: str
    doubts: str
    due: str
    is_late: bool
    row_version: int
    sha256: str
    thumbnail: str
    removed: str


class ToSignIn(Exception):
    """Nobody is signed in: a page sends them to where that is done."""


def visitor(request: Request, store: StoreDep) -> Principal:
    """Who looks at a page. ToSignIn."""
    try:
        return caller(request, store)
    except NotSignedIn:
        raise ToSignIn from None


def stages_of(who: Principal, session: Session) -> Mapping[uuid.UUID, Collection[str] | None] | None:
    """By brand, the stages that they decide at, None for all of it; None where that is everything there is."""
    deciding = who.brands(Action.DECIDE)
    if deciding is None and who.stages(uuid.UUID(int=0)) is None:
        return None
    brands = session.scalars(select(Brand.id)).all() if deciding is None else deciding
    return {brand: who.stages(brand) for brand in brands}


def read_filters(given: Mapping[str, str], who: Principal) -> tuple[Filters, list[str]]:
    """The filters of an address, and a sentence for each that cannot be read and is left out."""
    told: list[str] = []
    read: dict[str, Any] = {}
    kinds: dict[str, Any] = {"review": ReviewState, "availability": Availability, "outcome": CheckOutcome,
                             "since": _moment, "until": _until}  # fmt: skip
    for name in (n for n in KNOWN if n not in LIKE):
        if value := given.get(name, "").strip():
            try:
                read[name] = kinds[name](value) if name in kinds else value
            except ValueError:
                told.append(f"{name}: {value[:40]} is none that there is")
    if read.get("person") == "me":
        read["person"] = who.actor
    return Filters(within=who.brands(Action.VIEW), **read), told


def likest(
    session: Session, who: Principal, filters: Filters, given: Mapping[str, str]
) -> tuple[tuple[Tile, ...], dict[str, str]] | None:
    """Where an address asks for the likest to an asset or a reference: those, and what that is called. NotFound."""
    asked = next(((name, given[name]) for name in LIKE if given.get(name)), None)
    if asked is None:
        return None
    name, text = asked
    try:
        id_ = uuid.UUID(text)
    except ValueError:
        raise NotFound("picture", text[:40]) from None
    if name == "like":
        asset = seen_asset(session, id_, who)
        near, told = similar.like_asset(session, asset, filters, PAGE), f"{asset.shot} #{asset.variant + 1}"
    else:
        reference = seen_reference(session, id_, who)
        near, told = similar.like_reference(session, reference.sha256, filters, PAGE), reference.key
    return tuple(n.tile for n in near), {name: told}


def card(tile: Tile, address: str) -> Card:
    """A tile as its template reads it; address: the list that it stands in, which the room goes on through."""
    place = f"{tile.brand} / {tile.campaign}"
    waits = f" · {', '.join(tile.waits_at)}" if tile.waits_at else ""
    return Card(
        id=str(tile.id), href=f"/assets/{tile.id}" + (f"?{address}" if address else ""), title=f"{tile.shot} #{tile.variant + 1}",
        told=f"{tile.shot}, variant {tile.variant + 1}", place=place, review=tile.review.value, state=tile.review.value + waits,
        availability=tile.availability.value, doubts=", ".join(tile.doubts),
        due=tile.due_at.isoformat(timespec="minutes") if tile.due_at else "",
        is_late=tile.due_at is not None and tile.due_at < datetime.now(UTC), row_version=tile.row_version, sha256=tile.sha256 or "",
        thumbnail=f"/v1/assets/{tile.id}/thumbnails/{tile.sha256}" if tile.sha256 and tile.removed_at is None else "",
        removed=f"{tile.removed_at:%Y-%m-%d}" if tile.removed_at else "",
    )  # fmt: skip


def names(session: Session, who: Principal) -> dict[str, list[str]]:
    """What filters offer: the brands, the newest campaigns, and the characters that the caller may see."""
    within = who.brands(Action.VIEW)
    brands = select(Brand.name).order_by(Brand.name).limit(MOST_NAMES)
    campaigns = select(Campaign.name).order_by(Campaign.made_at.desc()).limit(MOST_NAMES)
    characters = select(Character.name).distinct().order_by(Character.name).limit(MOST_NAMES)
    if within is not None:
        brands = brands.where(Brand.id.in_(within))
        campaigns = campaigns.where(Campaign.brand_id.in_(within))
        characters = characters.where(Character.brand_id.in_(within))
    offered = {"brand": brands, "campaign": campaigns, "character": characters}
    found = session.execute(select(*(func.array(q.scalar_subquery()).label(name) for name, q in offered.items()))).one()
    return {name: sorted(set(getattr(found, name))) for name in offered}


def able(who: Principal, action: Action) -> bool:
    """Whether there is a brand that they may do this for."""
    brands = who.brands(action)
    return brands is None or len(brands) > 0


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _until(text: str) -> datetime:
    """A day alone is meant to its end."""
    moment = _moment(text)
    return moment + timedelta(days=1) if len(text) == len("2026-01-31") else moment
