"""The API at an address, and clients of it with real keys."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from asset_store.people.permissions import Action
from asset_store.tables import Role
from studio.client import Client
from tests.stories import a_character
from tests.studio.api.conftest import Door, door
from tests.studio.served import served

__all__ = ["door"]
PRODUCER = (Action.VIEW, Action.COMMENT, Action.PRODUCE, Action.ASSIGN)


@dataclass
class Far:
    """A served application, and what comes to it."""

    door: Door
    address: str
    open_: ExitStack

    def client(self, name: str = "calendar", *scopes: Action, address: str = "", **options: Any) -> Client:
        """With a new key of olga's."""
        secret = self.door.secret(name, "olga", *(scopes or PRODUCER))
        return self.open_.enter_context(Client(address or self.address, secret, **options))


@pytest.fixture
def far(door: Door) -> Iterator[Far]:
    """The brand bobo with its character Bobo, and olga, whose keys may what she may."""
    with door.session() as session:
        a_character(session)
    door.person("olga", *Role)
    with ExitStack() as open_:
        yield Far(door, open_.enter_context(served(door.app)), open_)
