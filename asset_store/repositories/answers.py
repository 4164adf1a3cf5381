"""What requests with an Idempotency-Key were answered, so that one that is sent again does nothing again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from asset_store.errors import KeyReused
from asset_store.tables import Answered

LONGEST_KEY = 200


def once(
    session: Session, actor: str, key: str, request_sha256: str, act: Callable[[], dict[str, Any]]
) -> tuple[dict[str, Any], bool]:
    """The answer of the one time that `act` ran for this actor and key, and whether that was before.

    The answer is written in the caller's transaction with what was done. The same key at once waits for the first.
    KeyReused where it came with another request.
    """
    if (there := answered_before(session, actor, key, request_sha256)) is not None:
        return there, True
    body = act()
    session.add(Answered(actor=actor, key=key, request_sha256=request_sha256, body=body))
    session.flush()
    return body, False


def answered_before(session: Session, actor: str, key: str, request_sha256: str) -> dict[str, Any] | None:
    """What this request was answered under this key, if it was. Whoever else comes with the key waits for this transaction to end.
    KeyReused where it came with another request."""
    spent = hashlib.sha256(f"{actor}\0{key}".encode()).digest()[:8]
    session.execute(select(func.pg_advisory_xact_lock(int.from_bytes(spent, "big", signed=True))))
    there = session.get(Answered, (actor, key))
    if there is not None and there.request_sha256 != request_sha256:
        raise KeyReused(key)
    return None if there is None else there.body


def forget(session: Session, before: datetime) -> int:
    """Delete answers from before then; how many."""
    gone = delete(Answered).where(Answered.made_at < before).returning(Answered.key)
    return len(session.scalars(gone.execution_options(synchronize_session=False)).all())
