"""What waits for a person, and finding it."""

from __future__ import annotations

import uuid

import pytest
from sqlalchemy.orm import Session

from asset_store.errors import Ambiguous, NotFound
from asset_store.reviewing import decide
from asset_store.reviewing.queue import find_asset, in_review, queue_of
from asset_store.tables import Asset, CheckOutcome
from tests.stories import a_brand, a_campaign, a_job, an_approved_asset, an_asset, an_asset_in_review, approve


def test_the_doubtful_come_first_then_the_longest_waiting(session: Session) -> None:
    campaign = a_campaign(session)
    outcomes = [CheckOutcome.PASS, CheckOutcome.WARN, CheckOutcome.FAIL, CheckOutcome.NOT_RUN, CheckOutcome.PASS]
    made = [an_asset_in_review(session, campaign, outcome=outcome) for outcome in outcomes]
    an_asset(session, campaign)
    an_approved_asset(session, campaign)
    ids = [asset.id for asset in in_review(session).assets]
    assert ids[:3] == [made[2].id, made[3].id, made[1].id]
    assert set(ids[3:]) == {made[0].id, made[4].id}


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 50])
def test_pages_show_everything_once(session: Session, limit: int) -> None:
    made = {an_asset_in_review(session, outcome=o).id for o in [*CheckOutcome, CheckOutcome.PASS, CheckOutcome.WARN]}
    seen: list[uuid.UUID] = []
    after = None
    while True:
        page = in_review(session, after=after, limit=limit)
        seen += [asset.id for asset in page.assets]
        if page.next_after is None:
            break
        after = page.next_after
    assert len(seen) == len(made)
    assert set(seen) == made
    assert seen == [asset.id for asset in in_review(session).assets]


def test_it_is_asked_by_brand_campaign_and_stage(session: Session) -> None:
    spring = a_campaign(session, "spring", stages=["brand", "legal"])
    autumn = a_campaign(session, "autumn", stages=[], brand="coco")
    at_brand, at_legal = an_asset_in_review(session, spring), an_asset_in_review(session, spring)
    approve(session, at_legal)
    other = an_asset_in_review(session, autumn)

    def ids(**asked: str) -> set[uuid.UUID]:
        return {asset.id for asset in in_review(session, **asked).assets}  # type: ignore[arg-type]

    assert ids(brand="bobo") == ids(campaign="spring") == ids(campaign=str(spring.id)) == {at_brand.id, at_legal.id}
    assert ids(stage="brand") == {at_brand.id, other.id}
    assert ids(stage="legal") == {at_legal.id}
    assert ids(brand="coco", stage="legal") == ids(brand="nobody") == set()


def test_a_page_mark_that_is_none_is_not_found(session: Session) -> None:
    with pytest.raises(NotFound):
        in_review(session, after="yesterday")


def with_id(session: Session, id_: str) -> Asset:
    asset = Asset(id=uuid.UUID(id_), campaign=a_campaign(session), shot="s", variant=1, job_key=a_job(session).key)
    session.add(asset)
    session.flush()
    return asset


def test_an_asset_is_found_by_the_start_of_its_id(session: Session) -> None:
    one = with_id(session, "abcd1111-0000-4000-8000-000000000001")
    two = with_id(session, "abcd2222-0000-4000-8000-000000000002")
    assert find_asset(session, "abcd1") is one
    assert find_asset(session, " ABCD2222-0000-40") is two
    assert find_asset(session, str(two.id)) is two
    with pytest.raises(Ambiguous) as refused:
        find_asset(session, "abcd")
    assert refused.value.candidates == (str(one.id), str(two.id))


@pytest.mark.parametrize("asked", ["abcd", "abc", "", "not hex", "%%%%", "a" * 33])
def test_what_names_no_asset_is_not_found(session: Session, asked: str) -> None:
    with pytest.raises(NotFound):
        find_asset(session, asked)


def test_a_person_s_own_queue_is_what_they_may_approve(session: Session) -> None:
    brand = a_brand(session)
    plain = an_asset_in_review(session)
    asked = an_asset_in_review(session, a_campaign(session, "own", requested_by="grace"))
    by_key = an_asset_in_review(session, a_campaign(session, "key", requested_by="key:ci of grace"))
    by_agent = an_asset_in_review(session, a_campaign(session, "agent", requested_by="agent:planner of grace"))
    legal = an_asset_in_review(session, a_campaign(session, "legal", stages=["legal"]))
    quorum = an_asset_in_review(session, a_campaign(session, "two", stages=[{"name": "brand", "quorum": 2}]))
    doubtful = an_asset_in_review(session, a_campaign(session, "doubt"), outcome=CheckOutcome.WARN)
    due = an_asset_in_review(session, a_campaign(session, "due", stages=[{"name": "brand", "due_hours": 1}]))
    other = an_asset_in_review(session, a_campaign(session, "other", brand="other"))

    def queue(person: str, stages: dict[uuid.UUID, set[str] | None]) -> list[uuid.UUID]:
        return list(queue_of(session, person, stages))

    mine = queue("Grace", {brand.id: {"brand"}})
    assert mine[:2] == [doubtful.id, due.id]
    assert set(mine) == {plain.id, quorum.id, doubtful.id, due.id}
    assert {legal.id, asked.id, by_key.id, by_agent.id} <= set(queue("hedy", {brand.id: None}))
    assert other.id not in queue("hedy", {brand.id: None})
    assert queue("hedy", {}) == []
    approve(session, quorum, "grace")
    assert quorum.id not in queue("grace", {brand.id: None})
    assert quorum.id in queue("hedy", {brand.id: None})
    decide.take_back(session, quorum.id, "grace")
    assert quorum.id in queue("grace", {brand.id: None})
