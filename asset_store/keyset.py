"""Places in a list that is ordered by when its rows were made, newest first: what a page ends with and the next begins after."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import Select, literal, tuple_
from sqlalchemy.orm import InstrumentedAttribute

from asset_store.errors import NotFound


def mark_of(made_at: datetime, id_: uuid.UUID) -> str:
    """The place of a row, as `after` has it."""
    return f"{made_at.isoformat()}|{id_}"


def newest(
    question: Select[Any], made_at: InstrumentedAttribute[datetime], id_: InstrumentedAttribute[uuid.UUID], after: str | None, limit: int,
    of: str,
) -> Select[Any]:  # fmt: skip
    """The newest that the question asks for, behind that place, and one more that says whether others follow."""
    if after is not None:
        question = question.where(tuple_(made_at, id_) < tuple_(*map(literal, read_mark(after, of))))
    return question.order_by(made_at.desc(), id_.desc()).limit(limit + 1)


def read_mark(mark: str, of: str) -> tuple[datetime, uuid.UUID]:
    """The place that a mark names. NotFound, in the words of the list that it is of, for one that was never given."""
    try:
        made_at, id_ = mark.split("|")
        moment = datetime.fromisoformat(made_at)
        if moment.tzinfo is None:
            raise ValueError
        return moment, uuid.UUID(id_)
    except ValueError:
        raise NotFound(f"page of {of} at", mark, "Begin at the first page.") from None
