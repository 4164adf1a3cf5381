"""An application that a company's provider sends browsers back to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from asset_store.blobs import open_blobs
from asset_store.database import Database
from flows.settings import OidcSettings, Settings, TellingSettings
from flows.wiring import Store
from studio.api.app import create_app
from studio.api.limits import Rate
from tests.oidc_provider import SECRET
from tests.studio.making import studio
from tests.studio.served import UNLIMITED, House, Open, served

__all__ = ["house", "studio"]


@pytest.fixture
def house(own_database: Database, tmp_path: Path) -> Iterator[Open]:
    with ExitStack() as open_:

        def opened(
            issuer: str, client_id: str = "onmodel", secret: str | None = SECRET, address: str = "",
            sign_ins: Rate = UNLIMITED, **more: Any,
        ) -> House:  # fmt: skip
            oidc = OidcSettings(issuer=issuer, client_id=client_id, client_secret=secret and SecretStr(secret), **more)
            settings = Settings(home=tmp_path, oidc=oidc, telling=TellingSettings(address=address))
            store = Store(own_database, open_blobs(str(tmp_path / "blobs")), settings)
            app = create_app(store, calls=UNLIMITED, sign_ins=sign_ins)
            return House(store, app, open_.enter_context(served(app)))

        yield opened
