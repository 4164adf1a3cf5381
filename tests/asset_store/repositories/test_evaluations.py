"""Tables of figures come back as they were written, the newest first, and leave an audit row."""

from __future__ import annotations

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from asset_store import audit
from asset_store.canonical import sha256_of
from asset_store.errors import Ambiguous, NotFound
from asset_store.repositories import evaluations
from asset_store.repositories.evaluations import NewEvaluation
from asset_store.tables import AuditRow

ROWS = [{"method": "text", "figures": {"clip_i": {"value": 0.5, "interval_95": [0.4, 0.6]}, "identity": None}}]


def a_new(protocol: str = "characters") -> NewEvaluation:
    return NewEvaluation(protocol, {"subjects": 30}, [{"role": "unet", "name": "studio", "sha256": "0" * 64}], ROWS)


def test_a_table_comes_back_and_its_figures_hash_is_in_the_audit(session: Session) -> None:
    stored = evaluations.add(session, a_new(), "ada")
    session.expire_all()
    found = evaluations.get(session, str(stored.id)[:8])
    assert (found.id, found.rows, found.settings, found.made_by) == (stored.id, ROWS, {"subjects": 30}, "ada")
    row = session.scalars(select(AuditRow).where(AuditRow.subject == f"evaluation {stored.id}")).one()
    assert row.detail == {"protocol": "characters", "rows_sha256": sha256_of(ROWS)}
    assert audit.verify(session).broken is None


def test_the_list_is_of_one_protocol_if_asked_and_no_longer_than_asked(session: Session) -> None:
    for protocol in ("characters", "dreambench", "characters"):
        evaluations.add(session, a_new(protocol), "ada")
    assert len(evaluations.latest(session)) == 3
    assert [e.protocol for e in evaluations.latest(session, protocol="dreambench")] == ["dreambench"]
    assert len(evaluations.latest(session, limit=2)) == 2


def test_an_id_that_is_not_there_or_not_enough_is_told(session: Session) -> None:
    with pytest.raises(NotFound, match="evaluation ffff"):
        evaluations.get(session, "ffff")
    with pytest.raises(NotFound):
        evaluations.get(session, "")
    ids = [str(evaluations.add(session, a_new(), "ada").id) for _ in range(17)]  # two of 17 share their first letter
    shared = next(i[0] for i in ids if sum(j[0] == i[0] for j in ids) > 1)
    with pytest.raises(Ambiguous):
        evaluations.get(session, shared)
