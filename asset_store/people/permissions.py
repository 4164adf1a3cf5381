"""What each role may do, as one table, and the one who acts, with all they may do."""

from __future__ import annotations

import enum
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from asset_store.errors import Forbidden
from asset_store.tables.people import Role


class Action(enum.StrEnum):
    VIEW = "view"
    COMMENT = "comment"
    PRODUCE = "produce"  # ask for campaigns and retakes
    ASSIGN = "assign"
    SHARE = "share"  # links for people without an account
    DECIDE = "decide"  # at a stage
    WAIVE = "waive"
    REOPEN = "reopen"
    RELEASE = "release"
    SUSPEND = "suspend"
    REINSTATE = "reinstate"  # and withdraw: ask for, confirm, decline
    RECALL = "recall"
    AUDIT = "audit"
    ADMINISTER = "administer"  # people, roles, everybody's keys


A = Action
READING = frozenset({A.VIEW, A.COMMENT})
ALLOWED: Mapping[Role, frozenset[Action]] = MappingProxyType(
    {
        Role.VIEWER: frozenset({A.VIEW}),
        Role.PRODUCER: READING | {A.PRODUCE, A.ASSIGN, A.SHARE},
        Role.REVIEWER: READING | {A.DECIDE, A.ASSIGN, A.SHARE},
        Role.BRAND_LEAD: READING | {A.PRODUCE, A.ASSIGN, A.SHARE, A.DECIDE, A.WAIVE, A.REOPEN, A.AUDIT},
        Role.RELEASER: READING | {A.RELEASE},
        Role.RIGHTS_MANAGER: READING | {A.SUSPEND, A.REINSTATE, A.RECALL, A.AUDIT},
        Role.ADMIN: frozenset({A.VIEW, A.AUDIT, A.ADMINISTER}),
    }
)
NEVER_BY_KEY = frozenset({A.DECIDE, A.SHARE, A.WAIVE, A.REOPEN, A.REINSTATE, A.ADMINISTER})
BY_AGENT = READING | {A.PRODUCE, A.ASSIGN}  # an agent asks, people decide: what is not here no agent's key does


@dataclass(frozen=True, slots=True)
class Granted:
    """A role, for a brand or (None) for all, and for a stage or (None) for all."""

    role: Role
    brand_id: uuid.UUID | None = None
    stage: str | None = None

    def covers(self, action: Action, brand_id: uuid.UUID | None, stage: str | None) -> bool:
        """brand_id None asks for what belongs to no brand, which takes a role for all."""
        if action not in ALLOWED[self.role] or (self.brand_id is not None and self.brand_id != brand_id):
            return False
        return action is not Action.DECIDE or stage is None or self.stage is None or self.stage == stage


@dataclass(frozen=True, slots=True)
class Principal:
    """Who acts. `actor` is what audit rows call them; a key's `scopes` narrow what its owner may, None is a person.

    `is_agent`: the key is an AI agent's, which may no more than BY_AGENT whatever its scopes say.
    """

    actor: str
    name: str
    person_id: uuid.UUID
    granted: tuple[Granted, ...]
    scopes: frozenset[Action] | None = None
    only_brand: uuid.UUID | None = None
    is_agent: bool = False
    key_id: uuid.UUID | None = None

    @property
    def is_person(self) -> bool:
        return self.scopes is None

    def may(self, action: Action, brand_id: uuid.UUID | None, stage: str | None = None) -> bool:
        if not self._in_scope(action):
            return False
        if self.only_brand is not None and self.only_brand != brand_id:
            return False
        return any(g.covers(action, brand_id, stage) for g in self.granted)

    def require(self, action: Action, brand_id: uuid.UUID | None, stage: str | None = None) -> None:
        if not self.may(action, brand_id, stage):
            raise Forbidden(self.actor, action.value if stage is None else f"{action} at {stage}")

    def brands(self, action: Action) -> Collection[uuid.UUID] | None:
        """The brands that they may do this for; None for all."""
        if not self._in_scope(action):
            return frozenset()
        able = [g for g in self.granted if action in ALLOWED[g.role]]
        everywhere = any(g.brand_id is None for g in able)
        named = {g.brand_id for g in able if g.brand_id is not None}
        if self.only_brand is not None:
            return frozenset({self.only_brand} if everywhere or self.only_brand in named else ())
        return None if everywhere else frozenset(named)

    def stages(self, brand_id: uuid.UUID) -> Collection[str] | None:
        """The stages that they may decide at; None for all."""
        able = [g for g in self.granted if g.covers(Action.DECIDE, brand_id, None)]
        if self.scopes is not None or not able:
            return frozenset()
        return None if any(g.stage is None for g in able) else frozenset(g.stage for g in able if g.stage)

    def _in_scope(self, action: Action) -> bool:
        if self.is_agent and action not in BY_AGENT:
            return False
        return self.scopes is None or (action in self.scopes and action not in NEVER_BY_KEY)
