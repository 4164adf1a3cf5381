"""Stages as a brief writes them: one after another, side by side, with a quorum and a time."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.orm import Session

from asset_store.errors import BriefInvalid, StageRefused
from asset_store.reviewing import policy
from asset_store.reviewing.policy import ReviewPolicy, Stage, choose_stage, parse_round, policy_of
from flows.brief import parse_brief
from tests.stories import a_campaign

BRIEF = """
campaign: spring
brand: lumen
stages: {stages}
shots: [{{name: a, character: Pip, prompt: a mascot}}]
"""


@pytest.mark.parametrize(
    ("written", "rounds"),
    [
        ("[brand]", [[Stage("brand")]]),
        ("[brand, legal]", [[Stage("brand")], [Stage("legal")]]),
        ("[brand, [legal, regional]]", [[Stage("brand")], [Stage("legal"), Stage("regional")]]),
        ("[{name: legal, quorum: 2, due_hours: 48}]", [[Stage("legal", 2, 48)]]),
        ("[[{name: legal, quorum: 1}, regional]]", [[Stage("legal"), Stage("regional")]]),
    ],
)
def test_stages_are_read_as_they_are_written(session: Session, written: str, rounds: list[list[Stage]]) -> None:
    brief = parse_brief(BRIEF.format(stages=written), file="brief.yaml")
    stored = brief.model_dump(mode="json")["stages"]
    campaign = a_campaign(session, stages=stored)
    session.refresh(campaign)
    assert [list(r) for r in policy_of(campaign).rounds] == rounds


def test_a_plain_stage_is_stored_as_before_and_a_brief_keeps_its_hash() -> None:
    stored = parse_brief(BRIEF.format(stages="[brand, {name: legal}]"), file="b").model_dump(mode="json")
    assert stored["stages"] == ["brand", "legal"]
    assert "retakes" not in stored


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("[brand, Brand]", "two stages Brand"),
        ("[checks]", "waivers"),
        ("[{name: legal, quorum: 0}]", "quorum"),
        ("[{name: legal, quorum: true}]", "quorum"),
        ("[{name: legal, due_hours: 0}]", "due_hours"),
        ("[{name: legal, due_hours: .inf}]", "due_hours"),
        ("[{name: legal, until: 3}]", "not 'until'"),
        ("[{quorum: 2}]", "name a stage"),
        ("[[]]", "no stages"),
        ("[[[legal]]]", "write a stage"),
        ("[7]", "write a stage"),
        ("[' brand']", "name a stage"),
        ("[" + ", ".join(f"s{i}" for i in range(21)) + "]", "21 stages"),
    ],
)
def test_stages_that_cannot_be_so_are_told_with_their_line(written: str, told: str) -> None:
    with pytest.raises(BriefInvalid) as refused:
        parse_brief(BRIEF.format(stages=written), file="brief.yaml")
    problem = refused.value.problems[0]
    assert told.casefold() in problem.message.casefold()
    assert problem.line == 4


def test_a_campaign_that_names_no_stages_is_approved_by_the_brand(session: Session) -> None:
    assert policy_of(a_campaign(session, stages=[])).stages == (Stage("brand"),)


def test_another_policy_is_another_version() -> None:
    def version(*entries: Any, retakes: int = 3) -> str:
        return ReviewPolicy(tuple(parse_round(e) for e in entries), retakes).sha256

    same = version("brand", {"name": "legal", "quorum": 1})
    assert same == version("brand", "legal")
    others = [
        version("brand", {"name": "legal", "quorum": 2}),
        version(["brand", "legal"]),
        version("legal", "brand"),
        version("brand", {"name": "legal", "due_hours": 4}),
        version("brand", "legal", retakes=2),
    ]
    assert len({same, *others}) == len(others) + 1


def test_a_stage_is_named_where_several_wait() -> None:
    assert choose_stage(["brand"], None) == "brand"
    assert choose_stage(["legal", "regional"], "regional") == "regional"
    for waiting, named in ((["legal", "regional"], None), (["legal"], "brand"), ([], None)):
        with pytest.raises(StageRefused) as refused:
            choose_stage(waiting, named)
        assert refused.value.waiting == tuple(waiting)


def test_limits_are_what_the_parser_holds() -> None:
    assert parse_round({"name": "a", "quorum": policy.MOST_APPROVERS, "due_hours": policy.LONGEST_DUE_HOURS})
