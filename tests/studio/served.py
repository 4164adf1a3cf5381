"""The application on a port of its own, for those who come by HTTP: browsers, and a provider that sends them back."""

from __future__ import annotations

import html
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from sqlalchemy import select

from asset_store.people import accounts
from asset_store.tables import AuditRow, Person, Role
from flows.wiring import Store
from studio.api.company import Provider
from studio.api.limits import Rate
from studio.api.serving import LOOPBACK, listening

UNLIMITED = Rate(burst=1_000_000, per_s=1e6)


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """Its address, while it runs in a thread of this process."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    socket = listening(LOOPBACK, 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://{LOOPBACK}:{socket.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        socket.close()


@dataclass
class House:
    """The application at an address, and browsers that come to it."""

    store: Store
    app: FastAPI
    address: str

    def browser(self) -> httpx.Client:
        return httpx.Client(base_url=self.address, follow_redirects=True, timeout=30)

    def forget(self) -> None:
        """What it knows of the provider, as ten minutes later."""
        self.app.state.provider = Provider(self.store.settings.oidc)

    def person(self, handle: str = "grace@lumen.example", subject: str | None = None) -> None:
        with self.store.database.transaction() as session:
            accounts.add_person(session, handle, "Grace H.", "ada", subject)
            accounts.grant(session, handle, Role.VIEWER, "ada")

    def person_of(self, handle: str) -> Person | None:
        with self.store.database.transaction() as session:
            return accounts.find_person(session, handle)

    def audited(self, *actions: str) -> list[tuple[str, str, dict[str, Any]]]:
        with self.store.database.transaction() as session:
            rows = session.scalars(select(AuditRow).where(AuditRow.action.in_(actions)).order_by(AuditRow.seq)).all()
            return [(r.actor, r.action, r.detail) for r in rows]


Open = Callable[..., House]


def at_provider(browser: httpx.Client, sub: str, path: str = "/sign-in/company") -> httpx.Response:
    """Go there and log in as this account: where that ends."""
    seen = browser.get(path)
    for _ in range(2):  # the login, then the consent
        form = re.search(r'<form autocomplete="off" action="([^"]+)"', seen.text)
        prompt = re.search(r'name="prompt" value="(\w+)"', seen.text)
        if form is None or prompt is None:
            break
        seen = browser.post(html.unescape(form[1]), data={"prompt": prompt[1], "login": sub, "password": "any"})
    return seen


def is_signed_in(browser: httpx.Client) -> bool:
    return browser.get("/v1/me").status_code == 200


def refused(answer: httpx.Response, status: int, told: str) -> None:
    """Calmly, on the sign-in page, which offers to try again."""
    assert answer.status_code == status, answer.text
    shown = " ".join(answer.text.split())
    assert 'role="alert"' in shown
    assert told in html.unescape(shown)
    assert "Sign in with" in shown


def signed_in(here: House) -> httpx.Client:
    browser = here.browser()
    browser.get("/sign-in/company")
    return browser
