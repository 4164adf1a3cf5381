"""The API on a database of the test's own, called as a program and as a browser would."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy.orm import Session

from asset_store.blobs import open_blobs
from asset_store.database import Database
from asset_store.people import accounts, passes
from asset_store.people.permissions import BY_AGENT, NEVER_BY_KEY, Action
from asset_store.tables import Role
from flows.settings import DeliverySettings, Settings
from flows.wiring import Store
from studio.api.app import create_app
from studio.api.callers import COOKIE, CSRF_HEADER, csrf_of
from tests.studio.served import UNLIMITED


class Door:
    """The application, and people at it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.app = create_app(store, calls=UNLIMITED, sign_ins=UNLIMITED)

    @contextmanager
    def session(self) -> Iterator[Session]:
        with self.store.database.transaction() as session:
            yield session

    def nobody(self, **options: Any) -> TestClient:
        return TestClient(self.app, raise_server_exceptions=False, **options)

    def person(self, handle: str, *roles: Role, brand: str | None = None, stage: str | None = None) -> TestClient:
        """A browser in which somebody with these roles is signed in."""
        with self.session() as session:
            if accounts.find_person(session, handle) is None:
                accounts.add_person(session, handle, handle.title(), "system")
            for role in roles:
                accounts.grant(session, handle, role, "system", brand, stage if role is Role.REVIEWER else None)
            cookie = passes.use_link(session, passes.make_link(session, handle, "system"))
        return self.nobody(cookies={COOKIE: cookie}, headers={CSRF_HEADER: csrf_of(cookie)})

    def key(self, name: str, owner: str, *scopes: Action, brand: str | None = None, agent: bool = False) -> TestClient:
        secret = self.secret(name, owner, *scopes, brand=brand, agent=agent)
        return self.nobody(headers={"Authorization": f"Bearer {secret}"})

    def secret(self, name: str, owner: str, *scopes: Action, brand: str | None = None, agent: bool = False) -> str:
        with self.session() as session:
            may = set(scopes) or (set(BY_AGENT) if agent else set(Action) - NEVER_BY_KEY)
            _, secret = passes.make_key(session, owner, name, may, timedelta(days=1), "system", brand, agent)
        return secret


@pytest.fixture
def door(own_database: Database, tmp_path: Path) -> Door:
    places = DeliverySettings(places={"web": str(tmp_path / "web")})
    return Door(Store(own_database, open_blobs(str(tmp_path / "blobs")), Settings(home=tmp_path, delivery=places)))
