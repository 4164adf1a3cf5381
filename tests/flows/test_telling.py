"""Subscriptions: told in order, at least once, signed, later when it failed, and never inside the network."""

from __future__ import annotations

import asyncio
import base64
import email
import hashlib
import hmac
import json
import re
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

from asset_store import news, telling
from asset_store.blobs import open_blobs
from asset_store.database import Database
from asset_store.errors import DeliveryFailed, NotFound, SubscriptionRefused
from asset_store.repositories import runs, schedules
from asset_store.repositories.runs import Quota, Wanted
from asset_store.reviewing import assigning, decide
from asset_store.reviewing.states import AvailabilityEvent
from asset_store.rights import availability
from asset_store.rights.recall import withdraw_reference
from asset_store.tables import AuditRow, CampaignSchedule, Format, Run, RunKind, RunState, Subscription, Verdict
from flows.character_sheet import make_character_sheet
from flows.library import ingest_library
from flows.settings import QuotaSettings, Settings, SmtpSettings, TellingSettings
from flows.sheet_request import SheetRequest
from flows.starting import start_sheet
from flows.telling import Teller, reachable, tell
from flows.wiring import Store
from tests.stories import (
    a_brand,
    a_campaign,
    a_reference,
    a_released_asset,
    an_approved_asset,
    an_asset_in_review,
    approve,
    picture_of,
)
from tests.studio_home import Home


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


def verified(secret: str, headers: dict[str, str], body: bytes) -> dict[str, Any]:
    """What was told, where its signature holds: as a receiver checks it (standardwebhooks.com)."""
    assert abs(int(headers["webhook-timestamp"]) - datetime.now(UTC).timestamp()) < 300
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    made = base64.b64encode(hmac.new(bytes.fromhex(secret), signed, hashlib.sha256).digest()).decode()
    assert f"v1,{made}" in headers["webhook-signature"].split()
    told: dict[str, Any] = json.loads(body)
    assert told["id"] == headers["webhook-id"]
    return told


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
    said = verified(secret, headers, body)
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
    assert "reject, by grace. three &lt;ears&gt;" in text
    assert "http://pages/assets/" in text


def test_what_agents_wrote_is_no_markup_in_a_chat_and_stands_on_one_line(store: Store, hook: Hook) -> None:
    subscribed(store, hook.url, Format.SLACK, actions=[news.RUN_FINISHED])
    hostile = "<https://evil|Approve here> & <!channel>\n[Approve here](https://evil)\r\n@channel\u2028done"

    def act(session: Session) -> None:
        wanted = Wanted(RunKind.SHEET, a_brand(session, "bobo"), {}, 3, "agent:planner of pat", hostile, "agent")
        runs.end(session, runs.begin(session, wanted, Quota()).id, RunState.FAILED, problem="no <b>\nface")

    happening(store, act)
    tell_all(store)
    text = json.loads(hook.told[0][1])["text"]
    assert "&lt;https://evil|Approve here&gt; &amp; &lt;!channel&gt; [Approve here]" in text
    assert "no &lt;b&gt; face" in text
    assert not {"<", ">", "\n", "\r", "\u2028"} & set(text)
    assert not re.search(r"\]\(|@channel", text)
    assert text.endswith("http://pages/runs/" + text.rpartition("/")[2])


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
    for name, actions in (("hook", []), (" ", []), ("x" * 81, []), ("other", ["applaud"]), ("other", ["run.begun"])):
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


# ---------------------------------------------------------------------------- events


def a_run(session: Session, brand: str = "bobo", by: str = "pat@lumen.example") -> Run:
    wanted = Wanted(RunKind.SHEET, a_brand(session, brand), {}, 3, by, "for the style book", "api")
    return runs.begin(session, wanted, Quota())


def a_skipped_run(session: Session) -> Run:
    due = datetime.now(UTC)
    row = CampaignSchedule(
        name="spring", brand_id=a_brand(session, "bobo").id, brief="", brief_name="spring.yaml", rhythm={}, requested_by="pat@lumen.example",
        reason="for the style book", looked_until=due,
    )  # fmt: skip
    session.add(row)
    session.flush()
    return schedules.skip(session, row, due, "the run before is still going")


