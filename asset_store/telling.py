"""Subscriptions: what of the audit is told to whom, claimed by one teller at a time, and what becomes of a try."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import urlsplit

from sqlalchemy import DateTime, Text, cast, exists, func, select
from sqlalchemy.orm import Session

from asset_store import audit
from asset_store.errors import NotFound, SubscriptionRefused
from asset_store.news import ACTIONS, EVENTS, OVERDUE, News, news_of
from asset_store.people.accounts import brand_id_of
from asset_store.tables import Asset, AuditRow, Format, Subscription

ASKED = "mailto:asked"  # whoever is asked to decide, or asked for a run, where their handle is an address
ROWS_AT_ONCE, NEWS_AT_ONCE = 200, 10
LEASE = timedelta(minutes=2)  # longer than ten tries take
SHORTEST_WAIT, LONGEST_WAIT = timedelta(seconds=5), timedelta(hours=1)
MOST_FAILURES = 40  # some 30 hours of an hour each; then it is switched off


@dataclass(frozen=True, slots=True)
class Errand:
    """What one subscription is to be told next, in order; `upto` is where it has got to when all of it is told."""

    id: uuid.UUID
    name: str
    target: str
    format: Format
    secret: str
    news: tuple[News, ...]
    upto: int


def subscribe(
    session: Session, name: str, target: str, format_: Format, by: str, actions: Collection[str] = (), brand: str | None = None
) -> Subscription:  # fmt: skip
    """Tell `target` of what happens from now on. actions: of the audit and EVENTS; none is every action about assets.

    SubscriptionRefused; NotFound.
    """
    name = " ".join(name.split())
    if not 0 < len(name) <= 80 or not name.isprintable():
        raise SubscriptionRefused("a subscription needs a name", "Say in at most 80 letters what it is for.")
    if session.scalar(select(Subscription.id).where(Subscription.name == name)) is not None:
        raise SubscriptionRefused(f"there is a subscription {name} already", "Choose another name.")
    if strange := sorted(set(actions) - ACTIONS - set(EVENTS)):
        there_are = ", ".join([*EVENTS, *sorted(ACTIONS)])
        raise SubscriptionRefused(f"nothing is called {strange[0][:40]!r}", f"There are: {there_are}.")
    _check_target(target, format_)
    brand_id = brand_id_of(session, brand)
    newest = session.scalar(select(func.coalesce(func.max(AuditRow.seq), 0)))
    row = Subscription(
        name=name, target=target, format=format_, secret=secrets.token_hex(32), actions=sorted(set(actions)), brand_id=brand_id,
        cursor=newest, failures=0, last_error="", by=by,
    )  # fmt: skip
    session.add(row)
    session.flush()
    told = {"name": name, "to": target, "format": format_.value, "actions": row.actions, "brand": brand}
    audit.record(session, by, "subscribe", f"subscription {row.id}", told)
    return row


def unsubscribe(session: Session, name: str, by: str) -> None:
    row = get_subscription(session, name)
    session.delete(row)
    session.flush()
    audit.record(session, by, "unsubscribe", f"subscription {row.id}", {"name": name})


def get_subscription(session: Session, name: str) -> Subscription:
    row = session.scalar(select(Subscription).where(Subscription.name == name))
    if row is None:
        raise NotFound("subscription", name, "`onmodel subscriptions list` names those there are.")
    return row


def subscriptions(session: Session) -> Sequence[Subscription]:
    return session.scalars(select(Subscription).order_by(Subscription.name)).all()


def claim(session: Session, now: datetime) -> Errand | None:
    """The next subscription that there is something for, taken for two minutes; None where there is nothing to tell.

    What does not concern it is passed over.
    """
    newest = session.scalar(select(func.coalesce(func.max(AuditRow.seq), 0))) or 0
    due = (
        select(Subscription)
        .where(Subscription.disabled_at.is_(None), Subscription.next_at <= now, Subscription.cursor < newest)
        .order_by(Subscription.next_at)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    row = session.scalar(due)
    if row is None:
        return None
    rows = session.scalars(
        select(AuditRow).where(AuditRow.seq > row.cursor).order_by(AuditRow.seq).limit(ROWS_AT_ONCE)
    ).all()
    found = [told for r in rows if (told := news_of(session, r, row)) is not None]
    news = tuple(found[:NEWS_AT_ONCE])
    upto = news[-1].seq if len(found) > NEWS_AT_ONCE else rows[-1].seq if rows else row.cursor
    if not news:
        row.cursor = upto
        return Errand(row.id, row.name, row.target, row.format, row.secret, (), upto)
    row.next_at = now + LEASE
    return Errand(row.id, row.name, row.target, row.format, row.secret, news, upto)


def done(session: Session, errand: Errand, seq: int, now: datetime) -> None:
    """It was told up to that row: what comes next may be told at once."""
    row = session.get(Subscription, errand.id, with_for_update=True)
    if row is not None:
        row.cursor, row.failures, row.last_error, row.next_at = max(row.cursor, seq), 0, "", now


def failed(session: Session, errand: Errand, why: str, now: datetime) -> None:
    """It is told again later, each time after twice as long; after some thirty hours it is switched off, and told so here."""
    row = session.get(Subscription, errand.id, with_for_update=True)
    if row is None:
        return
    row.failures += 1
    row.last_error = why[:500]
    row.next_at = now + min(LONGEST_WAIT, SHORTEST_WAIT * 2 ** min(row.failures - 1, 12))
    if row.failures >= MOST_FAILURES:
        row.disabled_at = now
        audit.record(
            session, "system", "switch subscription off", f"subscription {row.id}", {"name": row.name, "why": why[:500]}
        )


def remind(session: Session, now: datetime) -> int:
    """An audit row for every asset that is late at its stages, once a round; how many."""
    said = exists().where(
        AuditRow.subject == func.concat("asset ", cast(Asset.id, Text)),
        AuditRow.action == OVERDUE,
        cast(AuditRow.detail["due_at"].astext, DateTime(timezone=True)) == Asset.due_at,
    )
    late = session.scalars(
        select(Asset)
        .where(Asset.due_at < now, ~said)
        .order_by(Asset.due_at, Asset.id)
        .limit(500)
        .with_for_update(of=Asset, skip_locked=True)
    ).all()
    for asset in late:
        due = asset.due_at.isoformat() if asset.due_at else ""
        audit.record(session, "system", OVERDUE, f"asset {asset.id}", {"due_at": due, "waits_at": list(asset.waits_at)})
    return len(late)


def _check_target(target: str, format_: Format) -> None:
    try:
        parts = urlsplit(target)
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    if len(target) > 2000 or not target.isprintable() or " " in target:
        parts = urlsplit("")
    if format_ is Format.EMAIL:
        if parts.scheme != "mailto" or not (target == ASKED or parts.path.count("@") == 1) or parts.query:
            raise SubscriptionRefused("this is no address for e-mail", f"Give mailto:somebody@example.com, or {ASKED}.")
    elif parts.scheme not in ("https", "http") or not parts.hostname or parts.username or parts.password:
        raise SubscriptionRefused("this is no address of a web hook", "Give https://host/path, without a user in it.")
