"""Subscriptions: told in order, at least once, signed, later when it failed, and never inside the network."""

from __future__ import annotations

import base64
import email
import hashlib
import hmac
import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from asset_store import telling
from asset_store.blobs import open_blobs
from asset_store.database import Database
from asset_store.errors import DeliveryFailed, NotFound, SubscriptionRefused
from asset_store.reviewing import assigning, decide
from asset_store.tables import AuditRow, Format, Subscription, Verdict
from flows.settings import Settings, SmtpSettings, TellingSettings
from flows.telling import Teller, reachable, tell
from flows.wiring import Store
from tests.stories import a_campaign, an_asset_in_review, approve, picture_of


class Hook:
    """An HTTP server that keeps what it is told, and answers with `status`."""

    def __init__(self) -> None:
        self.told: list[tuple[dict[str, str], bytes]] = []
        self.status = 200
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if hook.status < 300:
                    hook.told.append(({k.lower(): v for k, v in self.headers.items()}, body))
                self.send_response(hook.status)
                self.send_header("Location", "http://127.0.0.1:1/elsewhere")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook?a=b"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def types(self) -> list[str]:
        return [json.loads(body)["type"] for _, body in self.told]


class Mail(socketserver.StreamRequestHandler):
    """As much of SMTP as a client needs to hand over a message."""

    messages: list[str] = []

    def handle(self) -> None:
        def answer(line: str) -> None:
            self.wfile.write(f"{line}\r\n".encode())

        answer("220 here")
        while line := self.rfile.readline().decode().strip():
            word = line[:4].upper()
            if word == "DATA":
                answer("354 go on")
                lines = []
                while (data := self.rfile.readline().decode().rstrip("\r\n")) != ".":
                    lines.append(data)
                self.messages.append("\n".join(lines))
                answer("250 taken")
            elif word == "QUIT":
                answer("221 bye")
                return
            else:
                answer("250 ok")


@pytest.fixture
def hook() -> Iterator[Hook]:
    made = Hook()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def store(own_database: Database, tmp_path: Path) -> Store:
    settings = Settings(home=tmp_path, telling=TellingSettings(address="http://pages", allow_private=True))
    return Store(own_database, open_blobs(str(tmp_path / "blobs")), settings)


def subscribed(store: Store, target: str, format_: Format = Format.JSON, **more: Any) -> str:
    with store.database.transaction() as session:
        return telling.subscribe(session, more.pop("name", "hook"), target, format_, "ada", **more).secret


def happening(store: Store, act: Callable[[Session], Any]) -> Any:
    with store.database.transaction() as session:
        return act(session)


def tell_all(store: Store, now: datetime | None = None) -> None:
    while tell(store, lambda: now or datetime.now(UTC)):
        pass


