"""Campaigns by the calendar: each time is acted on once, by the schedule's own rules."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from asset_store.blobs import open_blobs
from asset_store.database import Database
from asset_store.errors import BriefInvalid, NotFound, ScheduleRefused
from asset_store.people import accounts, passes
from asset_store.people.permissions import BY_AGENT
from asset_store.repositories import runs, schedules
from asset_store.tables import AuditRow, CampaignSchedule, Role, Run, RunState
from flows import scheduling
from flows.scheduling import act, act_on_one, calendar, look, schedule_campaign
from flows.settings import QuotaSettings, Settings
from flows.starting import BriefText, asked_of, campaign_of
from flows.wiring import Store
from tests.stories import a_brand, a_character

FREE = QuotaSettings(brand=None, asker=None)
MONDAY = datetime(2026, 3, 23, 8, tzinfo=UTC)  # 9:00 in Berlin; the clocks go forward on the 29th
BRIEF = """\
campaign: spring
brand: bobo
schedule: {{cron: 0 9 * * mon, time_zone: Europe/Berlin{more}}}
{rest}
shots:
  - {{name: a, character: Bobo, prompt: "a mascot, {{date}}", variants: 4}}
"""


def brief(more: str = "", rest: str = "") -> BriefText:
    return BriefText(BRIEF.format(more=more and f", {more}", rest=rest))


@pytest.fixture
def weekly(session: Session) -> Any:
    a_brand(session)
    a_character(session)

    def kept(more: str = "", rest: str = "", **asked: Any) -> CampaignSchedule:
        now = MONDAY - timedelta(days=1)
        return schedule_campaign(session, brief(more, rest), now, **{"by": "ada", "reason": "the newsletter", **asked})

    return kept


def acted(session: Session, row: CampaignSchedule, now: datetime, quota: QuotaSettings = FREE) -> list[Run]:
    """As `act` does it, within the test's own transaction."""
    started: list[Run] = []
    while True:
        step = look(session, row.id, now, quota)
        started += [step.started] if step.started else []
        for run_id in step.cancel:
            runs.cancel(session, run_id, "schedule")
        if not step.more and not step.cancel:
            return started


def told(session: Session, row: CampaignSchedule) -> list[tuple[str, str, str]]:
    """Of every time of it: the day, what came of it, and why nothing did."""
    rows = session.scalars(select(Run).where(Run.schedule_id == row.id).order_by(Run.due_at)).all()
    return [(r.due_at.strftime("%m-%d %H:%M"), r.state.value, r.problem or "") for r in rows if r.due_at]


def test_when_it_is_time_a_run_is_written_down_with_who_why_and_the_calendar_as_its_trigger(
    session: Session, weekly: Any
) -> None:
    row = weekly()
    assert row.next_at == MONDAY
    [run] = acted(session, row, MONDAY)
    assert (run.requested_by, run.reason, run.trigger, run.state) == (
        "ada",
        "the newsletter",
        "schedule",
        RunState.QUEUED,
    )
    made = campaign_of(run.request, asked_of(run.request))
    assert (made.campaign, made.shots[0].prompt, run.pictures) == ("spring-2026-03-23", "a mascot, 2026-03-23", 4)
    assert row.next_at == datetime(2026, 3, 30, 7, tzinfo=UTC)  # in summer time


def test_nothing_runs_before_it_is_time_and_nothing_twice(session: Session, weekly: Any) -> None:
    row = weekly()
    assert acted(session, row, MONDAY - timedelta(seconds=1)) == []
    assert len(acted(session, row, MONDAY)) == 1
    assert acted(session, row, MONDAY) == acted(session, row, MONDAY + timedelta(days=6)) == []


