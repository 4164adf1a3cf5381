"""Looking closely in the room: zoom, two in comparison, boxes and drawings, drafts that outlive a reload, releasing."""

from __future__ import annotations

import io
import itertools
import math
import re
import time
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect
from sqlalchemy import select

from asset_store.reviewing import comments, decide
from asset_store.tables import Asset, Comment, Role, Verdict
from tests.studio.pages.conftest import Site
from tests.studio.pages.test_pages import quiet


@pytest.fixture
def room(site: Site) -> Page:
    """Somebody who does everything, in the room of the one asset there is."""
    (asset,) = site.assets(1)
    page = site.person("grace", *Role)
    page.refused = []  # type: ignore[attr-defined]
    page.on(
        "console",
        lambda m: page.refused.append(f"{m.text} {m.location}") if "Content Security Policy" in m.text else None,
    )  # type: ignore[attr-defined]
    page.goto(f"{site.address}/assets/{asset.id}")
    page.wait_for_selector("[data-deep]")
    return page


def enter(page: Page, site: Site) -> None:
    """The room of the newest asset, from the grid."""
    page.goto(f"{site.address}/assets")
    page.locator(".frame").first.click()
    page.wait_for_selector("[data-deep]")


# In the page: a pointer that is down moves to each of these places, by way of five others.
MOVED = """(layer, places) => {
  places.forEach(([x, y], i) => {
    const [px, py] = places[Math.max(0, i - 1)];
    for (let s = 1; s <= 6; s += 1) {
      const clientX = px + (x - px) * s / 6, clientY = py + (y - py) * s / 6;
      layer.dispatchEvent(new PointerEvent("pointermove", { clientX, clientY, bubbles: true, pointerId: 1, isPrimary: true, buttons: 1 }));
    }
  });
}"""


def on_screen(page: Page, point: tuple[float, float]) -> tuple[float, float]:
    """A place in the picture, in shares of its sides, in pixels of the window."""
    box = page.locator("[data-layer]").bounding_box()
    assert box is not None
    return box["x"] + point[0] * box["width"], box["y"] + point[1] * box["height"]


def drag(page: Page, *points: tuple[float, float]) -> None:
    """Over the picture, in shares of its sides."""
    for i, point in enumerate(points):
        page.mouse.move(*on_screen(page, point), steps=6)
        if i == 0:
            page.mouse.down()
    page.mouse.up()


def width(page: Page) -> float:
    box = page.locator("[data-layer]").bounding_box()
    assert box is not None
    return box["width"]


def test_a_box_is_drawn_and_kept_as_it_was_drawn(site: Site, room: Page) -> None:
    room.keyboard.press("b")
    drag(room, (0.2, 0.3), (0.6, 0.5))
    room.keyboard.type("rounder")
    room.get_by_role("button", name="Comment").click()
    expect(room.locator("[data-shapes] rect")).to_have_count(1)
    expect(room.locator(".comments li")).not_to_contain_text("not sent yet")
    room.reload()
    expect(room.locator("[data-shapes] rect")).to_have_count(1)
    with site.session() as session:
        (region,) = session.scalars(select(Comment.region)).all()
    assert region is not None
    assert region["kind"] == "box"
    for name, share in (("x", 0.2), ("y", 0.3), ("width", 0.4), ("height", 0.2)):
        assert region[name] == pytest.approx(share, abs=0.01), name
    quiet(room)


def test_a_drawing_has_the_points_that_were_drawn(site: Site, room: Page) -> None:
    room.keyboard.press("d")
    drag(room, (0.3, 0.3), (0.7, 0.3), (0.7, 0.7))
    room.keyboard.type("this edge")
    room.get_by_role("button", name="Comment").click()
    expect(room.locator(".comments li")).not_to_contain_text("not sent yet")
    expect(room.locator("[data-shapes] polyline")).to_have_count(1)
    with site.session() as session:
        (region,) = session.scalars(select(Comment.region)).all()
    assert region is not None
    assert region["kind"] == "path"
    assert region["points"][0] == pytest.approx([0.3, 0.3], abs=0.01)
    assert region["points"][-1] == pytest.approx([0.7, 0.7], abs=0.01)
    assert any(point == pytest.approx([0.7, 0.3], abs=0.02) for point in region["points"])


