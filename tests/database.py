"""A real PostgreSQL for the tests: one embedded server a run, migrated from empty, every test rolled back."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from asset_store.database import Database, open_database

_numbers = itertools.count(1)
VERSIONS = Path(__file__).resolve().parent.parent / "migrations" / "versions"
HEAD = max(f.name[:4] for f in VERSIONS.glob("[0-9]*.py"))  # the newest migration


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """The migrated database that `session` works in; a test that commits to it uses `own_database` instead."""
    with open_database(None, tmp_path_factory.mktemp("database")) as opened:
        opened.migrate()
        opened.engine.dispose()
        beside = open_database(_named(opened, "template1"), tmp_path_factory.getbasetemp())
        with beside, beside.direct() as connection:
            connection.execute("CREATE DATABASE migrated TEMPLATE postgres")
        yield opened


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    """A session whose work, commits included, is rolled back after the test."""
    with database.engine.connect() as connection:
        transaction = connection.begin()
        with Session(connection, join_transaction_mode="create_savepoint", expire_on_commit=False) as opened:
            yield opened
        transaction.rollback()


@pytest.fixture
def own_database(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """A migrated database of the test's own, for several connections that commit; dropped after the test."""
    with cloned(database, "migrated", tmp_path_factory.getbasetemp()) as opened:
        yield opened


@pytest.fixture
def empty_database(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """A database with nothing in it, for the migrations; dropped after the test."""
    with cloned(database, "template0", tmp_path_factory.getbasetemp()) as opened:
        yield opened


@contextmanager
def cloned(database: Database, template: str, home: Path) -> Iterator[Database]:
    """A copy of the database `template` on the same server, to which nobody may be connected; dropped at the end."""
    name = f"test_{next(_numbers)}"
    with database.direct() as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}".encode())
    with open_database(_named(database, name), home) as opened:
        yield opened
    with database.direct() as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def _named(database: Database, name: str) -> str:
    return database.url.set(database=name).render_as_string(hide_password=False)
