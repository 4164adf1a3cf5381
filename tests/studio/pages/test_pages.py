"""Reviewing in a browser: by keyboard alone, two at once, with a connection that drops, many at once and back."""

from __future__ import annotations

import io
import re
import uuid

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Page, Route, expect
from sqlalchemy import func, select, update

from asset_store.people import passes
from asset_store.reviewing import comments, decide
from asset_store.reviewing.states import ReviewState
from asset_store.tables import Asset, BrowserSession, CheckOutcome, Comment, Decision, Job, Role, Verdict
from studio.api.callers import COOKIE
from tests.studio.pages.conftest import Site

HOSTILE = "<img src=x onerror=\"document.title='owned'\"></script>{{7777*7777}}'\";--"


def states(site: Site) -> dict[str, int]:
    with site.session() as session:
        rows = session.execute(select(Asset.review, func.count()).group_by(Asset.review)).all()
    return {state.value: count for state, count in rows}


def quiet(page: Page) -> None:
    """Nothing went wrong in its scripts."""
    assert page.problems == []  # type: ignore[attr-defined]


def test_twenty_assets_are_reviewed_by_keyboard_alone(site: Site) -> None:
    site.assets(20)
    page = site.person("grace", Role.REVIEWER)
    expect(page.get_by_role("heading", name="My queue")).to_be_visible()
    page.locator(".frame").first.focus()
    page.keyboard.press("Enter")
    for number in range(20):
        room = page.locator("[data-room]")
        expect(room).to_be_visible()
        page.wait_for_load_state()
        shown = page.url
        if number % 5 == 4:
            page.keyboard.press("r" if number % 2 else "c")  # the reason is asked for, and the field has the focus
            page.keyboard.type("three ears")
            page.keyboard.press("Escape")
            page.keyboard.press("r" if number % 2 else "c")
        else:
            page.keyboard.press("a")
        page.wait_for_url(lambda url, shown=shown: url != shown)
    expect(page.get_by_text("Nothing waits for you.")).to_be_visible()
    assert states(site) == {"approved": 16, "rejected": 2, "changes requested": 2}
    with site.session() as session:
        assert session.scalars(select(Decision.by).distinct()).all() == ["grace"]
    quiet(page)


def test_the_doubtful_come_first_and_one_s_own_do_not_come(site: Site) -> None:
    site.assets(2, "spring")
    site.assets(1, "autumn", CheckOutcome.WARN)
    site.assets(1, "mine", requested_by="grace")
    site.assets(1, "by-key", requested_by="key:ci of grace")
    page = site.person("grace", Role.REVIEWER)
    cards = page.locator(".card")
    expect(cards).to_have_count(3)
    expect(cards.first).to_contain_text("autumn")
    expect(cards.first).to_contain_text("! not blank")


def test_two_who_collide_are_told_and_the_second_changes_nothing(site: Site) -> None:
    (asset,) = site.assets(1, stages=["brand"])
    first, second = site.person("grace", Role.REVIEWER), site.person("hedy", Role.REVIEWER)
    for page in (first, second):
        page.goto(f"{site.address}/assets/{asset.id}")
    first.keyboard.press("a")
    expect(first.locator(".side")).to_contain_text("approve at brand by grace")
    second.locator("[name=reason]").fill("three ears")
    second.locator("[data-verdict=reject]").click()
    expect(second.locator("#said")).to_contain_text("Look at the current version")
    second.get_by_role("button", name="Look again").click()
    expect(second.locator(".side")).to_contain_text("approve at brand by grace")
    assert states(site) == {"approved": 1}


