"""Changes: one transaction each, once for an Idempotency-Key, answered with the ETag of what was changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import Response
from pydantic import BaseModel
from sqlalchemy.orm import Session

from asset_store.canonical import sha256_of
from asset_store.people.permissions import Principal
from asset_store.repositories.answers import once
from flows.wiring import Store
from studio.api.answers import AssetOut

Out = TypeVar("Out", bound=BaseModel)
REPLAYED = "Idempotent-Replayed"


def answered(
    store: Store, who: Principal, key: str | None, asked: dict[str, Any], act: Callable[[Session], Out], kind: type[Out],
    response: Response | None = None,
) -> Out:  # fmt: skip
    """What `act` does and answers, in one transaction that is over before the answer goes out.

    asked: all of the request that matters; with a key sent again it must be the same. kind: what `act` answers with.
    """
    with store.database.transaction() as session:
        if key is None:
            out = act(session)
        else:
            body, before = once(session, who.actor, key, sha256_of(asked), lambda: act(session).model_dump(mode="json"))
            out = kind.model_validate(body)
            if before and response is not None:
                response.headers[REPLAYED] = "true"
    if response is not None:
        tag(response, out)
    return out


def tag(response: Response, out: BaseModel) -> None:
    if isinstance(out, AssetOut):
        response.headers["ETag"] = f'"{out.row_version}"'