def test_a_box_is_placed_and_sized_by_keys_alone(site: Site, room: Page) -> None:
    for key in ("b", "ArrowRight", "ArrowDown", "Shift+ArrowRight", "Shift+ArrowUp", "Enter"):
        room.keyboard.press(key)
    room.keyboard.type("here")
    room.keyboard.press("Tab")
    room.keyboard.press("Enter")
    expect(room.locator(".comments li")).not_to_contain_text("not sent yet")
    with site.session() as session:
        (region,) = session.scalars(select(Comment.region)).all()
    assert region == {"kind": "box", "x": 0.42, "y": 0.42, "width": 0.22, "height": 0.18}


def test_what_was_begun_outlives_a_reload(room: Page) -> None:
    room.keyboard.press("b")
    drag(room, (0.2, 0.2), (0.4, 0.4))
    room.keyboard.type("half a thou")
    room.reload()
    expect(room.locator("[data-comment-form] textarea")).to_have_value("half a thou")
    expect(room.locator("[data-shapes] [data-draft]")).to_have_count(1)
    expect(room.locator("#said")).to_contain_text("is here again")
    quiet(room)


def test_a_pin_stays_on_its_place_while_the_picture_is_moved(site: Site, room: Page) -> None:
    with site.session() as session:
        asset = session.scalars(select(Asset)).one()
        assert asset.current is not None
        comments.comment(session, asset.current.id, "hedy", "here", region={"kind": "pin", "x": 0.25, "y": 0.75})
    room.reload()
    room.wait_for_selector("[data-deep]")
    before = width(room)
    room.keyboard.press("z")
    room.wait_for_timeout(600)
    assert width(room) > 2 * before
    room.keyboard.press("ArrowRight")
    room.wait_for_timeout(600)
    layer, pin = room.locator("[data-layer]").bounding_box(), room.locator(".pins button").bounding_box()
    assert layer is not None
    assert pin is not None
    assert (pin["x"] + pin["width"] / 2 - layer["x"]) / layer["width"] == pytest.approx(0.25, abs=0.01)
    assert (pin["y"] + pin["height"] / 2 - layer["y"]) / layer["height"] == pytest.approx(0.75, abs=0.01)
    room.keyboard.press("z")
    room.wait_for_timeout(600)
    assert width(room) == pytest.approx(before, rel=0.02)
    room.mouse.move(500, 400)
    room.mouse.wheel(0, -400)
    room.wait_for_timeout(600)
    assert width(room) > 1.1 * before
    assert room.refused == []  # type: ignore[attr-defined]  # no library does what the policy forbids


def colours(page: Page, *places: tuple[float, float]) -> list[tuple[int, ...]]:
    """What the viewer shows at places of the stage, in shares of its sides."""
    page.wait_for_timeout(700)
    shot = page.locator("[data-view]").screenshot()
    image = Image.open(io.BytesIO(shot)).convert("RGB")
    return [image.getpixel((int(x * image.width), int(y * image.height))) for x, y in places]  # type: ignore[misc]


def test_two_pictures_are_compared_by_a_slider_and_side_by_side(room: Page) -> None:
    mine, reference = (30, 90, 160), (40, 120, 200)
    middle = [(0.45, 0.5), (0.55, 0.5)]
    assert colours(room, *middle) == [mine, mine]
    room.keyboard.press("s")
    assert colours(room, *middle) == [mine, reference]
    room.locator("[data-slider] input").evaluate("i => { i.value = 0; i.dispatchEvent(new Event('input')); }")
    assert colours(room, *middle) == [reference, reference]
    room.locator("body").press("v")
    assert colours(room, (0.25, 0.5), (0.75, 0.5)) == [mine, reference]
    expect(room.get_by_role("button", name="Side by side")).to_have_attribute("aria-pressed", "true")
    room.locator("body").press("v")
    assert colours(room, *middle) == [mine, mine]
    quiet(room)


def test_without_its_library_the_plain_picture_is_reviewed(site: Site) -> None:
    (asset,) = site.assets(1)
    page = site.person("grace", Role.REVIEWER)
    page.route("**/openseadragon.js", lambda route: route.abort())
    page.goto(f"{site.address}/assets/{asset.id}")
    expect(page.locator("[data-picture]")).to_be_visible()
    page.keyboard.press("p")
    drag(page, (0.5, 0.25))
    page.keyboard.type("here")
    page.get_by_role("button", name="Comment").click()
    expect(page.locator(".pins button")).to_have_count(1)
    page.locator("h1").click()
    page.keyboard.press("a")
    expect(page.locator(".side")).to_contain_text("approve at brand by grace")
    quiet(page)