def test_a_run_that_a_schedule_skipped_is_told_of(store: Store, hook: Hook) -> None:
    secret = subscribed(store, hook.url, actions=[news.RUN_FINISHED])
    run_id = happening(store, a_skipped_run).id
    tell_all(store)
    ((headers, body),) = hook.told
    said = verified(secret, headers, body)
    assert (said["type"], said["action"], said["run"]["id"]) == ("run.finished", "skip run", str(run_id))
    assert (said["run"]["state"], said["run"]["problem"]) == ("skipped", "the run before is still going")
    assert said["run"]["finished_at"]


@pytest.mark.parametrize("state", [RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED])
def test_a_run_is_told_of_at_its_end_whatever_that_is(store: Store, hook: Hook, state: RunState) -> None:
    secret = subscribed(store, hook.url, actions=[news.RUN_FINISHED])
    run_id = happening(store, a_run).id
    tell_all(store)
    assert hook.told == []  # it has begun, that is all
    if state is RunState.CANCELLED:
        happening(store, lambda s: runs.cancel(s, run_id, "max"))
    else:
        happening(store, lambda s: runs.end(s, run_id, state, problem="off model: front"))
    tell_all(store)
    ((headers, body),) = hook.told
    said = verified(secret, headers, body)
    assert (said["type"], said["link"]) == ("run.finished", f"http://pages/runs/{run_id}")
    assert "asset" not in said
    about = said["run"]
    assert about.pop("finished_at")
    assert about == {
        "id": str(run_id), "kind": "character sheet", "brand": "bobo", "state": state.value, "requested_by": "pat@lumen.example",
        "reason": "for the style book", "trigger": "api", "problem": None if state is RunState.CANCELLED else "off model: front",
        "campaign": None, "pictures": 3, "made": 0,
    }  # fmt: skip


def test_runs_are_told_of_by_their_brand_and_only_to_who_asked_for_them(store: Store, hook: Hook) -> None:
    other = Hook()
    happening(store, lambda s: (a_brand(s, "bobo"), a_brand(s, "other")))
    subscribed(store, hook.url, actions=[news.RUN_FINISHED], brand="other")
    subscribed(store, other.url, name="all of assets")
    for brand in ("bobo", "other"):
        run_id = happening(store, lambda s, brand=brand: a_run(s, brand)).id
        happening(store, lambda s, run_id=run_id: runs.end(s, run_id, RunState.SUCCEEDED))
    tell_all(store)
    assert [json.loads(body)["run"]["brand"] for _, body in hook.told] == ["other"]
    assert other.told == []
    other.server.shutdown()


def test_a_sheet_that_is_made_is_told_of_once(home: Home, prefect: Any, hook: Hook) -> None:
    asyncio.run(ingest_library(str(home.library), "pat"))
    settings = Settings(home=home.path, telling=TellingSettings(address="http://pages/", allow_private=True))
    store = Store(home.database, open_blobs(str(home.path / "blobs")), settings)
    secret = subscribed(store, hook.url, actions=[news.RUN_FINISHED, news.NEEDS_REVIEW])
    asked = SheetRequest(brand="lumen", character="Bo", views=["front", "side"], steps=2, identity_min=-1.0)
    free = QuotaSettings(brand=None, asker=None)
    run_id = happening(store, lambda s: start_sheet(s, asked, free, by="pat", trigger="api", sent=True)).id
    asyncio.run(make_character_sheet(run_id, 1))
    asyncio.run(make_character_sheet(run_id, 1))  # as a flow that was started again: it has ended already
    tell_all(store)
    told = [verified(secret, headers, body) for headers, body in hook.told]
    assert len({t["id"] for t in told}) == len(told)
    assert [t["type"] for t in told] == [*["asset.needs_review"] * len(asked.cells), "run.finished"]
    ended = told[-1]
    assert (ended["run"]["state"], ended["run"]["made"], ended["link"]) == (
        "succeeded", len(asked.cells), f"http://pages/runs/{run_id}",
    )  # fmt: skip
    assert ended["run"]["campaign"] == told[0]["asset"]["campaign"]


