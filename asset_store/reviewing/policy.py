"""Who has to say yes to a picture, in which order, how many of them, and by when: the stages of a campaign.

As a brief writes them: `[brand, [legal, {name: regional, quorum: 2, due_hours: 48}]]` is the stage brand, and after it
legal and regional side by side, regional with two approvers within two days.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from asset_store.canonical import sha256_of
from asset_store.errors import StageRefused

if TYPE_CHECKING:
    from asset_store.tables import Campaign

DEFAULT_STAGES = ("brand",)
CHECKS_STAGE = "checks"  # where a waiver stands among the decisions
MOST_APPROVERS, MOST_STAGES, LONGEST_DUE_HOURS = 20, 20, 24 * 365
DEFAULT_RETAKES, MOST_RETAKES = 3, 50
FIELDS = ("name", "quorum", "due_hours")


@dataclass(frozen=True, slots=True)
class Stage:
    """quorum: how many people have to approve; due_hours: how long they have from when the stage is reached, or None."""

    name: str
    quorum: int = 1
    due_hours: float | None = None

    def as_json(self) -> str | dict[str, Any]:
        """As a brief writes it: the name alone where there is nothing else to say."""
        more = {"quorum": self.quorum} if self.quorum > 1 else {}
        due = {} if self.due_hours is None else {"due_hours": self.due_hours}
        return {"name": self.name, **more, **due} if more or due else self.name


Round = tuple[Stage, ...]  # stages that wait side by side


@dataclass(frozen=True)
class ReviewPolicy:
    """Rounds come one after another; the stages of a round wait side by side. `retakes`: how often an asset may be remade."""

    rounds: tuple[Round, ...]
    retakes: int = DEFAULT_RETAKES

    @property
    def stages(self) -> tuple[Stage, ...]:
        return tuple(stage for side_by_side in self.rounds for stage in side_by_side)

    @cached_property
    def sha256(self) -> str:
        """The policy's version: what a decision says that it was made under."""
        rounds = [[[s.name, s.quorum, s.due_hours] for s in side_by_side] for side_by_side in self.rounds]
        return sha256_of({"rounds": rounds, "retakes": self.retakes})

    def round_at(self, index: int) -> Round:
        return self.rounds[min(index, len(self.rounds) - 1)]


def policy_of(campaign: Campaign) -> ReviewPolicy:
    """What the campaign's brief asked for, or brand alone."""
    rounds = tuple(parse_round(entry) for entry in campaign.stages) or (parse_round(DEFAULT_STAGES[0]),)
    return ReviewPolicy(rounds, int(campaign.brief.get("retakes", DEFAULT_RETAKES)))


def choose_stage(waiting: Sequence[str], named: str | None) -> str:
    """The stage that a decision is made at: the one that waits, or the one that is named among several."""
    if named is None and len(waiting) == 1:
        return waiting[0]
    if named is None or named not in waiting:
        raise StageRefused(named, waiting)
    return named


def check_stages(entries: Iterable[object]) -> None:
    """ValueError, in a sentence, where stages as a brief writes them cannot be so."""
    stages = [stage for entry in entries for stage in parse_round(entry)]
    if len(stages) > MOST_STAGES:
        raise ValueError(f"there are {len(stages)} stages, and {MOST_STAGES} at most")
    seen: set[str] = set()
    for stage in stages:
        if stage.name.casefold() in seen:
            raise ValueError(f"there are two stages {stage.name}; one person may fill one stage, so name them apart")
        seen.add(stage.name.casefold())


def plain_round(entry: object) -> Any:
    """A round as it is stored: the plainest JSON that says it. ValueError where it cannot be so."""
    stages = [stage.as_json() for stage in parse_round(entry)]
    return stages[0] if len(stages) == 1 and not isinstance(entry, list | tuple) else stages


def parse_round(entry: object) -> Round:
    """A stage, or a list of stages that wait side by side."""
    if isinstance(entry, list | tuple):
        if not entry:
            raise ValueError("a round of no stages says nothing; leave it out")
        return tuple(_stage(part) for part in entry)
    return (_stage(entry),)


def _stage(entry: object) -> Stage:
    if isinstance(entry, str):
        return Stage(_name(entry))
    if not isinstance(entry, dict):
        raise ValueError("write a stage as its name, or as {name: legal, quorum: 2, due_hours: 48}")
    if strange := [str(key) for key in entry if key not in FIELDS]:
        raise ValueError(f"a stage has {', '.join(FIELDS)}, and not {strange[0][:40]!r}")
    quorum, due_hours = entry.get("quorum", 1), entry.get("due_hours")
    if isinstance(quorum, bool) or not isinstance(quorum, int) or not 1 <= quorum <= MOST_APPROVERS:
        raise ValueError(f"a quorum is how many people approve: a whole number from 1 to {MOST_APPROVERS}")
    if due_hours is not None and not _is_time(due_hours):
        raise ValueError(f"the time to decide, due_hours, is a number above 0, at most {LONGEST_DUE_HOURS} (a year)")
    return Stage(_name(entry.get("name")), quorum, due_hours)


def _is_time(hours: object) -> bool:
    if isinstance(hours, bool) or not isinstance(hours, int | float):
        return False
    return 0 < hours <= LONGEST_DUE_HOURS  # NaN and infinity are not


def _name(name: object) -> str:
    if not isinstance(name, str) or not name.strip() or name != name.strip() or not name.isprintable():
        raise ValueError("name a stage in one line of visible text, without spaces around it")
    if name.casefold() == CHECKS_STAGE:
        raise ValueError(f"{CHECKS_STAGE!r} is where waivers stand; name the stage otherwise")
    return name
