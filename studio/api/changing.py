"""Changing an asset: as it was seen, by who may, once for an Idempotency-Key, answered with its new ETag."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Response
from sqlalchemy.orm import Session

from asset_store.people.permissions import Action, Principal
from asset_store.reviewing import decide as rules
from asset_store.tables import Asset, Library, Reference
from flows.wiring import Store
from studio.api.answers import AssetOut
from studio.api.callers import Idempotency, IfMatch, StoreDep, Who, need, row_version
from studio.api.once import Out, answered


@dataclass(frozen=True, slots=True)
class Change:
    """A request that changes one asset. `version`: its row version as it was seen."""

    who: Principal
    store: Store
    version: int
    key: str | None
    response: Response

    def asset(
        self, asset_id: uuid.UUID, action: Action, asked: dict[str, Any], act: Callable[[Session], Asset]
    ) -> AssetOut:
        """What `act` makes of the asset; asked: what of the request determines that."""
        return self.answer(asset_id, action, asked, lambda session: AssetOut.of(act(session)), AssetOut)

    def answer(
        self, asset_id: uuid.UUID, action: Action, asked: dict[str, Any], act: Callable[[Session], Out], kind: type[Out]
    ) -> Out:
        """The same, where it is not the asset that is answered."""

        def guarded(session: Session) -> Out:
            _held = current_asset(
                session, asset_id, self.who, action, self.version
            )  # a session forgets what nobody holds
            return act(session)

        whole = {"asset": str(asset_id), "version": self.version, **asked}
        return answered(self.store, self.who, self.key, whole, guarded, kind, self.response)


async def change(
    who: Who, store: StoreDep, response: Response, if_match: IfMatch = None, idempotency_key: Idempotency = None
) -> Change:
    return Change(who, store, row_version(if_match), idempotency_key, response)


ChangeDep = Annotated[Change, Depends(change)]


def seen_asset(session: Session, asset_id: uuid.UUID, who: Principal, action: Action = Action.VIEW) -> Asset:
    """The asset, if they may. NotFound; Forbidden."""
    asset = session.get(Asset, asset_id)
    need(who, action, None if asset is None else asset.campaign.brand_id, "asset", asset_id)
    assert asset is not None
    return asset


def seen_reference(
    session: Session, reference_id: uuid.UUID, who: Principal, action: Action = Action.VIEW
) -> Reference:
    """The reference, if they may. NotFound; Forbidden."""
    row = session.get(Reference, reference_id)
    brand = None if row is None else session.get_one(Library, row.library_id).brand_id
    need(who, action, brand, "reference", reference_id)
    assert row is not None
    return row


def current_asset(session: Session, asset_id: uuid.UUID, who: Principal, action: Action, version: int) -> Asset:
    """The asset, locked, if they may and it is as they saw it."""
    seen_asset(session, asset_id, who, action)
    asset, _ = rules.lock_asset(session, asset_id)
    rules.need_row_version(asset, version)
    return asset
