"""Campaigns in the browser: started and scheduled from a brief, seen with their runs, their calendar and what they used."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

from playwright.sync_api import Page, expect
from sqlalchemy import select

from asset_store.repositories import runs
from asset_store.tables import Job, Role, Run, RunState
from flows.scheduling import act
from tests.stories import a_character
from tests.studio.pages.conftest import Site
from tests.studio.pages.test_sheets import HOSTILE, serious

BRIEF = """\
campaign: spring
brand: bobo
shots:
  - {name: a, character: Bobo, prompt: "a mascot", variants: 2}
"""
WEEKLY = BRIEF + "schedule: {cron: 0 9 * * *, time_zone: Europe/Berlin}\nbudget: {pictures: 40, per: month}\n"


def with_brief(site: Site, brief: str, button: str) -> Page:
    """Somebody's window after they have pressed a button under a brief."""
    page = site.person("olga", Role.PRODUCER)
    page.get_by_role("link", name="Campaigns").click()
    page.get_by_text("Start a campaign from a brief").click()
    page.get_by_label("The brief").fill(brief)
    page.get_by_label("What it is for").fill(HOSTILE)
    page.get_by_role("button", name=button).dblclick()
    return page


def test_a_campaign_is_started_once_followed_and_seen_with_what_it_used(site: Site) -> None:
    site.assets(2)
    with site.session() as session:
        a_character(session)
    page = with_brief(site, BRIEF, "Start it now")
    page.wait_for_url("**/runs/*")
    with site.session() as session:
        (run,) = session.scalars(select(Run)).all()
        made = site.assets(2, "summer")
        campaign_id = made[0].campaign_id
        assert (run.requested_by, run.trigger, run.reason) == ("olga", "page", HOSTILE)
        assert runs.beat(session, run.id, phase="making", done=1, total=2, campaign_id=campaign_id)
    expect(page.get_by_role("status").first).to_contain_text("making · 1 of 2")
    assert serious(page) == []
    with site.session() as session:
        for asset in made:
            job = session.get_one(Job, asset.job_key)
            job.finished_at, job.picture = datetime.now(UTC), {"run": {"engine_s": 1.5}}
        session.flush()
        told = {"campaign": "summer", "campaign_id": str(campaign_id), "pictures": 2, "made": 2, "reused": 0,
                "review": {"in review": 2}, "problems": [HOSTILE]}  # fmt: skip
        runs.end(session, run.id, RunState.SUCCEEDED, result=told)
    expect(page.get_by_text("2 pictures made, 3.0 s of the engine")).to_be_visible()
    page.get_by_role("link", name="its campaign").click()
    expect(page.get_by_text("2 pictures, 3.0 s of the engine, 1.50 s a picture")).to_be_visible()
    assert serious(page) == []


def test_mistakes_in_a_brief_are_told_by_their_lines(site: Site) -> None:
    site.assets(1)
    page = with_brief(site, BRIEF.replace("variants: 2", "variants: 0"), "Start it now")
    expect(page.get_by_role("alert")).to_have_text("Line 4: This should be greater than or equal to 1.")


def test_a_schedule_has_a_calendar_and_is_paused_resumed_and_ended(site: Site) -> None:
    with site.session() as session:
        a_character(session)
    page = with_brief(site, WEEKLY, "Schedule it")
    page.wait_for_url("**/schedules/*")
    schedule_id = uuid.UUID(page.url.rpartition("/")[2])
    assert act(site.store, schedule_id, datetime.now(UTC)) == []
    expect(page.get_by_text("at 09:00 every day, Europe/Berlin")).to_be_visible()
    expect(page.get_by_text("of 40 pictures a month: 0 pictures")).to_be_visible()
    page.get_by_role("link", name="→").click()
    expect(page.locator(".calendar").get_by_text("09:00").first).to_be_visible()
    assert serious(page) == []
    page.get_by_role("button", name="Pause it").click()
    expect(page.get_by_text("paused")).to_be_visible()
    page.get_by_role("button", name="Resume it").click()
    expect(page.get_by_role("button", name="Pause it")).to_be_visible()
    page.get_by_role("button", name="End it").click()
    page.locator("#said").get_by_role("button", name="End it").click()
    expect(page.get_by_text("ended")).to_be_visible()
    page.get_by_role("link", name="Campaigns").first.click()
    expect(page.get_by_text("By the calendar")).to_have_count(0)


def test_who_may_only_look_is_offered_nothing_to_start_or_change(site: Site) -> None:
    with site.session() as session:
        a_character(session)
    with_brief(site, WEEKLY, "Schedule it").wait_for_url("**/schedules/*")
    page = site.person("vera", Role.VIEWER)
    page.get_by_role("link", name="Campaigns").click()
    expect(page.get_by_text("Start a campaign from a brief")).to_have_count(0)
    page.get_by_role("link", name="spring").click()
    expect(page.get_by_role("button", name="Pause it")).to_have_count(0)
