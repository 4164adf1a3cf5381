"""When a scheduled campaign runs, also where clocks change."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice, pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as some
from pydantic import ValidationError

from flows.budget import Budget
from flows.timetable import Schedule

BERLIN = ZoneInfo("Europe/Berlin")


def times(count: int, since: str, **fields: Any) -> list[str]:
    schedule = Schedule(**{"time_zone": "Europe/Berlin", **fields})
    moment = datetime.fromisoformat(since).replace(tzinfo=schedule.zone)
    return [found.isoformat(timespec="minutes") for found in islice(schedule.after(moment), count)]


def test_a_cron_line_keeps_the_hour_of_the_wall_through_both_changes_of_the_clocks() -> None:
    assert times(2, "2026-03-23", cron="0 9 * * mon")[0] == "2026-03-23T09:00+01:00"
    assert times(1, "2026-03-29", cron="0 9 * * mon") == ["2026-03-30T09:00+02:00"]
    assert times(1, "2026-10-25", cron="0 9 * * mon") == ["2026-10-26T09:00+01:00"]


def test_an_hour_that_is_left_out_runs_when_the_clocks_have_gone_forward() -> None:
    assert times(3, "2026-03-28 00:00", cron="30 2 * * *") == [
        "2026-03-28T02:30+01:00", "2026-03-29T03:00+02:00", "2026-03-30T02:30+02:00",
    ]  # fmt: skip
    assert times(3, "2026-03-28 00:00", every="1 day", start="2026-03-01 02:30") == [
        "2026-03-28T02:30+01:00", "2026-03-29T03:30+02:00", "2026-03-30T02:30+02:00",
    ]  # fmt: skip


@pytest.mark.parametrize("rhythm", [{"cron": "30 2 * * *"}, {"every": "1 day", "start": "2026-10-01 02:30"}])
def test_an_hour_that_comes_twice_runs_once(rhythm: dict[str, str]) -> None:
    assert times(3, "2026-10-24 00:00", **rhythm) == [
        "2026-10-24T02:30+02:00", "2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00",
    ]  # fmt: skip


def test_hours_are_counted_as_they_pass_and_weeks_as_the_wall_shows_them() -> None:
    assert times(4, "2026-10-25 00:30", every="1 hour", start="2026-10-25") == [
        "2026-10-25T01:00+02:00", "2026-10-25T02:00+02:00", "2026-10-25T02:00+01:00", "2026-10-25T03:00+01:00",
    ]  # fmt: skip
    assert times(2, "2026-03-20", every="2 weeks", start="2026-03-16 08:00") == [
        "2026-03-30T08:00+02:00", "2026-04-13T08:00+02:00",
    ]  # fmt: skip


def test_runs_of_one_night_have_names_of_their_own() -> None:
    schedule = Schedule(every="15 minutes", start="2026-10-25", time_zone="Europe/Berlin")
    names = [schedule.name_of(m) for m in islice(schedule.after(datetime(2026, 10, 24, tzinfo=UTC)), 60)]
    assert len(set(names)) == 60
    assert Schedule(cron="0 9 * * *").name_of(datetime(2026, 3, 29, 9, tzinfo=UTC)) == "2026-03-29"


def test_it_starts_and_ends_when_it_says_the_last_day_included() -> None:
    assert times(9, "2026-01-01", cron="0 9 * * *", start="2026-03-28", end="2026-03-30") == [
        "2026-03-28T09:00+01:00", "2026-03-29T09:00+02:00", "2026-03-30T09:00+02:00",
    ]  # fmt: skip
    assert times(9, "2026-01-01", every="1 day", start="2026-03-28 09:00", end="2026-03-29 09:00") == [
        "2026-03-28T09:00+01:00", "2026-03-29T09:00+02:00",
    ]  # fmt: skip
    assert times(1, "2026-04-01", cron="0 9 * * *", end="2026-03-30") == []


@given(
    zone=some.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]),
    every=some.sampled_from(["1 day", "3 days", "1 week", "45 minutes", "5 hours"]),
    cron=some.sampled_from([None, "*/20 * * * *", "15 2 * * *", "0 0 1 * *"]),
    since=some.datetimes(datetime(2025, 1, 1), datetime(2028, 1, 1)),
)
def test_times_only_go_forward_and_asking_from_one_goes_on_with_the_next(
    zone: str, every: str, cron: str | None, since: datetime
) -> None:
    rhythm = {"cron": cron} if cron else {"every": every, "start": "2025-02-03 02:15"}
    schedule, moment = Schedule(time_zone=zone, **rhythm), since.replace(tzinfo=UTC)
    found = [m.astimezone(UTC) for m in islice(schedule.after(moment), 5)]
    assert found[0] > moment
    assert all(later > earlier for earlier, later in pairwise(found))
    following = schedule.next_after(found[0])
    assert following is not None
    assert following.astimezone(UTC) == found[1]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "either cron or every"),
        ({"cron": "0 9 * * *", "every": "1 day", "start": "2026-01-01"}, "either cron or every"),
        ({"every": "1 day"}, "counts from start"),
        ({"every": "0 days", "start": "2026-01-01"}, "a number and minutes"),
        ({"every": "99999 weeks", "start": "2026-01-01"}, "a number and minutes"),
        ({"cron": "0 9 * *"}, "five fields"),
        ({"cron": "0 25 * * *"}, "bad hour"),
        ({"cron": "0 0 30 2 *"}, "bad day-of-month"),
        ({"cron": "*/5 * * * *"}, "every 15 minutes at most"),
        ({"cron": "0,10 9 1 1 *"}, "every 15 minutes at most"),
        ({"every": "14 minutes", "start": "2026-01-01"}, "every 15 minutes at most"),
        ({"cron": "0 9 * * *", "end": "9999-12-31"}, "of the years 2000 to 2199"),
        ({"cron": "0 9 LW * *"}, "numbers, names"),
        ({"cron": "0 9 * * *", "time_zone": "Europe/Berlln"}, "by its name"),
        ({"cron": "0 9 * * *", "time_zone": "../../etc/passwd"}, "by its name"),
        ({"cron": "0 9 * * *", "start": "2026-02-30"}, "no such day"),
        ({"cron": "0 9 * * *", "start": "2026-03-02", "end": "2026-03-01"}, "ends before it starts"),
    ],
)
def test_what_is_no_schedule_is_refused_with_what_to_write(fields: dict[str, str], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Schedule(**fields)


def test_a_budgets_period_begins_at_midnight_of_its_zone() -> None:
    moment = datetime(2026, 3, 31, 23, 30, tzinfo=UTC)  # 1 April in Berlin
    begins = {per: Budget(pictures=1, per=per).since(moment, BERLIN) for per in ("day", "week", "month")}
    assert begins["day"] == begins["month"] == datetime(2026, 4, 1, tzinfo=BERLIN)
    assert begins["week"] == datetime(2026, 3, 30, tzinfo=BERLIN)
