"""The declarative base, the column types every table uses, and their naming convention."""

from __future__ import annotations

import enum
import uuid
from datetime import datetime
from typing import Annotated, Any

from sqlalchemy import DateTime, Enum, MetaData, Text, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, mapped_column


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {str: Text, dict[str, Any]: JSONB, list[Any]: JSONB, datetime: DateTime(timezone=True)}


Id = Annotated[uuid.UUID, mapped_column(primary_key=True, default=uuid.uuid4)]
Made = Annotated[datetime, mapped_column(server_default=func.now())]
Sha256 = Annotated[str, mapped_column(Text)]


def text_enum(kind: type[enum.StrEnum], length: int = 24) -> Enum:
    """A str enum stored as its value in a varchar, so that new members need no migration."""
    return Enum(
        kind, native_enum=False, length=length, create_constraint=False, values_callable=lambda e: [m.value for m in e]
    )
