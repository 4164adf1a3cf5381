"""Who did what to what: a row beside each change, in the same transaction, chained by hash."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from asset_store import chain
from asset_store.canonical import sha256_of
from asset_store.chain import ChainReport as AuditReport
from asset_store.tables import AuditRow

__all__ = ["AuditReport", "record", "verify"]


def record(
    session: Session, actor: str, action: str, subject: str, detail: Mapping[str, Any] | None = None
) -> AuditRow:
    """Write that `actor` did `action` to `subject` ("asset <uuid>"), with JSON `detail`.

    Holds the chain's lock until the transaction ends: lock the rows you change before you record.
    """
    chain.lock(session, chain.Chain.AUDIT)
    previous = session.scalar(select(AuditRow.sha256).order_by(AuditRow.seq.desc()).limit(1)) or chain.FIRST
    row = AuditRow(
        at=datetime.now(UTC),
        actor=actor,
        action=action,
        subject=subject,
        detail=dict(detail or {}),
        previous_sha256=previous,
    )
    row.sha256 = _hash(row)
    session.add(row)
    session.flush()
    return row


def verify(session: Session) -> AuditReport:
    """Walk the whole chain and name the first row that does not hold."""
    rows, head = 0, chain.FIRST
    for row in session.scalars(select(AuditRow).order_by(AuditRow.seq).execution_options(yield_per=1000)):
        if row.previous_sha256 != head:
            return AuditReport(rows, head, row.seq, "it does not follow the row before: one was removed or put between")
        if row.sha256 != _hash(row):
            return AuditReport(rows, head, row.seq, "what it says is not what was hashed: it was changed")
        rows, head = rows + 1, row.sha256
    return AuditReport(rows, head)


def _hash(row: AuditRow) -> str:
    return sha256_of(
        {
            "at": row.at.astimezone(UTC).isoformat(timespec="microseconds"),
            "actor": row.actor,
            "action": row.action,
            "subject": row.subject,
            "detail": row.detail,
            "previous": row.previous_sha256,
        }
    )
