"""What is written stays as it was written: the database sees to it, for its owner as well."""

from __future__ import annotations

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from asset_store import audit
from asset_store.lineage import record as lineage
from asset_store.tables import APPEND_ONLY, Base
from tests.stories import a_reference, a_released_asset, an_asset, what_was_said, what_was_trained


def set_of_first_column(table: str) -> str:
    column = next(iter(Base.metadata.tables[table].columns)).name
    return f"UPDATE {table} SET {column} = {column}"


@pytest.mark.parametrize("table", APPEND_ONLY)
@pytest.mark.parametrize("change", ["update", "delete", "truncate", "replica"])
def test_rows_are_never_changed_or_removed(session: Session, table: str, change: str) -> None:
    reference = a_reference(session)
    what_was_said(session, a_released_asset(session, [reference]))
    what_was_trained(session, reference)
    assert session.scalar(text(f"SELECT count(*) FROM {table}"))
    statement = {
        "update": set_of_first_column(table),
        "delete": f"DELETE FROM {table}",
        "truncate": f"TRUNCATE {table} CASCADE",
        "replica": f"SET LOCAL session_replication_role = replica; DELETE FROM {table}",
    }[change]
    with pytest.raises(IntegrityError, match=r"append-only: (UPDATE|DELETE|TRUNCATE) refused") as refused:
        session.execute(text(statement))
    assert isinstance(refused.value.orig, psycopg.errors.RestrictViolation)


def tamper(session: Session, table: str, statement: str) -> None:
    """As a superuser would who takes the trigger away first."""
    session.flush()
    session.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER append_only"))
    session.execute(text(statement))
    session.execute(text(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER append_only"))
    session.expire_all()


def four_rows(session: Session) -> list[int]:
    return [audit.record(session, "ada", "look", f"thing {i}", {"size": 1.5, "n": i, "who": "é"}).seq for i in range(4)]


def test_an_untouched_audit_chain_holds(session: Session) -> None:
    assert audit.verify(session).ok
    seqs = four_rows(session)
    session.expire_all()
    report = audit.verify(session)
    assert report.ok
    assert report.rows == len(seqs)


@pytest.mark.parametrize(
    "change",
    [
        "actor = 'eve'",
        "detail = '{}'",
        "at = at + interval '1 microsecond'",
        "sha256 = repeat('0', 64)",
        "subject = ''",
    ],
)
def test_a_changed_audit_row_is_named(session: Session, change: str) -> None:
    seqs = four_rows(session)
    tamper(session, "audit", f"UPDATE audit SET {change} WHERE seq = {seqs[1]}")
    report = audit.verify(session)
    assert (report.broken, report.rows) == (seqs[1], 1)
    assert "changed" in report.problem


def test_a_removed_audit_row_is_noticed_at_the_next(session: Session) -> None:
    seqs = four_rows(session)
    tamper(session, "audit", f"DELETE FROM audit WHERE seq = {seqs[1]}")
    assert audit.verify(session).broken == seqs[2]


def test_rows_cut_off_the_end_change_the_head(session: Session) -> None:
    seqs = four_rows(session)
    whole = audit.verify(session)
    tamper(session, "audit", f"DELETE FROM audit WHERE seq = {seqs[3]}")
    cut = audit.verify(session)
    assert cut.ok
    assert (cut.rows, cut.head) != (whole.rows, whole.head)


@pytest.mark.parametrize(
    ("table", "statement"),
    [
        ("lineage_records", "UPDATE lineage_records SET record = jsonb_set(record, '{settings,seed}', '8')"),
        ("asset_versions", f"UPDATE asset_versions SET sha256 = '{'0' * 64}'"),
        ("descents", "DELETE FROM descents"),
    ],
)
def test_a_changed_lineage_is_named(session: Session, table: str, statement: str) -> None:
    an_asset(session)
    asset = an_asset(session, references=[a_reference(session)])
    assert asset.current is not None
    seq = session.scalar(text(f"SELECT seq FROM lineage_records WHERE version_id = '{asset.current.id}'"))
    assert lineage.verify_chain(session).ok
    where = "id" if table == "asset_versions" else "version_id"
    tamper(session, table, f"{statement} WHERE {where} = '{asset.current.id}'")
    report = lineage.verify_chain(session)
    assert (report.broken, report.rows) == (seq, 1)
