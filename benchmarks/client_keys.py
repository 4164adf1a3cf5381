"""Keys of many kinds for the clients of `make bench-clients`, and the pictures that they ask for."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import select

from asset_store.people import accounts, passes
from asset_store.people.permissions import NEVER_BY_KEY, Action
from asset_store.tables import Asset, Brand, Role
from benchmarks import many_assets
from flows.wiring import Store, os_user
from studio.api.serving import first_person

OWNER = "olga@bench.example"


class Kind(enum.StrEnum):
    VIEWER = "viewer"
    PRODUCER = "producer"
    AGENT = "agent"  # may ask, follow and comment, and is in more of a hurry
    ALL_BRANDS = "viewer of all brands"
    OVER = "revoked or over"


@dataclass(frozen=True, slots=True)
class Key:
    """brand: the one that it sees, None for all."""

    kind: Kind
    secret: str
    actor: str
    brand: str | None


SCOPES = {
    Kind.VIEWER: {Action.VIEW},
    Kind.PRODUCER: {Action.VIEW, Action.PRODUCE, Action.COMMENT},
    Kind.AGENT: {Action.VIEW, Action.PRODUCE},
    Kind.ALL_BRANDS: {Action.VIEW},
    Kind.OVER: set(Action) - NEVER_BY_KEY,
}
MIXED = (  # of ten clients
    Kind.VIEWER, Kind.PRODUCER, Kind.VIEWER, Kind.PRODUCER, Kind.AGENT, Kind.VIEWER, Kind.PRODUCER, Kind.OVER, Kind.VIEWER,
    Kind.ALL_BRANDS,
)  # fmt: skip


def make_keys(store: Store, count: int) -> Sequence[Key]:
    """A key for each client, of all kinds and brands in turn; of those that are over the half is revoked, the half has ended."""
    now = datetime.now(UTC)
    with store.database.transaction() as session:
        first_person(session, os_user())  # `onmodel up` prints their link, where it is served
        if accounts.find_person(session, OWNER) is None:
            accounts.add_person(session, OWNER, "Olga", "system")
            for role in (Role.PRODUCER, Role.VIEWER):
                accounts.grant(session, OWNER, role, "system")
        keys = []
        for i in range(count):
            kind = MIXED[i % len(MIXED)]
            brand = None if kind is Kind.ALL_BRANDS else f"brand-{(i // len(MIXED) + i) % many_assets.BRANDS}"
            name = f"{kind} {i} {now:%H%M%S%f}"
            row, secret = passes.make_key(session, OWNER, name, SCOPES[kind], timedelta(days=1), "system", brand)
            if kind is Kind.OVER:
                if i // len(MIXED) % 2:
                    row.expires_at = now - timedelta(seconds=1)
                else:
                    passes.revoke_key(session, name, "system")
            keys.append(Key(kind, secret, f"key:{name} of {OWNER}", brand))
        return keys


def pictures_of(store: Store) -> dict[str, list[tuple[str, str]]]:
    """By brand, assets whose pictures are there: id and sha256 of the newest version."""
    newest = (
        select(Brand.name, Asset.id, Asset.current_sha256)
        .join(Asset, Asset.brand_id == Brand.id)
        .where(Asset.current_sha256.is_not(None))
        .order_by(Asset.made_at.desc())
    )
    found: dict[str, list[tuple[str, str]]] = {}
    with store.database.transaction() as session:
        for brand, id_, sha256 in session.execute(newest.limit(many_assets.PICTURES)):
            found.setdefault(brand, []).append((str(id_), str(sha256)))
    return found
