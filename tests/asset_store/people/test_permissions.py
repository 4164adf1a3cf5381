"""What each role may do, against the sentences of the documentation, and that keys never decide."""

from __future__ import annotations

import uuid
from itertools import product

import pytest

from asset_store.errors import Forbidden
from asset_store.people.permissions import ALLOWED, BY_AGENT, NEVER_BY_KEY, Action, Granted, Principal
from asset_store.tables import Role
from tests.studio_home import ROOT

BRAND, OTHER = uuid.uuid4(), uuid.uuid4()


def principal(*granted: Granted, scopes: frozenset[Action] | None = None, only: uuid.UUID | None = None) -> Principal:
    return Principal("grace", "Grace", uuid.uuid4(), granted, scopes, only)


def test_the_documentation_has_the_table_that_holds() -> None:
    rows = [
        line.split("|")[1:-1] for line in (ROOT / "docs" / "people.md").read_text().splitlines() if line[:3] in ("| *",)
    ]
    told = {row[0].strip().strip("*"): {a.strip() for a in row[1].split(",")} for row in rows}
    assert told == {role.value: {a.value for a in actions} for role, actions in ALLOWED.items()}


@pytest.mark.parametrize(("role", "action"), list(product(Role, Action)))
def test_a_role_is_for_its_brand_alone(role: Role, action: Action) -> None:
    who = principal(Granted(role, BRAND))
    assert who.may(action, BRAND) == (action in ALLOWED[role])
    assert not who.may(action, OTHER)
    assert not who.may(action, None)
    assert principal(Granted(role)).may(action, OTHER) == (action in ALLOWED[role])


def test_a_reviewer_of_a_stage_decides_at_that_stage() -> None:
    who = principal(Granted(Role.REVIEWER, BRAND, "legal"))
    assert who.may(Action.DECIDE, BRAND, "legal")
    assert not who.may(Action.DECIDE, BRAND, "brand")
    assert who.stages(BRAND) == {"legal"}
    assert who.stages(OTHER) == frozenset()
    assert principal(Granted(Role.BRAND_LEAD, BRAND)).stages(BRAND) is None
    with pytest.raises(Forbidden, match="decide at brand"):
        who.require(Action.DECIDE, BRAND, "brand")


@pytest.mark.parametrize("action", Action)
def test_a_key_may_what_its_scopes_and_its_owner_may_and_never_decides(action: Action) -> None:
    everything = tuple(Granted(role) for role in Role)
    key = principal(*everything, scopes=frozenset({action}))
    assert key.may(action, BRAND) == (action not in NEVER_BY_KEY)
    assert not any(key.may(other, BRAND) for other in Action if other is not action)
    assert not principal(scopes=frozenset(Action)).may(action, BRAND)
    narrow = principal(*everything, scopes=frozenset({action}), only=BRAND)
    assert not narrow.may(action, OTHER)
    assert not narrow.may(action, None)


@pytest.mark.parametrize("action", Action)
@pytest.mark.parametrize("scopes", [frozenset(Action), None])
def test_an_agent_asks_and_does_nothing_else_whatever_its_scopes_say(
    action: Action, scopes: frozenset[Action] | None
) -> None:
    everything = tuple(Granted(role) for role in Role)
    agent = Principal("agent:planner of grace", "Grace", uuid.uuid4(), everything, scopes, is_agent=True)
    allowed = action in (Action.VIEW, Action.COMMENT, Action.PRODUCE, Action.ASSIGN)
    assert (action in BY_AGENT, agent.may(action, BRAND), agent.may(action, None)) == (allowed,) * 3
    assert agent.brands(action) == (None if allowed else frozenset())


def test_which_brands_somebody_sees() -> None:
    assert principal(Granted(Role.VIEWER)).brands(Action.VIEW) is None
    assert principal(Granted(Role.VIEWER, BRAND)).brands(Action.VIEW) == {BRAND}
    assert principal(Granted(Role.VIEWER, BRAND)).brands(Action.DECIDE) == frozenset()
    assert principal(Granted(Role.VIEWER), scopes=frozenset({Action.VIEW}), only=BRAND).brands(Action.VIEW) == {BRAND}
    assert principal(Granted(Role.VIEWER, OTHER), scopes=frozenset({Action.VIEW}), only=BRAND).brands(Action.VIEW) == frozenset()  # fmt: skip
    assert principal(Granted(Role.ADMIN), scopes=frozenset({Action.COMMENT})).brands(Action.VIEW) == frozenset()
