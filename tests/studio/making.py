"""A studio that makes what it is asked for: the example library, the API at an address, and flows that carry its runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from asset_store.people import accounts, passes
from asset_store.people.permissions import Action
from asset_store.tables import Role
from flows.starting import start_one
from flows.wiring import Store, open_store
from studio.api.app import create_app
from tests.studio.served import UNLIMITED, served
from tests.studio_home import Home

SCOPES = {Action.VIEW, Action.COMMENT, Action.PRODUCE, Action.ASSIGN}


@dataclass
class Studio:
    store: Store
    address: str

    def secret(self, name: str, owner: str = "pat", **options: Any) -> str:
        """Of a new key."""
        with self.store.database.transaction() as session:
            return passes.make_key(session, owner, name, SCOPES, timedelta(days=1), "system", **options)[1]


@pytest.fixture
def studio(ingested: Home, prefect: object) -> Iterator[Studio]:
    """pat, who produces for all brands, and rosa, who reviews; runs are made by real flows with a worker each, one at a time."""
    from flows.character_sheet import make_character_sheet  # here, as they load the engine

    over = threading.Event()

    def carry(deployment: str, run_id: UUID, sent: int) -> None:
        assert deployment.startswith("make-character-sheet/")
        asyncio.run(make_character_sheet(run_id, 1))

    with ExitStack() as open_:
        store = open_.enter_context(open_store())

        def work() -> None:
            while not over.wait(0.2):
                start_one(store, carry)

        with store.database.transaction() as session:
            for handle, role in (("pat", Role.PRODUCER), ("rosa", Role.REVIEWER)):
                accounts.add_person(session, handle, handle.title(), "system")
                accounts.grant(session, handle, role, "system")
        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield Studio(store, open_.enter_context(served(create_app(store, calls=UNLIMITED, sign_ins=UNLIMITED))))
        finally:
            over.set()
            thread.join(120)
