"""Everything that starts work goes through here, whoever asks: terminal, API, page, schedule or agent. Loads no engine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from asset_store.errors import BriefInvalid, Problem
from asset_store.library.yaml_lines import dotted, read_yaml
from asset_store.repositories import libraries, runs
from asset_store.repositories.runs import Quota, Wanted
from asset_store.tables import Brand, Character, Run, RunKind
from flows import dispatch, variables
from flows.brief import Brief, parse_brief
from flows.brief_parts import places_of_character
from flows.settings import QuotaSettings
from flows.sheet_request import SheetRequest
from flows.wiring import Store

log = logging.getLogger("onmodel.starting")
DEPLOYMENTS = {RunKind.SHEET: dispatch.SHEET, RunKind.CAMPAIGN: dispatch.CAMPAIGN}
TERMINAL = "cli"
UNLIMITED = QuotaSettings(brand=None, asker=None)  # who sits at the terminal could change the settings as well


@dataclass(frozen=True, slots=True)
class BriefText:
    """A brief as it was written. folder: where it lies, for the pictures that it names by a path; None for one that came by itself."""

    text: str
    file: str = "brief.yaml"
    folder: str | None = None

    @classmethod
    def read(cls, path: Path) -> BriefText:
        """The brief in a file, parsed. BriefInvalid."""
        try:
            brief = cls(path.read_text(encoding="utf-8-sig"), str(path), str(path.resolve().parent))
        except (OSError, UnicodeDecodeError) as error:
            problem = Problem(str(path), 1, "", f"The file cannot be read: {error.__class__.__name__}.")
            raise BriefInvalid([problem]) from None
        _ = brief.parsed
        return brief

    @property
    def parsed(self) -> Brief:
        """Read once: a long one takes seconds, for which no transaction is open. BriefInvalid."""
        return _parsed(self.text, self.file)


@dataclass(frozen=True, slots=True)
class OfSchedule:
    """Which time of which schedule a run is of. waits: until those before it have ended."""

    schedule_id: UUID
    due_at: datetime
    waits: bool = False


def start_sheet(
    session: Session, request: SheetRequest, quota: QuotaSettings, *, by: str, trigger: str, sent: bool = False
) -> Run:
    """Write a character sheet down to be made; sent: the caller carries it itself. NotFound; QuotaSpent."""
    brand = libraries.get_brand(session, request.brand)
    libraries.get_character(session, brand, request.character)
    wanted = Wanted(
        RunKind.SHEET, brand, request.model_dump(mode="json"), len(request.cells), by, request.reason.strip(), trigger
    )
    return runs.begin(session, wanted, Quota(quota.brand, quota.asker), sent=sent)


def start_campaign(
    session: Session, brief: BriefText, quota: QuotaSettings, *, by: str, trigger: str, reason: str = "",
    of: OfSchedule | None = None, sent: bool = False,
) -> Run:  # fmt: skip
    """Write a campaign down to be made; sent: the caller carries it itself. BriefInvalid; NotFound; QuotaSpent."""
    request = request_of_campaign(brief, None if of is None else of.due_at)
    campaign = campaign_of(request, brief.parsed)
    brand = known(session, campaign, brief)
    wanted = Wanted(
        RunKind.CAMPAIGN, brand, request, campaign.pictures, by, reason.strip(), trigger, drawn=campaign.drawn,
        schedule_id=None if of is None else of.schedule_id, due_at=None if of is None else of.due_at,
        waits=of is not None and of.waits,
    )  # fmt: skip
    return runs.begin(session, wanted, Quota(quota.brand, quota.asker), sent=sent)


def known(session: Session, campaign: Brief, brief: BriefText) -> Brand:
    """The brand of a campaign, all of whose characters it has. NotFound; BriefInvalid, by line, for those of regions."""
    brand = libraries.get_brand(session, campaign.brand)
    for name in sorted({shot.character for shot in campaign.shots}):
        libraries.get_character(session, brand, name)
    there = session.scalars(select(Character.name).where(Character.brand_id == brand.id).order_by(Character.name)).all()
    if lacking := sorted(campaign.in_regions.difference(there)):
        raise BriefInvalid([p for name in lacking for p in _not_there(brief, name, there)])
    return brand


def _not_there(brief: BriefText, name: str, there: Sequence[str]) -> list[Problem]:
    """A problem for each place where a brief shows this character in a region."""
    document = read_yaml(brief.text, file=brief.file)
    places = places_of_character(document, name) or [("shots",)]  # it may be a variable's word
    told = f"There is no character {name!r}; there are: {', '.join(there)}."
    return [Problem(brief.file, document.line_of(place), dotted(place), told) for place in places]


def request_of_campaign(brief: BriefText, due_at: datetime | None = None) -> dict[str, Any]:
    """What a run keeps of what it is asked for; due_at: the time of the brief's schedule that it is of. BriefInvalid."""
    at = due_at or datetime.now(UTC)
    asked: dict[str, Any] = {"brief": brief.text, "file": brief.file, "folder": brief.folder, "at": at.isoformat()}
    if due_at is not None and brief.parsed.schedule is not None:
        asked["campaign"] = f"{brief.parsed.campaign}-{brief.parsed.schedule.name_of(at)}"
    return asked


def asked_of(request: dict[str, Any]) -> Brief:
    """The brief of a run as it was written."""
    return _parsed(request["brief"], request["file"])


@lru_cache(maxsize=8)
def _parsed(text: str, file: str) -> Brief:
    return parse_brief(text, file=file)


def campaign_of(request: dict[str, Any], asked: Brief) -> Brief:
    """The campaign that a run makes: its brief with all words filled in."""
    at = datetime.fromisoformat(request["at"])
    local = at if asked.schedule is None else at.astimezone(asked.schedule.zone)
    return variables.filled(asked, local, as_campaign=request.get("campaign"))


Send = Callable[[str, UUID, int], object]


def send(deployment: str, run_id: UUID, sent: int) -> object:
    """Start the flow of a run at Prefect's server; the same again starts it once."""
    return dispatch.start(deployment, {"run_id": str(run_id)}, idempotency_key=f"run/{run_id}/{sent}")


def start_one(store: Store, send: Send = send) -> bool:
    """Start a flow for one run that none carries; whether there was one. Where Prefect is away it is tried again later."""
    with store.database.transaction() as session:
        taken = runs.take(session)
        if taken is None:
            return False
        run, before = taken
        run_id, deployment, sent = run.id, DEPLOYMENTS[run.kind], run.sent
    try:
        send(deployment, run_id, sent)
    except Exception:  # what was not started is started later
        log.exception("run %s could not be started", run_id)
        with store.database.transaction() as session:
            runs.unsend(session, run_id, before)
        return False
    return True
