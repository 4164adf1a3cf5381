"""Rows that each hash the one before, so that a row changed, removed or put between is found."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

FIRST = "0" * 64  # what the first row has before it


class Chain(enum.IntEnum):
    """The advisory lock keys under which rows are appended, one writer at a time."""

    AUDIT = 0x6F6D0001
    LINEAGE = 0x6F6D0002


@dataclass(frozen=True, slots=True)
class ChainReport:
    """What a walk over a chain found.

    rows: how many rows hold; head: the sha256 of the last of them. Rows cut off the end leave a chain that holds, so
    whoever keeps `rows` and `head` elsewhere can tell that too.
    broken: the number (`seq`) of the first row that does not hold, with the reason in `problem`; None if all hold.
    """

    rows: int
    head: str
    broken: int | None = None
    problem: str = ""

    @property
    def ok(self) -> bool:
        return self.broken is None


def lock(session: Session, chain: Chain) -> None:
    """Be the only one to append until the transaction ends. Take locks on other rows before, never after."""
    session.flush()
    session.execute(select(func.pg_advisory_xact_lock(int(chain))))
