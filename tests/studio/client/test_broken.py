"""The client where the way to the server breaks: nothing is made twice, nothing is missed, nothing hangs."""

from __future__ import annotations

import threading
import time
import uuid
from typing import Any

import pytest
from sqlalchemy import select
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from asset_store.repositories import runs
from asset_store.tables import Run, RunState
from studio.api.app import create_app
from studio.api.limits import Rate
from studio.api.problems import MEDIA_TYPE, problem
from studio.client import NotFound, Patience, TooMany, Unavailable, Unreachable, WaitedTooLong
from tests.stories import an_asset_in_review
from tests.studio.api.test_runs import RESULT
from tests.studio.client.breaking import breaking
from tests.studio.client.conftest import Far
from tests.studio.served import UNLIMITED, served

QUICK = Patience(tries=4, longest_pause_s=0.05)


def test_an_order_whose_answer_was_lost_is_sent_again_and_carried_out_once(far: Far) -> None:
    with breaking(far.address) as wire:
        client = far.client(address=wire.address, patience=QUICK)
        wire.lost = 2
        run = client.make_sheet("bobo", "Bobo", views=["front"])
        assert wire.connections == 3
    with far.door.session() as session:
        assert session.scalars(select(Run.id)).all() == [run.id]


def test_what_would_be_done_twice_is_sent_once(far: Far) -> None:
    far.door.person("rosa")
    with far.door.session() as session:
        asset_id = an_asset_in_review(session).id
    with breaking(far.address) as wire:
        client = far.client(address=wire.address, patience=QUICK)
        client.assign(asset_id, "brand", "rosa")
        wire.cut()
        wire.lost = 9
        before = wire.connections
        with pytest.raises(Unreachable):
            client.unassign(asset_id, "brand", "rosa")
        assert wire.connections == before + 1


def test_a_server_that_is_away_is_tried_so_often_and_told(far: Far) -> None:
    with breaking(far.address) as wire:
        wire.lost = 9
        with pytest.raises(Unreachable, match="does not answer"):
            far.client(address=wire.address, patience=QUICK).me()
        assert wire.connections == 4


class Away:
    """An application that answers 503 to so many requests first."""

    def __init__(self, app: ASGIApp, times: int) -> None:
        self.app, self.times = app, times

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.times:
            self.times -= 1
            told = JSONResponse(
                problem(503, "the database cannot be reached now", kind="Away"), 503, media_type=MEDIA_TYPE
            )
            await told(scope, receive, send)
        else:
            await self.app(scope, receive, send)


@pytest.mark.parametrize("times", [3, 4])
def test_a_database_that_is_away_for_a_while_is_waited_for(far: Far, times: int) -> None:
    away: Any = Away(far.door.app, times)
    with served(away) as address:
        client = far.client(address=address, patience=QUICK)
        if times < QUICK.tries:
            assert client.make_sheet("bobo", "Bobo").state == "queued"
        else:
            with pytest.raises(Unavailable):
                client.make_sheet("bobo", "Bobo")


def test_too_many_requests_come_again_when_the_server_says(far: Far) -> None:
    slow = create_app(far.door.store, calls=Rate(burst=1, per_s=1.0), sign_ins=UNLIMITED)
    with served(slow) as address:
        client = far.client(address=address)
        began = time.monotonic()
        for _ in range(2):
            client.me()
        assert time.monotonic() - began > 0.9
        hasty = far.client("hasty", address=address, patience=QUICK)
        hasty.me()
        with pytest.raises(TooMany) as told:
            hasty.me()
        assert told.value.retry_after_s == 1


def test_a_run_is_followed_through_a_broken_connection_and_nothing_is_told_twice(far: Far) -> None:
    hostile = "for the book\u2028data: {}\u0085"
    with breaking(far.address) as wire:
        client = far.client(address=wire.address, patience=QUICK)
        run = client.make_sheet("bobo", "Bobo", views=["front", "side"], reason=hostile)
        told = client.follow(run.id, timeout_s=60)
        assert next(told).run.reason == hostile.strip()
        wire.cut()

        def go_on() -> None:
            with far.door.session() as session:
                runs.beat(session, run.id, phase="making", done=1, total=2)
            time.sleep(1.2)
            wire.cut()
            with far.door.session() as session:
                runs.end(session, run.id, RunState.SUCCEEDED, result=RESULT)

        thread = threading.Thread(target=go_on)
        thread.start()
        rest = list(told)
        thread.join()
    assert [(e.name, e.run.done, e.run.state) for e in rest] == [
        ("progress", 1, "running"),
        ("end", 1, "succeeded"),
    ]


def test_waiting_ends_when_it_was_to_end(far: Far) -> None:
    client = far.client()
    run = client.make_sheet("bobo", "Bobo")
    began = time.monotonic()
    with pytest.raises(WaitedTooLong):
        client.wait(run, timeout_s=1.0)
    assert time.monotonic() - began < 10


def test_following_a_run_that_there_is_not_is_refused(far: Far) -> None:
    with pytest.raises(NotFound):
        next(far.client().follow(uuid.uuid4()))
