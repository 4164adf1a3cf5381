"""`/v1/subscriptions`: who is told of what happens."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Response
from pydantic import Field
from sqlalchemy.orm import Session

from asset_store import telling
from asset_store.tables import Format, Subscription
from studio.api.answers import Answer
from studio.api.assets import Asked
from studio.api.callers import Admin, StoreDep

router = APIRouter(tags=["subscriptions"])


class SubscriptionIn(Asked):
    """`target`: https://… for json and slack, mailto:… for email. `actions`: of the audit, and the events run.finished,
    asset.needs_review, asset.approved and asset.recalled; none are all actions about assets."""

    name: Annotated[str, Field(min_length=1, max_length=80)]
    target: Annotated[str, Field(min_length=1, max_length=2000)]
    format: Format = Format.JSON
    actions: Annotated[list[str], Field(max_length=50)] = []
    brand: Annotated[str | None, Field(max_length=200)] = None


class SubscriptionOut(Answer):
    """`failures` in a row; `secret`, once: what JSON is signed with, as Standard Webhooks has it."""

    name: str
    target: str
    format: Format
    actions: list[str]
    failures: int
    last_error: str
    next_at: datetime
    disabled: bool
    secret: str | None = None

    @classmethod
    def of(cls, row: Subscription, secret: str | None = None) -> SubscriptionOut:
        return cls(
            name=row.name, target=row.target, format=row.format, actions=row.actions, failures=row.failures,
            last_error=row.last_error, next_at=row.next_at, disabled=row.disabled_at is not None, secret=secret,
        )  # fmt: skip


class SubscriptionsOut(Answer):
    subscriptions: list[SubscriptionOut]


@router.get("/subscriptions")
def get_subscriptions(who: Admin, store: StoreDep) -> SubscriptionsOut:
    """All of them, with what the last try came to."""
    with store.database.reading() as session:
        return _all(session)


@router.post("/subscriptions", status_code=201)
def subscribe(body: SubscriptionIn, who: Admin, store: StoreDep) -> SubscriptionOut:
    """Tell somebody of what happens from now on. The secret is in this answer alone, so it is not answered twice."""
    with store.database.transaction() as session:
        row = telling.subscribe(session, body.name, body.target, body.format, who.actor, body.actions, body.brand)
        return SubscriptionOut.of(row, row.secret)


@router.delete("/subscriptions/{name:path}", status_code=204)
def unsubscribe(name: str, who: Admin, store: StoreDep, response: Response) -> None:
    """Tell it nothing more."""
    with store.database.transaction() as session:
        telling.unsubscribe(session, name, who.actor)


def _all(session: Session) -> SubscriptionsOut:
    return SubscriptionsOut(subscriptions=[SubscriptionOut.of(row) for row in telling.subscriptions(session)])