def test_pins_survive_a_connection_that_drops(site: Site) -> None:
    (asset,) = site.assets(1)
    page = site.person("grace", Role.REVIEWER)
    page.goto(f"{site.address}/assets/{asset.id}")
    page.context.set_offline(True)
    page.keyboard.press("p")
    box = page.locator("[data-layer]").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.5)
    page.keyboard.type(HOSTILE)
    page.get_by_role("button", name="Comment").click()
    expect(page.locator(".comments li")).to_contain_text("not sent yet")
    page.context.set_offline(False)
    expect(page.locator(".comments li")).not_to_contain_text("not sent yet")
    page.reload()
    expect(page.locator(".comments li")).to_have_count(1)
    expect(page.locator(".comments li p")).to_have_text(HOSTILE)
    expect(page.locator(".pins button")).to_have_count(1)
    with site.session() as session:
        (row,) = session.scalars(select(Comment)).all()
    assert row.region is not None
    assert (row.region["x"], row.region["y"]) == (pytest.approx(0.25, abs=0.01), pytest.approx(0.5, abs=0.01))
    assert page.title().endswith("Onmodel")
    quiet(page)


def test_a_comment_whose_answer_was_lost_is_written_once(site: Site) -> None:
    """The server has it, and the browser does not know: it sends again, under the same id."""
    (asset,) = site.assets(1)
    page = site.person("grace", Role.REVIEWER)
    page.goto(f"{site.address}/assets/{asset.id}")
    lost = []

    def lose(route) -> None:  # type: ignore[no-untyped-def]
        if not lost and route.request.method == "POST":
            lost.append(route.fetch())
            route.abort()
        else:
            route.continue_()

    page.route("**/comments", lose)
    page.locator("[data-comment-form] textarea").fill("three ears")
    page.get_by_role("button", name="Comment").click()
    expect(page.locator(".comments li")).to_contain_text("not sent yet")
    expect(page.locator(".comments li")).not_to_contain_text("not sent yet")
    assert lost
    with site.session() as session:
        assert session.scalars(select(func.count()).select_from(Comment)).one() == 1


def test_a_pin_is_placed_without_a_pointer(site: Site) -> None:
    (asset,) = site.assets(1)
    page = site.person("grace", Role.REVIEWER)
    page.goto(f"{site.address}/assets/{asset.id}")
    for key in ("p", "ArrowLeft", "ArrowUp", "ArrowUp", "Enter"):
        page.keyboard.press(key)
    page.keyboard.type("here")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator(".pins button")).to_have_count(1)
    expect(page.locator(".comments li")).not_to_contain_text("not sent yet")
    with site.session() as session:
        assert session.scalars(select(Comment.region)).all() == [{"kind": "pin", "x": 0.48, "y": 0.46}]


def test_many_are_decided_at_once_and_taken_back(site: Site) -> None:
    site.assets(6)
    page = site.person("grace", Role.REVIEWER)
    page.goto(f"{site.address}/assets?review=in+review")
    boxes = page.locator("[data-pick]")
    boxes.nth(1).click()
    boxes.nth(4).click(modifiers=["Shift"])
    expect(page.locator("[data-count]")).to_have_text("4 selected")
    page.locator("[data-bulk] [data-decide=approve]").click()
    expect(page.locator("#said")).to_contain_text("4 decided")
    assert states(site) == {"approved": 4, "in review": 2}
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#said")).to_contain_text("4 taken back")
    assert states(site) == {"in review": 6}
    quiet(page)


def test_a_key_that_is_held_decides_on_one_picture(site: Site) -> None:
    site.assets(3)
    page = site.person("grace", Role.REVIEWER)
    page.locator(".frame").first.click()
    page.wait_for_load_state()
    page.keyboard.down("a")
    for _ in range(6):
        page.wait_for_timeout(150)
        page.keyboard.down("a")  # a second press without letting go is a repetition
    page.keyboard.up("a")
    page.wait_for_timeout(300)
    assert states(site) == {"approved": 1, "in review": 2}


def test_words_that_are_refused_stay_with_who_wrote_them(site: Site) -> None:
    """A session that ended loses no comment, and nobody else sends it."""
    (asset,) = site.assets(1)
    page = site.person("grace", Role.REVIEWER)
    page.goto(f"{site.address}/assets/{asset.id}")
    with site.session() as session:
        session.execute(update(BrowserSession).values(ended_at=func.now()))
    page.locator("[data-comment-form] textarea").fill("three ears")
    page.get_by_role("button", name="Comment").click()
    expect(page.locator(".comments li")).to_contain_text("not sent yet")
    with site.session() as session:
        other, mine = (
            passes.use_link(session, passes.make_link(session, who, "system"))
            for who in (site.somebody(session), "grace")
        )
    for cookie, seen in ((other, 0), (mine, 1)):
        page.context.add_cookies([{"name": COOKIE, "value": cookie, "url": site.address}])
        page.reload()
        expect(page.locator(".comments li")).to_have_count(seen)
    expect(page.locator(".comments li")).not_to_contain_text("not sent yet")
    with site.session() as session:
        assert session.scalars(select(Comment.by)).all() == ["grace"]