def test_rooms_are_gone_through_and_back_without_loading_a_page(site: Site) -> None:
    site.assets(3)
    page = site.person("vera", Role.VIEWER)
    enter(page, site)
    page.evaluate("window.same = true")
    shots = []
    for key in ("j", "j", "k"):
        shots.append(page.locator("h1").inner_text())
        page.keyboard.press(key)
        expect(page.locator("h1")).not_to_have_text(shots[-1])
    page.go_back()
    expect(page.locator("h1")).to_have_text(shots[2])
    assert page.evaluate("window.same") is True
    assert page.title().startswith(shots[2])
    quiet(page)


def test_a_room_that_was_fetched_early_is_looked_at_again(site: Site) -> None:
    """Somebody decided meanwhile: what is shown says so."""
    site.assets(2)
    page = site.person("vera", Role.VIEWER)
    page.goto(f"{site.address}/assets")
    page.clock.install()
    page.locator(".frame").first.click()
    page.wait_for_load_state("networkidle")
    with site.session() as session:
        oldest = session.scalars(select(Asset).order_by(Asset.made_at, Asset.id)).first()
        assert oldest is not None
        assert oldest.current is not None
        decide.decide(session, oldest.id, Verdict.REJECT, "hedy", "three ears", oldest.current.sha256)
    page.clock.fast_forward(20_000)
    page.keyboard.press("j")
    expect(page.locator(".side .state").first).to_have_text("rejected")


def test_an_approved_asset_is_released_to_a_place_by_name(site: Site, room: Page, tmp_path: Path) -> None:
    room.keyboard.press("a")
    expect(room.locator(".side")).to_contain_text("approve at brand by grace")
    room.get_by_role("button", name="Release").click()
    expect(room.locator(".side .state").nth(1)).to_have_text("released")
    assert [f.suffix for f in sorted((tmp_path / "web").rglob("*")) if f.is_file()]
    quiet(room)


def test_a_decision_that_is_refused_comes_back_with_what_was_written(site: Site) -> None:
    """The next picture was shown at once; nothing is decided on it, and nothing is lost."""
    site.assets(2)
    page = site.person("grace", Role.REVIEWER)
    enter(page, site)
    first = page.locator("h1").inner_text()
    shot = first.removesuffix(" #1")
    with site.session() as session:
        asset = session.scalars(select(Asset).where(Asset.shot == shot)).one()
        assert asset.current is not None
        decide.decide(session, asset.id, Verdict.REQUEST_CHANGES, "hedy", "three ears", asset.current.sha256)
    page.locator("[name=reason]").fill("four ears")
    page.locator("[data-verdict=reject]").click()
    expect(page.locator("#said")).to_contain_text("Look at the current version")
    expect(page.locator("h1")).to_have_text(first)
    expect(page.locator("[name=reason]")).to_have_value("four ears")
    expect(page.locator(".side .state").first).to_have_text("changes requested")
    page.wait_for_timeout(700)  # a key that was meant for the other decides nothing here
    page.locator("[data-verdict=reject]").click()  # on what is seen now, it may
    expect(page.locator("#said")).to_contain_text("rejected")
    with site.session() as session:
        assert sorted(a.review.value for a in session.scalars(select(Asset))) == ["in review", "rejected"]
    quiet(page)


@pytest.mark.parametrize("leave", ["another page", "closed"])
def test_a_decision_is_written_down_also_when_its_reviewer_leaves_at_once(site: Site, leave: str) -> None:
    """It is sent behind the next picture, or with the page's last breath."""
    site.assets(2)
    page = site.person("grace", Role.REVIEWER)
    enter(page, site)
    page.wait_for_load_state("networkidle")
    page.evaluate("window.requestAnimationFrame = () => 0")  # the next picture is not painted before
    page.evaluate("document.querySelector('[data-verdict=approve]').click()")
    expect(page.locator("#said")).not_to_contain_text("not loaded")
    if leave == "closed":
        page.close(run_before_unload=True)
    else:
        page.goto(f"{site.address}/campaigns")
    give_up_at = time.monotonic() + 20
    while True:
        with site.session() as session:
            made = sorted(a.review.value for a in session.scalars(select(Asset)))
        if made != ["in review", "in review"]:
            break
        assert time.monotonic() < give_up_at, "the decision is lost"
        time.sleep(0.1)
    assert made == ["approved", "in review"]


