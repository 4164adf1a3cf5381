"""What Alembic runs: on the connection of the caller, or on a database named on the command line with -x."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alembic import context
from sqlalchemy import Connection

from asset_store.database import open_database
from asset_store.tables import Base

RUNTIME_INDEXES = (
    "embeddings_hnsw_",
    "picture_embeddings_hnsw_",
)  # one an encoder, made when the encoder is first used


def is_ours(item: Any, name: str | None, kind: str, reflected: bool, compare_to: Any) -> bool:
    """Whether autogenerate should compare it: all but the indexes that are made at run time."""
    return not (kind == "index" and reflected and compare_to is None and (name or "").startswith(RUNTIME_INDEXES))


def run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        include_object=is_ours,
        compare_type=True,
        compare_server_default=True,
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    named = context.get_x_argument(as_dictionary=True)
    if "url" not in named and "home" not in named:
        raise SystemExit("Name a database: alembic -x url=postgresql://… or alembic -x home=folder")
    with open_database(named.get("url"), Path(named.get("home", "."))) as database, database.engine.connect() as own:
        run(own)
