"""What the API answers with, as a client reads it. What a newer server says besides is passed over."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict


class Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Problem(Answer):
    """An error as problem+json (RFC 9457). `type` is `urn:onmodel:problem:NotFound`, `kind` its last word."""

    type: str = "about:blank"
    title: str = ""
    status: int = 0
    next_step: str = ""

    @property
    def kind(self) -> str:
        return self.type.rpartition(":")[2]


class Me(Answer):
    """Who is asking. `actions` by brand, "*" for what belongs to no brand; `is_agent`: the key is an agent's."""

    actor: str
    name: str
    is_person: bool
    is_agent: bool = False
    actions: dict[str, list[str]]


class Check(Answer):
    name: str
    outcome: str
    value: float | None
    threshold: float | None
    message: str


class Version(Answer):
    """One picture; `sha256` names its bytes."""

    id: UUID
    number: int
    parent_id: UUID | None
    sha256: str
    width_px: int
    height_px: int
    made_at: datetime
    checks: list[Check]


class Asset(Answer):
    """`waits_at`: the stages that lack an approval; `row_version`: what a change says it has seen."""

    id: UUID
    brand: str
    campaign: str
    character: str
    shot: str
    variant: int
    review: str
    availability: str
    waits_at: list[str]
    due_at: datetime | None
    row_version: int
    made_at: datetime
    current: Version | None


class Campaign(Answer):
    """`review`: how many of its assets are in each state."""

    id: UUID
    name: str
    brand: str
    stages: list[Any]
    requested_by: str
    made_at: datetime
    review: dict[str, int]


class Comment(Answer):
    id: UUID
    version_id: UUID
    version: int
    by: str
    text: str
    region: dict[str, Any] | None
    reply_to: UUID | None
    edited: bool
    made_at: datetime


class Assignment(Answer):
    stage: str
    person: str
    by: str
    made_at: datetime


class Reference(Answer):
    """`problem`: why it may not be used today; `pictures`: how many assets came of it."""

    id: UUID
    brand: str
    character: str | None
    key: str
    sha256: str
    role: str
    licence: str
    licence_holder: str | None
    licence_until: date | None
    state: str
    problem: str | None
    ends_soon: bool
    pictures: int


class FoundReference(Reference):
    """`likeness` to what was asked for; of words it is low also where it is the best."""

    likeness: float


class Character(Answer):
    """`references`: how many of each role may be used today, `unusable`: how many may not; `pictures`: its assets by review state."""

    id: UUID
    brand: str
    name: str
    description: str
    palette: list[Any]
    rules: list[Any]
    references: dict[str, int]
    unusable: int
    pictures: dict[str, int]


class Similar(Answer):
    """An asset, and how like its newest picture is: 1 for the same."""

    asset_id: UUID
    brand: str
    campaign: str
    shot: str
    variant: int
    review: str
    availability: str
    sha256: str | None
    likeness: float


class Cell(Answer):
    """A picture of a sheet; `asset` is where its lineage is."""

    section: str
    label: str
    prompt: str
    asset: UUID | None
    version: int | None
    sha256: str | None
    tries: int
    review: str | None
    failed: list[str]
    on_model: bool
    likeness: float | None


class Sheet(Answer):
    """`consistency`: the mean likeness of all pairs of cells; `files`: the kinds that there are, with their addresses."""

    brand: str
    character: str
    consistency: float | None
    palette: list[str]
    cells: list[Cell]
    files: dict[str, str]


class Run(Answer):
    """What was asked for, and how far it is: `done` of `total` pictures. report: what came of a campaign's run; made_pictures, gpu_s:
    what it used."""

    id: UUID
    kind: str
    brand: str
    state: str
    phase: str
    done: int
    total: int
    pictures: int
    requested_by: str
    reason: str
    trigger: str
    problem: str | None
    campaign_id: UUID | None
    made_at: datetime
    finished_at: datetime | None
    made_pictures: int = 0
    gpu_s: float = 0.0
    sheet: Sheet | None = None
    report: dict[str, Any] | None = None

    @property
    def is_over(self) -> bool:
        return self.finished_at is not None

    @property
    def succeeded(self) -> bool:
        return self.state == "succeeded"


class Schedule(Answer):
    """`when`: its rhythm in words; `used_pictures`, `used_gpu_s`: of its budget's period that is now, or in all."""

    id: UUID
    name: str
    brand: str
    when: str
    time_zone: str
    next_at: datetime | None
    is_paused: bool
    has_ended: bool
    budget: str | None
    used_pictures: int
    used_gpu_s: float
    requested_by: str
    reason: str
    brief: str


class Day(Answer):
    """Of a schedule: the runs that were, and the times that are to come."""

    day: date
    runs: list[Run]
    to_come: list[datetime]


class Event(Answer):
    """One change of a run; `id` is what following goes on from."""

    id: str
    name: str
    run: Run


class Change(Answer):
    name: str
    before: Any
    after: Any


class RetakePlan(Answer):
    """What making a picture anew would change: retake `number` of at most `most`."""

    number: int
    most: int
    changes: list[Change]
    settings: dict[str, Any]
    comments: list[UUID]


class Told(BaseModel):
    """A part of a lineage, with all that the server says of it as attributes."""

    model_config = ConfigDict(frozen=True, extra="allow")


class UsedReference(Told):
    """A reference as it was used, and its state now."""

    id: str
    key: str
    sha256: str
    licence: Any
    weight: float
    state: str


class UsedModel(Told):
    role: str
    name: str
    sha256: str


class Lineage(Told):
    """Where one version came from. `settings`, `run` and `code` are as they were recorded."""

    number: int
    sha256: str
    settings: dict[str, Any]
    run: dict[str, Any]
    code: dict[str, Any]
    references: list[UsedReference]
    models: list[UsedModel]
    checks: list[Any]
    decisions: list[Any]
    deliveries: list[Any]


class LineageTree(Told):
    """An asset's versions, the current one first."""

    asset_id: UUID
    brand: str
    campaign: str
    shot: str
    review: str
    availability: str
    versions: list[Lineage]