def test_a_decision_that_cannot_be_sent_says_so_and_leads_back(site: Site) -> None:
    site.assets(2)
    page = site.person("grace", Role.REVIEWER)
    enter(page, site)
    page.wait_for_load_state("networkidle")
    first = page.locator("h1").inner_text()
    page.context.set_offline(True)
    page.keyboard.press("a")
    expect(page.locator("#said")).to_contain_text("cannot be reached")
    page.context.set_offline(False)
    page.get_by_role("button", name="Back to it").click()
    expect(page.locator("h1")).to_have_text(first)
    page.keyboard.press("a")
    expect(page.locator("#said")).to_contain_text("approved")
    with site.session() as session:
        assert sorted(a.review.value for a in session.scalars(select(Asset))) == ["approved", "in review"]
    quiet(page)


def test_a_comment_is_sent_from_whatever_page_is_open(site: Site) -> None:
    site.assets(2)
    page = site.person("grace", Role.REVIEWER)
    enter(page, site)
    page.wait_for_load_state("networkidle")
    page.context.set_offline(True)
    page.locator("[data-comment-form] textarea").fill("three ears")
    page.get_by_role("button", name="Comment").click()
    expect(page.locator(".comments li")).to_contain_text("not sent yet")
    page.locator("h1").click()
    page.keyboard.press("j")  # it was fetched before the connection dropped
    expect(page.locator(".comments li")).to_have_count(0)
    page.context.set_offline(False)
    page.goto(f"{site.address}/campaigns")
    page.wait_for_load_state("networkidle")
    with site.session() as session:
        assert session.scalars(select(Comment.text)).all() == ["three ears"]
    quiet(page)


def test_a_stray_press_takes_no_drawing_away(room: Page) -> None:
    room.keyboard.press("b")
    drag(room, (0.2, 0.2), (0.6, 0.6))
    drawn = room.locator("[data-shapes] rect").get_attribute("width")
    drag(room, (0.8, 0.8))  # a press alone
    expect(room.locator("[data-shapes] rect")).to_have_attribute("width", str(drawn))
    room.locator("h1").click()
    room.keyboard.press("?")
    room.keyboard.press("Escape")
    expect(room.locator("[data-shapes] rect")).to_have_attribute("width", str(drawn))
    room.get_by_role("button", name="Box B").focus()
    room.keyboard.press("Enter")  # on to the words
    room.keyboard.type("here")
    expect(room.locator("[data-comment-form] textarea")).to_have_value("here")
    room.get_by_role("button", name="Of the whole picture").click()
    expect(room.locator("[data-shapes] rect")).to_have_count(0)
    quiet(room)


def test_a_long_drawing_is_kept_as_it_was_drawn(site: Site, room: Page) -> None:
    """Every turn of a spiral is still there, the first as fine as the last."""
    room.keyboard.press("d")
    turns = [(0.5 + (0.1 + t / 1500) * math.cos(t / 12), 0.5 + (0.1 + t / 1500) * math.sin(t / 12)) for t in range(300)]
    x, y = on_screen(room, turns[0])
    room.mouse.move(x, y)
    room.mouse.down()
    room.locator("[data-layer]").evaluate(MOVED, [on_screen(room, turn) for turn in turns])  # quicker than by the mouse
    room.mouse.up()
    room.keyboard.type("this whirl")
    room.get_by_role("button", name="Comment").click()
    expect(room.locator(".comments li")).not_to_contain_text("not sent yet")
    with site.session() as session:
        (region,) = session.scalars(select(Comment.region)).all()
    assert region is not None
    kept = region["points"]
    assert len(kept) <= 2000
    for x, y in turns[::7]:  # near a line between two points that were kept
        assert min(off((x, y), a, b) for a, b in itertools.pairwise(kept)) < 0.01