def test_what_happens_is_told_in_order_signed_and_once(store: Store, hook: Hook) -> None:
    happening(store, lambda s: approve(s, an_asset_in_review(s)))  # before anybody wanted to know
    secret = subscribed(store, hook.url)
    happening(store, lambda s: approve(s, an_asset_in_review(s)))
    tell_all(store)
    tell_all(store)
    assert hook.types == ["asset.submit", "asset.checks_passed", "asset.approve"]
    headers, body = hook.told[-1]
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    made = base64.b64encode(hmac.new(bytes.fromhex(secret), signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{made}"
    said = json.loads(body)
    assert (said["actor"], said["asset"]["review"], said["detail"]["verdict"]) == ("grace", "approved", "approve")
    assert secret.encode() not in b"".join(b for _, b in hook.told)
    with store.database.transaction() as session:
        assert secret not in "".join(str(row.detail) for row in session.scalars(select(AuditRow)))


def test_what_fails_is_told_later_and_later_in_its_order(store: Store, hook: Hook) -> None:
    subscribed(store, hook.url)
    happening(store, an_asset_in_review)
    hook.status = 500
    now = datetime.now(UTC)
    waits = []
    for _ in range(12):
        assert tell(store, lambda now=now: now)
        assert not tell(store, lambda now=now: now)  # not at once
        with store.database.transaction() as session:
            row = session.scalars(select(Subscription)).one()
            waits.append((row.next_at - now).total_seconds())
            assert "answered 500" in row.last_error
            now = row.next_at
    assert waits[:4] == [5, 10, 20, 40]
    assert waits == sorted(waits)
    assert max(waits) == 3600
    hook.status = 200
    tell_all(store, now)
    assert hook.types == ["asset.submit", "asset.checks_passed"]


def test_what_fails_for_days_is_switched_off_and_that_is_on_record(store: Store, hook: Hook) -> None:
    subscribed(store, hook.url)
    happening(store, an_asset_in_review)
    hook.status = 503
    now = datetime.now(UTC)
    for _ in range(telling.MOST_FAILURES):
        assert tell(store, lambda now=now: now)
        now += timedelta(hours=1)
    assert not tell(store, lambda: now)
    with store.database.transaction() as session:
        assert "switch subscription off" in session.scalars(select(AuditRow.action)).all()


def test_one_that_fails_holds_up_no_other(store: Store, hook: Hook) -> None:
    subscribed(store, "http://127.0.0.1:1/nobody", name="gone")
    subscribed(store, hook.url)
    happening(store, an_asset_in_review)
    tell_all(store)
    assert len(hook.told) == 2


def test_only_what_was_asked_for_is_told(store: Store, hook: Hook) -> None:
    subscribed(store, hook.url, actions=["reject"], brand=None)
    other = Hook()
    happening(store, lambda s: a_campaign(s, brand="other"))
    subscribed(store, other.url, name="other", brand="other")

    def act(session: Session) -> None:
        asset = an_asset_in_review(session)
        decide.decide(session, asset.id, Verdict.REJECT, "grace", "three ears", picture_of(asset))

    happening(store, act)
    tell_all(store)
    assert (hook.types, other.types) == (["asset.reject"], [])
    other.server.shutdown()


def test_a_chat_gets_a_sentence(store: Store, hook: Hook) -> None:
    subscribed(store, hook.url, Format.SLACK, actions=["reject"])

    def act(session: Session) -> None:
        asset = an_asset_in_review(session, a_campaign(session))
        decide.decide(session, asset.id, Verdict.REJECT, "grace", "three <ears>", picture_of(asset))

    happening(store, act)
    tell_all(store)
    text = json.loads(hook.told[0][1])["text"]
    assert "reject, by grace. three <ears>" in text
    assert "http://pages/assets/" in text


def test_who_is_asked_and_late_gets_a_mail(store: Store, own_database: Database) -> None:
    Mail.messages = []
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Mail)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    smtp = SmtpSettings(host="127.0.0.1", port=server.server_address[1], starttls=False)
    posted = Store(own_database, store.blobs, store.settings.model_copy(update={"smtp": smtp}))
    subscribed(store, telling.ASKED, Format.EMAIL, actions=["assign", telling.OVERDUE])

    def act(session: Session) -> None:
        asset = an_asset_in_review(session, a_campaign(session, stages=[{"name": "brand", "due_hours": 1}]))
        assigning.assign(session, asset.id, "brand", "grace@lumen.example", "pat")
        assigning.assign(session, asset.id, "brand", "hedy", "pat")  # no address: nothing to send there
        assigning.assign(session, asset.id, "brand", "broken@", "pat")

    happening(store, act)
    later = datetime.now(UTC) + timedelta(hours=2)
    assert [happening(store, lambda s: telling.remind(s, later)) for _ in range(2)] == [1, 0]
    tell_all(posted)
    server.shutdown()
    server.server_close()
    mails = [email.message_from_string(m) for m in Mail.messages]
    assert [m["Subject"].rpartition(": ")[2] for m in mails] == ["assign", "assign", "assign", "overdue"]
    assert {m["To"] for m in mails} == {"grace@lumen.example"}


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "::1", "10.0.0.7", "192.168.1.1", "169.254.169.254", "0.0.0.0", "::ffff:127.0.0.1", "100.64.0.1", "224.0.0.1"]  # noqa: S104
)  # fmt: skip
def test_what_is_inside_the_network_is_not_told(store: Store, hook: Hook, host: str) -> None:
    with pytest.raises(DeliveryFailed, match="private"):
        reachable(host, 443, allow_private=False)
    strict = Store(store.database, store.blobs, Settings(home=store.settings.home))
    subscribed(store, f"https://{f'[{host}]' if ':' in host else host}/hook")
    happening(store, an_asset_in_review)
    assert tell(strict)
    with store.database.transaction() as session:
        assert "private" in session.scalars(select(Subscription.last_error)).one()
    assert hook.told == []


def test_a_redirect_is_not_followed_and_plain_http_is_not_used(store: Store, hook: Hook) -> None:
    subscribed(store, hook.url)
    happening(store, an_asset_in_review)
    hook.status = 307
    assert tell(store)
    strict = Store(store.database, store.blobs, Settings(home=store.settings.home))
    assert tell(strict, lambda: datetime.now(UTC) + timedelta(minutes=1))
    with store.database.transaction() as session:
        row = session.scalars(select(Subscription)).one()
        assert (row.failures, row.last_error) == (2, "only https is told")


@pytest.mark.parametrize(
    ("target", "format_"),
    [
        ("ftp://a/b", Format.JSON), ("https://", Format.JSON), ("https://user:pw@a/", Format.SLACK), ("nonsense", Format.JSON),
        ("https://a:99999/", Format.JSON), ("mailto:a@b", Format.JSON), ("https://a/", Format.EMAIL), ("mailto:", Format.EMAIL),
        ("mailto:a@b?bcc=c@d", Format.EMAIL), ("https://a/\nb", Format.JSON), ("mailto:a@b@c", Format.EMAIL),
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused(session: Session, target: str, format_: Format) -> None:
    with pytest.raises(SubscriptionRefused):
        telling.subscribe(session, "hook", target, format_, "ada")


def test_names_and_actions_are_checked(session: Session) -> None:
    telling.subscribe(session, "hook", "https://a.example/", Format.JSON, "ada")
    for name, actions in (("hook", []), (" ", []), ("x" * 81, []), ("other", ["applaud"])):
        with pytest.raises(SubscriptionRefused):
            telling.subscribe(session, name, "https://a.example/", Format.JSON, "ada", actions)
    with pytest.raises(NotFound):
        telling.subscribe(session, "other", "https://a.example/", Format.JSON, "ada", brand="none")
    telling.unsubscribe(session, "hook", "ada")
    with pytest.raises(NotFound):
        telling.unsubscribe(session, "hook", "ada")


def test_a_teller_tells_by_itself_and_stops(store: Store, hook: Hook) -> None:
    subscribed(store, hook.url)
    teller = Teller(store)
    teller.start()
    happening(store, an_asset_in_review)
    waited = threading.Event()
    for _ in range(100):
        if len(hook.told) == 2:
            break
        waited.wait(0.1)
    teller.stop()
    assert not teller.is_alive()
    assert hook.types == ["asset.submit", "asset.checks_passed"]