def test_filters_stand_in_the_address_and_can_be_taken_out(site: Site) -> None:
    site.assets(2, "spring")
    site.assets(1, "autumn")
    page = site.person("vera", Role.VIEWER)
    page.goto(f"{site.address}/assets")
    page.get_by_role("combobox", name="Campaign").select_option("autumn")
    page.get_by_role("button", name="Show").click()
    page.wait_for_url(re.compile("campaign=autumn"))
    expect(page.locator(".card")).to_have_count(1)
    expect(page.locator("[data-pick]")).to_have_count(0)  # a viewer decides on nothing
    page.get_by_role("link", name="Remove the filter campaign autumn").click()
    expect(page.locator(".card")).to_have_count(3)


def test_only_the_last_answer_to_the_filters_is_drawn(site: Site) -> None:
    """A second one would draw the list anew under the hand that reaches for it, and its click would be lost."""
    site.assets(2, "spring")
    page = site.person("vera", Role.VIEWER)
    page.goto(f"{site.address}/assets")
    asked: list[Route] = []
    page.route(re.compile("/assets[?]"), lambda route: asked.append(route))
    page.get_by_role("combobox", name="Campaign").select_option("spring")  # asks at once
    page.get_by_role("button", name="Show").click(no_wait_after=True)
    page.wait_for_timeout(500)
    _, last = asked
    last.continue_()
    page.wait_for_url(re.compile("campaign=spring"))
    expect(page.locator(".card")).to_have_count(2)
    assert len(asked) == 2


def test_the_next_and_the_one_before_are_those_of_the_list(site: Site) -> None:
    made = site.assets(3, "spring")
    site.assets(1, "autumn")
    page = site.person("vera", Role.VIEWER)
    page.goto(f"{site.address}/assets?campaign=spring")
    page.locator(".frame").first.click()
    seen = []
    for key in ("j", "j", "k"):
        page.wait_for_load_state()
        seen.append(page.locator("h1").inner_text())
        shown = page.url
        page.keyboard.press(key)
        page.wait_for_url(lambda url, shown=shown: url != shown)
    assert len(set(seen)) == 3
    assert page.locator("h1").inner_text() == seen[1]
    assert {a.shot for a in made} == {s.split(" #")[0] for s in seen}


def test_what_was_asked_for_is_read_as_a_diff_and_made_anew(site: Site) -> None:
    (asset,) = site.assets(1)
    reviewer = site.person("grace", Role.REVIEWER)
    reviewer.goto(f"{site.address}/assets/{asset.id}")
    reviewer.locator("[name=reason]").fill("closer to the water")
    reviewer.locator("[data-verdict='request changes']").click()
    expect(reviewer.locator(".side .state").first).to_have_text("changes requested")
    expect(reviewer.get_by_role("button", name="Make it anew")).to_have_count(0)
    producer = site.person("pat", Role.PRODUCER)
    producer.goto(f"{site.address}/assets/{asset.id}")
    producer.keyboard.press("t")
    changes = producer.locator("[data-retake-changes]")
    expect(changes).to_contain_text("bobo on the beach, closer to the water")
    producer.get_by_label("Seed").fill("12345")
    expect(changes).to_contain_text("12345")
    producer.get_by_role("button", name="Make it", exact=True).click()
    expect(producer.locator("#said")).to_contain_text("queued")
    with site.session() as session:
        job = session.get_one(Job, session.get_one(Asset, asset.id).job_key)
        assert (job.recipe["seed"], job.recipe["prompt"]) == (12345, "bobo on the beach, closer to the water")
    quiet(producer)