def test_two_that_look_at_the_same_moment_start_one_run(own_database: Database, tmp_path: Path) -> None:
    with own_database.transaction() as session:
        a_brand(session)
        a_character(session)
        row_id = schedule_campaign(session, brief(), MONDAY - timedelta(days=1), by="ada").id
    store = Store(own_database, open_blobs(str(tmp_path)), Settings(home=tmp_path))
    started: list[uuid.UUID] = []
    gate = threading.Barrier(4)

    def looked() -> None:
        gate.wait()
        started.extend(act(store, row_id, MONDAY))

    threads = [threading.Thread(target=looked) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(started) == 1


@pytest.mark.parametrize(
    ("missed", "states"),
    [
        ("latest", [("03-30 07:00", "skipped"), ("04-06 07:00", "queued")]),
        ("none", [("04-06 07:00", "skipped")]),
        ("all", [("03-23 08:00", "queued"), ("03-30 07:00", "queued"), ("04-06 07:00", "queued")]),
    ],
)
def test_times_that_were_missed_are_made_up_for_as_the_brief_says(
    session: Session, weekly: Any, missed: str, states: list[tuple[str, str]]
) -> None:
    row = weekly(f"missed: {missed}")
    acted(session, row, MONDAY + timedelta(days=15))
    assert [(day, state) for day, state, _ in told(session, row)] == states
    if missed != "all":
        assert "nothing ran when it was time" in told(session, row)[0][2]
    assert row.looked_until == datetime(2026, 4, 6, 7, tzinfo=UTC)


def test_missed_runs_that_are_all_made_up_for_go_one_after_the_other(session: Session, weekly: Any) -> None:
    row = weekly("missed: all")
    first, second, third = acted(session, row, MONDAY + timedelta(days=15))
    for expected in (first, second, third):
        taken = runs.take(session)
        assert taken is not None
        assert taken[0].id == expected.id
        assert runs.take(session) is None
        runs.end(session, expected.id, RunState.SUCCEEDED)


def test_a_few_minutes_late_is_not_missed(session: Session, weekly: Any) -> None:
    row = weekly("missed: none")
    assert len(acted(session, row, MONDAY + timedelta(minutes=14))) == 1


@pytest.mark.parametrize(("missed", "rows", "started"), [("latest", 2, 1), ("all", 101, 100)])
def test_however_many_were_missed_what_is_left_out_is_one_row(
    session: Session, missed: str, rows: int, started: int
) -> None:
    a_brand(session)
    a_character(session)
    text = BRIEF.format(more=f", missed: {missed}", rest="").replace("0 9 * * mon", "'*/15 * * * *'")
    row = schedule_campaign(session, BriefText(text), MONDAY, by="ada")
    assert len(acted(session, row, MONDAY + timedelta(days=30, minutes=1))) == started
    assert len(told(session, row)) == rows
    assert "2" in told(session, row)[0][2]


@pytest.mark.parametrize(
    ("if_running", "first", "second"), [("skip", "queued", "skipped"), ("wait", "queued", "queued"), ("cancel", "cancelled", "queued")]
)  # fmt: skip
def test_a_run_before_that_is_still_going_is_dealt_with_as_the_brief_says(
    session: Session, weekly: Any, if_running: str, first: str, second: str
) -> None:
    row = weekly(f"if_running: {if_running}")
    acted(session, row, MONDAY)
    acted(session, row, MONDAY + timedelta(days=7))
    assert [state for _, state, _ in told(session, row)] == [first, second]
    if if_running == "wait":
        assert runs.take(session) is not None
        assert runs.take(session) is None


def test_while_it_is_paused_nothing_runs_and_nothing_of_that_is_made_up_for(session: Session, weekly: Any) -> None:
    row = weekly("missed: all")
    schedules.pause(session, row, "max", MONDAY - timedelta(hours=1))
    assert acted(session, row, MONDAY + timedelta(days=1)) == []
    scheduling.resume(session, row, "max", MONDAY + timedelta(days=3))
    assert acted(session, row, MONDAY + timedelta(days=4)) == []
    assert len(acted(session, row, MONDAY + timedelta(days=7))) == 1
    actions = session.scalars(
        select(AuditRow.action).where(AuditRow.subject == f"schedule {row.id}").order_by(AuditRow.seq)
    )
    assert list(actions) == ["schedule campaign", "pause schedule", "resume schedule"]


def test_a_brief_that_is_scheduled_again_takes_the_place_of_the_one_before(session: Session, weekly: Any) -> None:
    row = weekly()
    again = schedule_campaign(session, brief("end: 2026-12-01"), MONDAY + timedelta(days=1), by="max")
    assert (again.id, again.requested_by, again.rhythm["end"]) == (row.id, "max", "2026-12-01")
    assert acted(session, again, MONDAY + timedelta(days=2)) == []
    schedules.end(session, again, "max", MONDAY + timedelta(days=3))
    assert acted(session, again, MONDAY + timedelta(days=30)) == []
    assert weekly().id != row.id


def test_when_its_end_has_come_it_is_looked_at_no_more(session: Session, weekly: Any) -> None:
    row = weekly("end: 2026-03-24")
    assert len(acted(session, row, MONDAY)) == 1
    assert row.next_at is None
    assert schedules.due(session, MONDAY + timedelta(days=400)) is None


def test_what_has_no_schedule_or_only_past_times_is_refused(session: Session, weekly: Any) -> None:
    unscheduled = "\n".join(line for line in brief().text.splitlines() if "schedule:" not in line)
    with pytest.raises(BriefInvalid, match="does not say when it runs"):
        schedule_campaign(session, BriefText(unscheduled), MONDAY, by="ada")
    with pytest.raises(BriefInvalid, match="All of its times are over"):
        weekly("end: 2026-03-01")
    with pytest.raises(NotFound, match="character"):
        schedule_campaign(session, BriefText(brief().text.replace("Bobo", "Nobody")), MONDAY, by="ada")


# ---------------------------------------------------------------------------- whose, and how much


@contextmanager
def spending(session: Session, run: Run, pictures: int, gpu_s: float) -> Iterator[None]:
    run.made_pictures, run.gpu_s = pictures, gpu_s
    runs.end(session, run.id, RunState.SUCCEEDED)
    session.flush()
    yield


@pytest.mark.parametrize("budget", ["{pictures: 8, per: month}", "{gpu_seconds: 10, per: month}"])
def test_a_spent_budget_skips_runs_until_its_period_is_over(session: Session, weekly: Any, budget: str) -> None:
    row = weekly(rest=f"budget: {budget}")
    [first] = acted(session, row, MONDAY)
    with spending(session, first, 8, 10.0):
        assert acted(session, row, MONDAY + timedelta(days=7)) == []
    assert told(session, row)[1][1:] == ("skipped", f"its budget of {scheduling.budget_of(row).told} is spent")
    assert len(acted(session, row, MONDAY + timedelta(days=14))) == 1  # in April
    assert scheduling.spent_now(session, row, MONDAY) == schedules.Spent(8, 10.0)


def test_who_scheduled_it_must_still_be_allowed_to(session: Session, weekly: Any) -> None:
    a_brand(session)
    person = accounts.add_person(session, "zoe", "Zoe", "system")
    accounts.grant(session, "zoe", Role.PRODUCER, "system", "bobo")
    row = weekly(by="zoe", person_id=person.id)
    assert len(acted(session, row, MONDAY)) == 1
    accounts.revoke(session, "zoe", Role.PRODUCER, "system", "bobo")
    assert acted(session, row, MONDAY + timedelta(days=7)) == []
    assert told(session, row)[1][2] == "zoe may ask for campaigns of bobo no longer"


def test_a_spent_quota_and_a_character_that_left_skip_a_run_and_say_so(session: Session, weekly: Any) -> None:
    row = weekly()
    assert acted(session, row, MONDAY, QuotaSettings(brand=3, asker=None)) == []
    assert "4 pictures are more than brand bobo has left: 3 of 3" in told(session, row)[0][2]
    row.brief = row.brief.replace("Bobo", "Nobody")
    assert acted(session, row, MONDAY + timedelta(days=7)) == []
    assert "Nobody" in told(session, row)[1][2]
    assert session.scalar(select(func.count()).select_from(AuditRow).where(AuditRow.action == "skip run")) == 2


def test_the_calendar_shows_what_was_and_what_is_to_come_by_the_days_of_its_zone(session: Session, weekly: Any) -> None:
    row = weekly("end: 2026-04-08")
    acted(session, row, MONDAY)
    now = MONDAY + timedelta(hours=1)
    days = calendar(session, row, MONDAY - timedelta(days=10), MONDAY + timedelta(days=40), now)
    assert [(d.day, [r.state.value for r in d.runs], len(d.to_come)) for d in days] == [
        ("2026-03-23", ["queued"], 0), ("2026-03-30", [], 1), ("2026-04-06", [], 1),
    ]  # fmt: skip
    schedules.pause(session, row, "ada", now)
    assert len(calendar(session, row, MONDAY - timedelta(days=10), MONDAY + timedelta(days=40), now)) == 1


def test_a_schedule_that_cannot_be_read_is_put_off_and_keeps_no_other_up(
    own_database: Database, tmp_path: Path
) -> None:
    with own_database.transaction() as session:
        a_brand(session)
        a_character(session)
        broken = schedule_campaign(session, brief(), MONDAY - timedelta(days=1), by="ada")
        broken.rhythm = {"cron": "of an older release"}
        other = BriefText(brief().text.replace("spring", "other"))
        other_id = schedule_campaign(session, other, MONDAY - timedelta(days=1), by="ada").id
    store = Store(own_database, open_blobs(str(tmp_path)), Settings(home=tmp_path))
    assert [act_on_one(store, MONDAY) for _ in range(3)] == [True, True, False]
    with own_database.transaction() as session:
        assert session.scalars(select(Run.schedule_id)).all() == [other_id]


def test_one_that_is_replaced_while_its_time_is_acted_on_is_not_due_again(
    own_database: Database, tmp_path: Path
) -> None:
    store = Store(own_database, open_blobs(str(tmp_path)), Settings(home=tmp_path))
    with own_database.transaction() as session:
        a_brand(session)
        a_character(session)
        row_id = schedule_campaign(session, brief(), MONDAY - timedelta(days=1), by="ada").id
    assert len(act(store, row_id, MONDAY + timedelta(seconds=1))) == 1
    with own_database.transaction() as session:  # whoever asked had looked at the clock before
        schedule_campaign(session, brief(), MONDAY - timedelta(milliseconds=50), by="ada")
    assert act_on_one(store, MONDAY + timedelta(seconds=2)) is False


def test_a_key_that_is_revoked_or_over_schedules_nothing_more(session: Session, weekly: Any) -> None:
    accounts.add_person(session, "zoe", "Zoe", "system")
    accounts.grant(session, "zoe", Role.PRODUCER, "system", "bobo")
    key, secret = passes.make_key(session, "zoe", "planner", BY_AGENT, timedelta(days=30), "system", None, True)
    who = passes.principal_of_key(session, secret)
    row = weekly(by=who.actor, person_id=who.person_id, key_id=who.key_id)
    assert len(acted(session, row, MONDAY)) == 1
    passes.revoke_key(session, key.name, "system")
    assert acted(session, row, MONDAY + timedelta(days=7)) == []
    assert told(session, row)[1][2] == "agent:planner of zoe may ask for campaigns of bobo no longer"


def test_only_one_run_waits(session: Session, weekly: Any) -> None:
    row = weekly("if_running: wait")
    for week in range(4):
        acted(session, row, MONDAY + timedelta(days=7 * week))
    assert [state for _, state, _ in told(session, row)] == ["queued", "queued", "skipped", "skipped"]


def test_a_brand_has_so_many_schedules_and_no_more(
    session: Session, weekly: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedules, "MOST_OF_A_BRAND", 1)
    weekly()
    weekly()  # again under its own name
    with pytest.raises(ScheduleRefused, match="1 schedules already"):
        schedule_campaign(session, BriefText(brief().text.replace("spring", "other")), MONDAY, by="ada")