def off(point: tuple[float, float], a: list[float], b: list[float]) -> float:
    """How far a point is from the line between two others."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    along = max(0.0, min(1.0, ((point[0] - a[0]) * dx + (point[1] - a[1]) * dy) / max(dx * dx + dy * dy, 1e-12)))
    return math.hypot(point[0] - a[0] - along * dx, point[1] - a[1] - along * dy)


def test_a_reason_outlives_a_reload_until_it_is_said(site: Site, room: Page) -> None:
    room.locator("[name=reason]").fill("four ears, where the sheet has two")
    room.reload()
    expect(room.locator("[name=reason]")).to_have_value("four ears, where the sheet has two")
    room.wait_for_selector("[data-deep]")
    room.locator("[data-verdict=reject]").click()
    expect(room.locator(".side .state").first).to_have_text("rejected")
    assert room.evaluate("Object.keys(localStorage).filter(k => k.startsWith('reason')).length") == 0


SLOW = """
const fetched = window.fetch;
window.fetch = async (address, ...more) => {
  if (String(address).startsWith("/assets/")) await new Promise((done) => setTimeout(done, 2000));
  return fetched(address, ...more);
};
"""  # rooms that are fetched early come late


def test_keys_that_are_pressed_fast_lead_one_step_each(site: Site) -> None:
    site.assets(4)
    page = site.person("vera", Role.VIEWER)
    page.add_init_script(SLOW)
    page.goto(f"{site.address}/assets")
    order = page.locator(".card strong").all_inner_texts()
    page.locator(".frame").first.click()
    page.wait_for_selector("[data-deep]")
    page.keyboard.press("j")
    page.keyboard.press("j")  # while the first is on its way: it is the same step
    expect(page.locator("h1")).to_have_text(order[1])
    page.wait_for_timeout(2500)
    expect(page.locator("h1")).to_have_text(order[1])
    page.go_back()
    expect(page.locator("h1")).to_have_text(order[0])
    quiet(page)


def test_who_does_not_see_is_told_where_they_are(site: Site) -> None:
    site.assets(2)
    page = site.person("vera", Role.VIEWER)
    enter(page, site)
    expect(page.get_by_role("img", name=re.compile("variant 1, version 1"))).to_have_count(1)
    page.keyboard.press("j")
    expect(page.locator("main")).to_be_focused()
    expect(page.locator("main")).to_have_attribute("aria-label", page.locator("h1").inner_text())


def test_a_released_asset_is_suspended_and_reinstated_by_two_people(site: Site, room: Page) -> None:
    room.keyboard.press("a")
    expect(room.locator(".side")).to_contain_text("approve at brand by grace")
    room.get_by_role("button", name="Release").click()
    availability = room.locator(".side .state").nth(1)
    expect(availability).to_have_text("released")
    room.get_by_text("Suspend", exact=True).click()
    room.locator("[data-event-form=suspensions] textarea").fill("a claim")
    room.get_by_role("button", name="Take it out of use").click()
    expect(availability).to_have_text("suspended")
    room.get_by_text("Reinstate or withdraw").click()
    room.locator("[data-event-form=proposals] textarea").fill("settled")
    room.get_by_role("button", name="Ask", exact=True).click()
    expect(room.locator(".side")).to_contain_text("grace asks to reinstate it: settled")
    expect(room.get_by_role("button", name="Confirm")).to_have_count(0)  # a second person does
    rita = site.person("rita", Role.RIGHTS_MANAGER)
    rita.goto(room.url)
    rita.get_by_role("button", name="Confirm").click()
    expect(rita.locator(".side .state").nth(1)).to_have_text("released")
    quiet(room)
    quiet(rita)


def test_somebody_is_asked_to_decide(site: Site, room: Page) -> None:
    with site.session() as session:
        site.somebody(session)
    room.get_by_text("Ask somebody").click()
    room.get_by_label("Person").fill("hedy")
    room.get_by_role("button", name="Ask", exact=True).click()
    expect(room.locator(".side")).to_contain_text("hedy at brand")
    quiet(room)


def test_a_decision_that_could_not_be_sent_is_made_when_it_is_said_again(site: Site, room: Page) -> None:
    """The last of a list: there is no other room to come back from."""
    room.context.set_offline(True)
    room.keyboard.press("a")
    expect(room.locator("#said")).to_contain_text("cannot be reached")
    room.context.set_offline(False)
    room.keyboard.press("a")
    expect(room.locator(".side")).to_contain_text("approve at brand by grace")
    quiet(room)