def test_what_was_marked_is_repainted_unless_the_producer_wants_all_of_it(site: Site) -> None:
    assets = site.assets(2)
    box = {"kind": "box", "x": 0.25, "y": 0.25, "width": 0.5, "height": 0.5}
    with site.session() as session:
        for asset in assets:
            current = session.get_one(Asset, asset.id).current
            assert current is not None
            comments.comment(session, current.id, "grace", "two ears", region=box)
            decide.decide(session, asset.id, Verdict.REQUEST_CHANGES, "grace", "an ear too many", current.sha256)
    producer = site.person("pat", Role.PRODUCER)
    for asset, whole in zip(assets, (False, True), strict=True):
        producer.goto(f"{site.address}/assets/{asset.id}")
        producer.get_by_role("button", name="Make it anew").click()
        changes = producer.locator("[data-retake-changes]")
        expect(changes).to_contain_text("picture: all of it → the marked place, strength 0.75")
        producer.get_by_label("Strength").fill("0.5")
        expect(changes).to_contain_text("strength 0.5")
        if whole:
            producer.get_by_label("Repaint only the marked place, keep the rest").uncheck()
            expect(changes).not_to_contain_text("marked place")
        producer.get_by_role("button", name="Make it", exact=True).click()
        expect(producer.locator("#said")).to_contain_text("queued")
        with site.session() as session:
            recipe = session.get_one(Job, session.get_one(Asset, asset.id).job_key).recipe
            assert ("source" in recipe) is not whole
            if not whole:
                assert (recipe["source"]["strength"], recipe["source"]["picture"]) == (0.5, "version 1")
                assert Image.open(io.BytesIO(site.store.blobs.get(recipe["source"]["mask_sha256"]))).mode == "L"
    quiet(producer)


def test_words_of_others_show_as_words(site: Site) -> None:
    (asset,) = site.assets(1, HOSTILE, stages=[HOSTILE[:60]])
    with site.session() as session:
        current = session.get_one(Asset, asset.id).current
        assert current is not None
        comments.comment(session, current.id, HOSTILE, HOSTILE)
    page = site.person("grace", Role.REVIEWER, Role.PRODUCER)
    for path in ("/", "/assets", f"/assets/{asset.id}", "/campaigns", "/assets?text=" + "%3Cscript%3E&since=%3Cb%3E"):
        page.goto(site.address + path)
        page.wait_for_load_state("networkidle")
        assert page.title().endswith("Onmodel"), path
        assert page.locator("img[src=x]").count() == 0, path
        assert "60481729" not in page.locator("main").inner_text(), path
    quiet(page)


def test_who_is_not_signed_in_is_sent_to_sign_in_and_strangers_see_nothing(site: Site) -> None:
    (asset,) = site.assets(1)
    page = site.person("stranger")
    expect(page.get_by_text("Nothing waits for you.")).to_be_visible()
    answer = page.goto(f"{site.address}/assets/{asset.id}")
    assert answer is not None
    assert answer.status == 404
    page.goto(f"{site.address}/assets")
    expect(page.locator(".card")).to_have_count(0)
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/sign-in")
    page.goto(f"{site.address}/assets")
    assert page.url.endswith("/sign-in")


def test_keys_can_be_switched_off(site: Site) -> None:
    (asset,) = site.assets(1)
    page = site.person("grace", Role.REVIEWER)
    page.goto(f"{site.address}/assets/{asset.id}")
    page.keyboard.press("?")
    page.get_by_label("Keys are on").uncheck()
    page.get_by_role("button", name="Close").click()
    page.keyboard.press("a")
    page.wait_for_timeout(300)
    assert states(site) == {ReviewState.IN_REVIEW.value: 1}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_stands_in_the_way_of_people_who_see_or_move_otherwise(site: Site, scheme: str) -> None:
    (asset, *_) = site.assets(2, stages=["brand", ["legal", "regional"]])
    page = site.person("grace", *Role, color_scheme=scheme)
    with site.session() as session:
        current = session.get_one(Asset, asset.id).current
        assert current is not None
        comments.comment(session, current.id, "hedy", "three ears", region={"kind": "pin", "x": 0.5, "y": 0.5})
    for path in ("/", "/assets", f"/assets/{asset.id}", "/campaigns", "/library"):
        page.goto(site.address + path)
        page.wait_for_load_state("networkidle")
        found = Axe().run(page).response["violations"]
        serious = [
            (v["id"], [n["html"] for n in v["nodes"]][:3]) for v in found if v["impact"] in ("serious", "critical")
        ]
        assert serious == [], path


