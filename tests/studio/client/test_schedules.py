"""Campaigns by the calendar, by the client."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from studio.client import Refused
from tests.studio.client.conftest import Far

BRIEF = {
    "campaign": "spring", "brand": "bobo", "schedule": {"cron": "0 9 1 * *"},
    "shots": [{"name": "a", "character": "Bobo", "prompt": "a mascot", "variants": 2}],
}  # fmt: skip


def test_a_brief_is_scheduled_seen_paused_resumed_and_ended(far: Far) -> None:
    client = far.client()
    made = client.schedule_campaign(BRIEF, reason="the newsletter")
    assert (made.when, made.reason, [s.id for s in client.schedules()]) == (
        "at 09:00 on the first day of every month, UTC", "the newsletter", [made.id],
    )  # fmt: skip
    month = (datetime.now(UTC) + timedelta(days=62)).strftime("%Y-%m")
    assert [(d.day.day, len(d.to_come)) for d in client.calendar(made.id, month)] == [(1, 1)]
    assert client.pause(made.id).is_paused
    assert not client.resume(made.id).is_paused
    assert client.end_schedule(made.id).has_ended
    assert client.schedules() == []


def test_a_brief_without_a_schedule_says_so(far: Far) -> None:
    brief = {name: told for name, told in BRIEF.items() if name != "schedule"}
    with pytest.raises(Refused, match="does not say when it runs"):
        far.client().schedule_campaign(brief)


def test_a_campaign_is_started_and_its_run_followed(far: Far) -> None:
    client = far.client()
    run = client.start_campaign({n: t for n, t in BRIEF.items() if n != "schedule"}, reason="r")
    assert (run.kind, run.state, run.pictures, run.trigger, run.report) == ("campaign", "queued", 2, "api", None)
    assert client.cancel(run.id).state == "cancelled"
    assert client.wait(run, timeout_s=30).is_over