def test_an_asset_needs_review_at_each_stage_it_comes_to(store: Store, hook: Hook) -> None:
    subscribed(store, hook.url, actions=[news.NEEDS_REVIEW, news.APPROVED])

    def act(session: Session) -> None:
        campaign = a_campaign(session, stages=[{"name": "brand", "quorum": 2}, {"name": "legal"}])
        asset = an_approved_asset(session, campaign)
        decide.reopen(session, asset.id, "lena", "the logo is old")

    happening(store, act)
    tell_all(store)
    assert hook.types == ["asset.needs_review", "asset.needs_review", "asset.approved", "asset.needs_review"]
    assert [json.loads(body)["action"] for _, body in hook.told] == ["checks passed", "advance", "approve", "reopen"]


def test_what_is_an_event_and_an_action_is_told_once_as_the_event(store: Store, hook: Hook) -> None:
    subscribed(store, hook.url, actions=[news.APPROVED, "approve", "submit"])
    happening(store, lambda s: approve(s, an_asset_in_review(s)))
    tell_all(store)
    assert hook.types == ["asset.submit", "asset.approved"]


def test_only_a_recall_of_a_reference_recalls_an_asset(store: Store, hook: Hook) -> None:
    subscribed(store, hook.url, actions=[news.RECALLED])

    def act(session: Session) -> tuple[Any, Any]:
        reference = a_reference(session)
        recalled = a_released_asset(session, [reference])
        for asset in (a_released_asset(session), a_released_asset(session)):
            availability.suspend(session, asset.id, "rita", "the price is wrong")  # by her own word
        withdraw_reference(session, reference.id, "rita", "the model said no")
        return recalled.id, asset.id

    recalled, suspended = happening(store, act)
    for id_ in (suspended, recalled):
        proposal = happening(
            store, lambda s, i=id_: availability.propose(s, i, AvailabilityEvent.WITHDRAW, "rita", "for good")
        )
        happening(store, lambda s, p=proposal.id: availability.confirm(s, p, "sam"))
    tell_all(store)
    said = [json.loads(body) for _, body in hook.told]
    assert [(s["type"], s["action"], s["asset"]["id"]) for s in said] == [
        ("asset.recalled", "suspend", str(recalled)), ("asset.recalled", "withdraw", str(recalled)),
    ]  # fmt: skip


def test_a_chat_and_who_asked_are_told_of_a_run_in_a_sentence(store: Store, own_database: Database, hook: Hook) -> None:
    Mail.messages = []
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Mail)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    smtp = SmtpSettings(host="127.0.0.1", port=server.server_address[1], starttls=False)
    posted = Store(own_database, store.blobs, store.settings.model_copy(update={"smtp": smtp}))
    subscribed(store, hook.url, Format.SLACK, actions=[news.RUN_FINISHED])
    subscribed(store, telling.ASKED, Format.EMAIL, name="askers", actions=[news.RUN_FINISHED])
    for by in ("key:calendar of pat@lumen.example", "ada"):  # ada has no address
        run_id = happening(store, lambda s, by=by: a_run(s, by=by)).id
        happening(store, lambda s, i=run_id: runs.end(s, i, RunState.FAILED, problem="its flow was lost 5 times"))
    tell_all(posted)
    server.shutdown()
    server.server_close()
    text = json.loads(hook.told[1][1])["text"]
    assert text == (
        "bobo / character sheet: failed, asked for by ada. for the style book. 0 of 3 pictures are made. its flow was lost 5 times."
        f" http://pages/runs/{run_id}"
    )
    (mail,) = [email.message_from_string(m) for m in Mail.messages]
    assert (mail["To"], mail["Subject"]) == ("pat@lumen.example", "bobo / character sheet: failed")