def test_a_tablet_shows_the_whole_room_without_scrolling_sideways(site: Site) -> None:
    (asset,) = site.assets(1)
    page = site.person("grace", Role.REVIEWER, viewport={"width": 768, "height": 1024}, has_touch=True)
    for path in ("/", "/assets", f"/assets/{asset.id}"):
        page.goto(site.address + path)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path


def test_a_share_link_shows_its_pictures_takes_comments_and_ends(site: Site) -> None:
    made = site.assets(3)
    pat = site.person("pat", Role.PRODUCER)
    pat.goto(f"{site.address}/assets")
    pat.locator("[data-pick]").first.click()
    pat.get_by_role("button", name="Share …").click()
    pat.get_by_label("Title").fill(HOSTILE[:60])
    pat.get_by_label("Password, if any").fill("correct horse")
    pat.get_by_label("They may comment").check()
    pat.get_by_role("button", name="Make the link").click()
    field = pat.locator("[data-share-address] input")
    expect(field).to_be_visible()
    address = field.input_value()
    guest = site.browser.new_context().new_page()
    guest.goto(address)
    guest.get_by_label("Password").fill("wrong horse")
    guest.get_by_role("button", name="Show them").click()
    expect(guest.get_by_role("alert")).to_contain_text("not the password")
    guest.get_by_label("Password").fill("correct horse")
    guest.get_by_role("button", name="Show them").click()
    expect(guest.locator(".card")).to_have_count(1)
    assert guest.locator(".card img").first.evaluate("i => i.decode().then(() => i.naturalWidth)") == 128
    guest.locator("summary").click()
    guest.get_by_label("Your name").fill("Kim")
    guest.locator("textarea").fill(HOSTILE)
    guest.get_by_role("button", name="Send").click()
    expect(guest.locator(".card .words")).to_contain_text(HOSTILE)
    stranger = site.browser.new_context().new_page()
    for path in ("/assets", f"/assets/{made[0].id}"):
        stranger.goto(site.address + path)
        assert stranger.url.endswith("/sign-in")
    picture = guest.locator(".frame").first.get_attribute("href")
    assert stranger.request.get(f"{site.address}{picture}").status == 403
    assert guest.request.get(f"{site.address}{picture}").status == 200
    shares = pat.request.get(f"{site.address}/v1/shares").json()["shares"]
    with site.session() as session:
        from asset_store.people.shares import revoke_link

        revoke_link(session, uuid.UUID(shares[0]["id"]), "pat")
    answer = guest.reload()
    assert answer is not None
    assert answer.status == 404
    assert guest.request.get(f"{site.address}{picture}").status == 404
    quiet(pat)


def test_a_reference_is_taken_back_and_what_that_reached_is_shown(site: Site) -> None:
    site.assets(2)
    page = site.person("rita", Role.RIGHTS_MANAGER)
    page.goto(f"{site.address}/library")
    expect(page.locator(".card")).to_contain_text("2 pictures came of it")
    page.get_by_role("button", name="Take back …").click()
    page.get_by_label("Reason").fill("contract ended")
    page.get_by_role("button", name="Take it back").click()
    expect(page.locator("[data-recall-report]")).to_contain_text("delivered nowhere")
    page.keyboard.press("Escape")
    expect(page.locator(".card")).to_contain_text("was withdrawn")
    expect(page.get_by_role("button", name="Take back …")).to_have_count(0)
    viewer = site.person("vera", Role.VIEWER)
    viewer.goto(f"{site.address}/library")
    expect(viewer.locator(".card")).to_have_count(1)
    expect(viewer.locator("[data-recall]")).to_have_count(0)
    quiet(page)
