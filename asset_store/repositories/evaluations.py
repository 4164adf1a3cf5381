"""Tables of figures: written once, read back, never changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Text, cast, select
from sqlalchemy.orm import Session

from asset_store import audit
from asset_store.canonical import sha256_of
from asset_store.errors import Ambiguous, NotFound
from asset_store.tables import Evaluation


@dataclass(frozen=True)
class NewEvaluation:
    """protocol: what was measured; settings: all that determined it; models: a hash of each; rows: the figures."""

    protocol: str
    settings: dict[str, Any]
    models: list[dict[str, str]]
    rows: list[dict[str, Any]]


def add(session: Session, new: NewEvaluation, by: str) -> Evaluation:
    """Store a table and its audit row, which holds the hash of the figures."""
    row = Evaluation(protocol=new.protocol, settings=new.settings, models=new.models, rows=new.rows, made_by=by)
    session.add(row)
    session.flush()
    detail = {"protocol": new.protocol, "rows_sha256": sha256_of(new.rows)}
    audit.record(session, by, "evaluate", f"evaluation {row.id}", detail)
    return row


def latest(session: Session, *, protocol: str | None = None, limit: int = 50) -> Sequence[Evaluation]:
    """The newest first."""
    newest = select(Evaluation).order_by(Evaluation.made_at.desc(), Evaluation.id).limit(limit)
    if protocol is not None:
        newest = newest.where(Evaluation.protocol == protocol)
    return session.scalars(newest).all()


def get(session: Session, id_prefix: str) -> Evaluation:
    """The evaluation whose id starts so. Raises NotFound, Ambiguous."""
    found = session.scalars(
        select(Evaluation).where(cast(Evaluation.id, Text).startswith(id_prefix.lower(), autoescape=True)).limit(5)
    ).all()
    if not found or not id_prefix:
        raise NotFound("evaluation", id_prefix, "`onmodel evaluate --list` shows them.")
    if len(found) > 1:
        raise Ambiguous("evaluation", id_prefix, [str(e.id) for e in found])
    return found[0]
