"""Settings: one's own keys, links and browsers, and, for admins, people, keys and who is told of what happens."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from sqlalchemy import select

from asset_store import telling
from asset_store.news import EVENTS
from asset_store.people import accounts, passes, saved, shares
from asset_store.people.permissions import NEVER_BY_KEY, Action
from asset_store.tables import Brand, Format, Role
from studio.api.answers import KeyOut, PersonOut, abilities
from studio.api.callers import StoreDep
from studio.api.shares import ShareOut
from studio.api.subscriptions import SubscriptionOut
from studio.pages import lists
from studio.pages.rendering import page

router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)


@router.get("/settings")
def settings_page(request: Request, store: StoreDep) -> Response:
    who = lists.visitor(request, store)
    administers = who.may(Action.ADMINISTER, None)
    with store.database.reading() as session:
        brands = {row[0]: row[1] for row in session.execute(select(Brand.id, Brand.name).order_by(Brand.name))}
        mine = abilities(who, brands)
        links = [ShareOut.of(link) for link in shares.links(session, who.brands(Action.SHARE))]
        return page(
            request, "settings.html", who, administers=administers, mine=mine, brands=list(brands.values()),
            keys=[KeyOut.of(k) for k in passes.keys(session, None if administers else who.person_id)],
            saved=saved.kept(session, who.person_id), shares=[s for s in links if not s.revoked],
            people=[PersonOut.of(p, brands) for p in accounts.people(session)] if administers else [],
            subscriptions=[SubscriptionOut.of(s) for s in telling.subscriptions(session)] if administers else [],
            roles=[r.value for r in Role], formats=[f.value for f in Format], events=EVENTS,
            scopes=[a.value for a in Action if a not in NEVER_BY_KEY],
        )  # fmt: skip
