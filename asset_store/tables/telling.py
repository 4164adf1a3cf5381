"""Who is told of what happens: subscriptions to the audit, each with a cursor of its own."""

from __future__ import annotations

import enum
import uuid
from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, Text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from asset_store.tables.base import Base, Id, Made, text_enum


class Format(enum.StrEnum):
    JSON = "json"  # signed, as Standard Webhooks has it
    SLACK = "slack"  # {"text": …}
    EMAIL = "email"


class Subscription(Base):
    """Where rows of the audit are told, in their order, at least once. The audit is the outbox: a change and its row are one
    transaction, and the chain's lock makes the order of rows that of commits."""

    __tablename__ = "subscriptions"
    id: Mapped[Id]
    name: Mapped[str] = mapped_column(unique=True)
    target: Mapped[str]  # https://… or mailto:…
    format: Mapped[Format] = mapped_column(text_enum(Format))
    secret: Mapped[str]  # what JSON is signed with; it is sent nowhere
    actions: Mapped[list[str]] = mapped_column(ARRAY(Text))  # of the audit, and events; none: all actions about assets
    brand_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("brands.id"))
    cursor: Mapped[int] = mapped_column(BigInteger)  # the last row of the audit that was told or passed over
    failures: Mapped[int] = mapped_column(default=0)  # in a row
    next_at: Mapped[Made]
    last_error: Mapped[str] = mapped_column(default="")
    disabled_at: Mapped[datetime | None]
    by: Mapped[str]
    made_at: Mapped[Made]
