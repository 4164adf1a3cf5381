"""Finding assets among many: what their rows say, filters, places, counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text, update
from sqlalchemy.orm import Session

from asset_store import checks
from asset_store.reviewing import decide, grid
from asset_store.reviewing.assigning import assign, unassign
from asset_store.reviewing.grid import Filters
from asset_store.reviewing.queue import DOUBT, around, queue_of
from asset_store.tables import Asset, CheckOutcome, Job
from tests.stories import (
    a_brand,
    a_campaign,
    a_check,
    a_version,
    an_asset,
    an_asset_in_review,
)


def row(session: Session, asset: Asset) -> Asset:
    session.refresh(asset, ["brand_id", "character", "words", "doubt", "checked"])
    return asset


def found(session: Session, **filters: object) -> list[Asset]:
    tiles = grid.tiles(session, Filters(**filters)).tiles  # type: ignore[arg-type]
    return [session.get_one(Asset, tile.id) for tile in tiles]


def test_the_row_says_whose_it_is_and_who_is_shown(session: Session) -> None:
    campaign = a_campaign(session)
    campaign.brief = {"shots": [{"name": "beach", "character": "Bobo"}, {"name": "snow", "character": "Zoe's"}]}
    session.flush()
    asset = an_asset(session, campaign)
    assert row(session, asset).character == ""  # its shot is none of the brief's
    for shot, who in (("beach", "Bobo"), ("snow", "Zoe's"), ('") x', "")):
        asset.shot = shot
        session.flush()
        assert (row(session, asset).brand_id, asset.character) == (campaign.brand_id, who)


def test_the_row_says_what_the_checks_of_the_newest_version_found(session: Session) -> None:
    asset = an_asset(session)
    assert (row(session, asset).doubt, asset.checked) == (DOUBT[CheckOutcome.NOT_RUN], [])
    decide.submit(session, asset.id, "flow:campaign", blob_known=lambda sha256: True)
    decide.finish_checks(session, asset.id, [a_check(), a_check(CheckOutcome.WARN, "identity")])
    assert row(session, asset).doubt == DOUBT[CheckOutcome.WARN]
    assert set(asset.checked) == {"not blank", "pass", "not blank=pass", "identity", "warn", "identity=warn"}
    assert grid.tiles_of(session, [asset.id])[0].doubts == ("identity",)
    a_version(session, asset)
    assert (row(session, asset).doubt, asset.checked) == (DOUBT[CheckOutcome.NOT_RUN], [])


def test_each_filter_narrows_and_all_do_together(session: Session) -> None:
    spring = a_campaign(session, "spring")
    spring.brief = {"shots": [{"name": "beach", "character": "Bobo"}]}
    session.flush()
    wanted = an_asset_in_review(session, spring)
    wanted.shot = "beach"
    warned = an_asset_in_review(session, a_campaign(session, "autumn", brand="other"), outcome=CheckOutcome.WARN)
    session.flush()
    alone = {
        "brand": "bobo", "campaign": "spring", "character": "Bobo", "outcome": CheckOutcome.PASS,
        "within": [a_brand(session).id], "until": warned.made_at, "text": "beach",
    }  # fmt: skip
    session.execute(update(Asset).where(Asset.id == wanted.id).values(made_at=text("made_at - interval '1 day'")))
    for name, value in alone.items():
        if name != "text":  # the prompt of both has the word
            assert found(session, **{name: value}) == [wanted], name
    assert found(session, **alone) == [wanted]
    assert found(session, check="not blank", outcome=CheckOutcome.WARN) == [warned]
    assert found(session, check="not blank", outcome=CheckOutcome.FAIL) == []
    assert found(session, stage="brand", review=warned.review) == [warned, wanted]
    assert found(session, brand="none") == found(session, campaign="none") == found(session, within=[]) == []


def test_text_is_found_by_beginnings_of_words_in_any_order(session: Session) -> None:
    asset = an_asset(session, a_campaign(session, "spring-2027"))
    job = session.get_one(Job, asset.job_key)
    job.recipe = {**job.recipe, "prompt": "Élodie's “kite”, over the harbour—v1.2 …mäd’chen"}
    asset.shot = "kite_flying/01"
    session.flush()
    for words in (
        "kite",
        "KITE harb",
        "harbour kit",
        "élod",
        "spring 2027",
        "fly 01",
        "  kite,over ",
        "v1.2",
        "chen",
        "harbour v1",
    ):
        assert found(session, text=words) == [asset], words
    for words in ("ite", "kite beach", "'", "!!!", "kite & !harbour beach"):
        assert found(session, text=words) == [], words


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(said=st.text(max_size=40))
def test_no_text_breaks_the_search(session: Session, said: str) -> None:
    assert found(session, text=said) == []


def test_pages_follow_one_another_both_ways_without_gap_or_double(session: Session) -> None:
    campaign = a_campaign(session)
    made = [an_asset(session, campaign) for _ in range(7)]  # in one transaction: made at the same moment
    whole = grid.tiles(session, Filters(), limit=50).tiles
    seen, after = [], None
    while True:
        page = grid.tiles(session, Filters(), after, 3)
        seen += page.tiles
        if (after := page.next_after) is None:
            break
    assert {tile.id for tile in whole} == {asset.id for asset in made}
    assert tuple(seen) == whole
    here = session.get_one(Asset, whole[4].id)
    assert grid.around(session, Filters(), here, 5) == grid.Around(whole[4], [whole[3]], [whole[5], whole[6]])
    assert grid.around(session, Filters(brand="none"), here, 5) == grid.Around(whole[4], [], [])


def test_counts_are_of_the_newest_and_say_when_there_are_more(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = a_campaign(session)
    for _ in range(2):
        an_asset(session, campaign)
    an_asset_in_review(session, campaign)
    only = Filters(campaign=campaign.name, review=None)
    assert grid.counts(session, only) == grid.Counts({"draft": 2, "in review": 1}, more=False)
    assert grid.counts(session, replace(only, text="zzz")) == grid.Counts({}, more=False)
    monkeypatch.setattr(grid, "COUNTED", 2)
    told = grid.counts(session, only)
    assert (sum(told.by_state.values()), told.more) == (2, True)


def test_the_queue_goes_on_from_an_asset_that_has_left_it(session: Session) -> None:
    campaign = a_campaign(session)
    assets = [
        an_asset_in_review(session, campaign, outcome=o)
        for o in (CheckOutcome.PASS, CheckOutcome.WARN, CheckOutcome.PASS)
    ]
    stages = {campaign.brand_id: None}
    whole = list(queue_of(session, "grace", stages))
    assert whole[0] == assets[1].id  # the doubtful first
    assert set(whole) == {asset.id for asset in assets}
    middle = row(session, session.get_one(Asset, whole[1]))
    decide.decide(session, middle.id, decide.Verdict.APPROVE, "grace", "", middle.current.sha256)  # type: ignore[union-attr]
    for able in (stages, None):
        told = around(session, "grace", able, middle, 5)
        assert ([t.id for t in told.before], told.tile.id, [t.id for t in told.later]) == (
            [whole[0]],
            middle.id,
            [whole[2]],
        )


def test_a_filter_offers_every_check_that_there_is() -> None:
    from PIL import Image

    policy, image = checks.CheckPolicy(), Image.new("RGB", (8, 8))
    made = [
        checks.check_decodes(b"", 8, 8), checks.check_blank(image, policy, finite=True),
        checks.check_palette(image, ["#000000"], policy), checks.check_duplicate("0" * 16, "x", [], policy),
    ]  # fmt: skip
    assert {result.name for result in made} | {"identity"} == set(checks.NAMES)


def test_a_list_shows_the_newest_version_and_its_checks(session: Session) -> None:
    asset = an_asset_in_review(session, outcome=CheckOutcome.WARN)
    empty = an_asset(session, with_version=False)
    listed = {one.tile.id: one for one in grid.page(session, Filters()).assets}
    nothing, shown = listed[empty.id], listed[asset.id]
    assert (nothing.tile.id, nothing.tile.sha256, nothing.version_id, nothing.checks) == (empty.id, None, None, None)
    assert (shown.version_id, shown.tile.sha256, shown.tile.number) == (asset.current.id, asset.current.sha256, 1)  # type: ignore[union-attr]
    assert [(c["name"], c["outcome"]) for c in shown.checks or ()] == [("not blank", "warn")]
    again = a_version(session, asset)
    shown = next(one for one in grid.page(session, Filters()).assets if one.tile.id == asset.id)
    assert (shown.version_id, shown.tile.sha256, shown.tile.number, shown.checks) == (again.id, again.sha256, 2, None)


def test_who_is_asked_is_found_while_the_asset_waits_at_their_stage(session: Session) -> None:
    campaign = a_campaign(session, stages=["brand", "legal"])
    asset, other = an_asset_in_review(session, campaign), an_asset_in_review(session, campaign)
    assign(session, asset.id, "brand", "Lena", "ada")
    assign(session, asset.id, "legal", "max", "ada")
    assign(session, other.id, "brand", "max", "ada")
    assert (found(session, person="lena"), found(session, person="max")) == ([asset], [other])
    decide.decide(session, asset.id, decide.Verdict.APPROVE, "grace", "", asset.current.sha256)  # type: ignore[union-attr]
    assert (found(session, person="lena"), set(found(session, person="max"))) == ([], {asset, other})
    unassign(session, other.id, "brand", "max", "ada")
    assert found(session, person="max", stage="legal") == [asset]
    assert found(session, person="nobody") == []
