"""Telling subscriptions what happened: web hooks, chat, e-mail. At least once, in order, never to a private address."""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import json
import re
import smtplib
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.headerregistry import Address
from email.message import EmailMessage
from urllib.parse import urlsplit

import httpx

from asset_store import telling
from asset_store.errors import DeliveryFailed
from asset_store.news import APPROVED, NEEDS_REVIEW, RECALLED, News
from asset_store.repositories import answers
from asset_store.tables import Format
from asset_store.telling import Errand
from flows.repeating import Repeating
from flows.settings import Settings, TellingSettings
from flows.wiring import Store

TIMEOUT_S, REMIND_S = 10.0, 60.0
KEPT = timedelta(days=7)  # answers by Idempotency-Key
_MATTERMOST = re.compile(r"\](?=[(\[])|@(?=(?:all|channel|here)\b)", re.IGNORECASE)  # [words](address) and calls to all
IN_WORDS = {NEEDS_REVIEW: "needs review", APPROVED: "approved", RECALLED: "recalled"}


def tell(store: Store, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> bool:
    """Tell one subscription what is new; whether there was anything to do. No transaction is open meanwhile."""
    with store.database.transaction() as session:
        errand = telling.claim(session, now())
    if errand is None:
        return False
    if not errand.news:
        return True
    told = 0
    try:
        for news in errand.news:
            send(store.settings, errand, news)
            told = news.seq
    except DeliveryFailed as error:
        with store.database.transaction() as session:
            if told:
                telling.done(session, errand, told, now())
            telling.failed(session, errand, error.message, now())
        return True
    with store.database.transaction() as session:
        telling.done(session, errand, errand.upto, now())
    return True


def send(settings: Settings, errand: Errand, news: News) -> None:
    """One row to one target. DeliveryFailed, with the reason, where it did not arrive."""
    if errand.format is Format.EMAIL:
        _send_mail(settings, errand.target, news)
        return
    of_it = news.as_json(settings.telling.address) if errand.format is Format.JSON else None
    body = json.dumps(of_it or {"text": for_chat(sentence(news, settings.telling))})
    headers = {"Content-Type": "application/json", "User-Agent": "onmodel"}
    if errand.format is Format.JSON:
        headers |= signature(errand.secret, news.id, int(datetime.now(UTC).timestamp()), body)
    _post(errand.target, body, headers, allow_private=settings.telling.allow_private)


def signature(secret: str, id_: str, at_s: int, body: str) -> dict[str, str]:
    """The headers of Standard Webhooks (standardwebhooks.com): HMAC-SHA256 of id, time and body, joined by full stops."""
    signed = hmac.new(bytes.fromhex(secret), f"{id_}.{at_s}.{body}".encode(), hashlib.sha256).digest()
    return {
        "webhook-id": id_, "webhook-timestamp": str(at_s), "webhook-signature": f"v1,{base64.b64encode(signed).decode()}",
    }  # fmt: skip


def for_chat(text: str) -> str:
    """Without any markup of Slack and Mattermost, as its words are people's and agents': no link that looks like another, no call to all."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MATTERMOST.sub("\\g<0>\N{ZERO WIDTH SPACE}", escaped)


def sentence(news: News, settings: TellingSettings) -> str:
    """For people, on one line: what happened to which picture or run, by whom, and where to look."""
    return _on_one_line(_sentence(news, settings))


def _sentence(news: News, settings: TellingSettings) -> str:
    link = f" {news.link(settings.address)}" if settings.address else ""
    it = news.about
    reason = it["reason"] if news.kind == "run" else news.detail.get("reason")
    because = f". {reason}" if reason else ""
    if news.kind == "run":
        pictures = f"{it['made']} of {it['pictures']} pictures are made"
        problem = f". {it['problem']}" if it["problem"] else ""
        return f"{_title(news)}, asked for by {it['requested_by']}{because}. {pictures}{problem}.{link}"
    waits = f". It waits at {' and '.join(it['waits_at'])}" if it["waits_at"] else ""
    what = f"{it['brand']} / {it['campaign']} / {it['shot']} #{it['variant'] + 1}: {_word(news)}, by {news.actor}"
    return f"{what}{because}{waits}.{link}"


def _title(news: News) -> str:
    it = news.about
    if news.kind == "run":
        return _on_one_line(f"{it['brand']} / {it['kind']}: {it['state']}")
    return _on_one_line(f"{it['campaign']} / {it['shot']}: {_word(news)}")


def _on_one_line(text: str) -> str:
    return " ".join(text.split())


def _word(news: News) -> str:
    return IN_WORDS.get(news.type, news.action)


def reachable(host: str, port: int, *, allow_private: bool) -> str:
    """An address of the host that may be told. DeliveryFailed where one of its addresses is private, loopback or otherwise
    not of the public network: what is inside a network is not to be reached through here."""
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        raise DeliveryFailed(f"{host} is not known", "Correct the subscription's address.") from None
    if not allow_private and any(not _is_public(address) for address in found):
        raise DeliveryFailed(f"{host} is at a private address", "Give one of the public network.")
    return sorted(found)[0]


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_global and not (mapped or ip).is_multicast


def _post(target: str, body: str, headers: dict[str, str], *, allow_private: bool) -> None:
    """To the address that was checked and no other, whatever its name is by then; redirects are not followed."""
    parts = urlsplit(target)
    host = parts.hostname or ""
    if parts.scheme != "https" and not allow_private:
        raise DeliveryFailed("only https is told", "Give the subscription an address with https.")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    address = reachable(host, port, allow_private=allow_private)
    place = f"[{address}]" if ":" in address else address
    url = f"{parts.scheme}://{place}:{port}{parts.path or '/'}" + (f"?{parts.query}" if parts.query else "")
    try:
        with httpx.Client(timeout=TIMEOUT_S, follow_redirects=False, trust_env=False) as client, client.stream(
            "POST", url, content=body.encode(), headers={**headers, "Host": parts.netloc},
            extensions={"sni_hostname": host},
        ) as answer:  # fmt: skip
            status = answer.status_code
    except httpx.HTTPError as error:
        raise DeliveryFailed(f"{host} did not take it: {type(error).__name__}", "It is told again later.") from None
    if not 200 <= status < 300:
        raise DeliveryFailed(f"{host} answered {status}", "It is told again later.")


def _send_mail(settings: Settings, target: str, news: News) -> None:
    to = news.asked if target == telling.ASKED else (target.removeprefix("mailto:"),)
    if not to:
        return
    smtp = settings.smtp
    if smtp.host is None:
        raise DeliveryFailed("no mail server is set", "Set ONMODEL_SMTP__HOST.")
    message = EmailMessage()
    message["From"], message["Message-ID"] = smtp.sender, f"<{news.id[:32]}@onmodel>"
    message["Subject"] = _title(news)
    message.set_content(sentence(news, settings.telling))
    addresses = []
    for address in to:
        with suppress(ValueError, IndexError):  # what is no address holds up no mail to others
            addresses.append(Address(addr_spec=address))
    if not addresses:
        return
    message["To"] = addresses
    try:
        with smtplib.SMTP(smtp.host, smtp.port, timeout=TIMEOUT_S) as server:
            if smtp.starttls:
                server.starttls()
            if smtp.user is not None and smtp.password is not None:
                server.login(smtp.user, smtp.password.get_secret_value())
            server.send_message(message)
    except (OSError, smtplib.SMTPException) as error:
        raise DeliveryFailed(
            f"{smtp.host} did not take the mail: {type(error).__name__}", "It is sent again later."
        ) from None


class Teller(Repeating):
    """Tells, and reminds of what is late, until it is stopped. Several may run: each subscription is told by one."""

    def __init__(self, store: Store) -> None:
        super().__init__("teller")
        self.store = store
        self._reminds_at = 0.0

    def step(self) -> bool:
        if time.monotonic() >= self._reminds_at:
            with self.store.database.transaction() as session:
                telling.remind(session, datetime.now(UTC))
                answers.forget(session, datetime.now(UTC) - KEPT)
            self._reminds_at = time.monotonic() + REMIND_S
        return tell(self.store)
