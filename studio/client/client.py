"""The client: a method a question or an order, each a thin line over `/v1`."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict, TypeVar, Unpack
from uuid import UUID

from studio.client import routes
from studio.client.briefs import brief_text
from studio.client.following import follow
from studio.client.models import (
    Answer,
    Asset,
    Assignment,
    Campaign,
    Character,
    Comment,
    Day,
    Event,
    FoundReference,
    LineageTree,
    Me,
    Reference,
    RetakePlan,
    Run,
    Schedule,
    Similar,
)
from studio.client.routes import Route
from studio.client.sending import Patience, Sender

Item = TypeVar("Item")
PAGE = 100


class SheetWishes(TypedDict, total=False):
    """What a character sheet may be asked for with; docs/sheets.md says what each means."""

    views: Sequence[str]
    expressions: Sequence[str]
    poses: Sequence[str]
    outfits: Sequence[str]
    style: str
    pose: str
    expression: str
    subject: str
    background: str
    format: str
    scale: float
    steps: int
    identity_min: float
    attempts: int
    seed: int
    stages: Sequence[str]


class _Schedules(Answer):
    schedules: list[Schedule]


class _Calendar(Answer):
    days: list[Day]


class _Assets(Answer):
    assets: list[Asset]
    next_after: str | None


class _Campaigns(Answer):
    campaigns: list[Campaign]
    next_after: str | None


class _References(Answer):
    references: list[Reference]
    next_after: str | None


class _Characters(Answer):
    characters: list[Character]
    next_after: str | None


class _Found(Answer):
    found: list[FoundReference]


class _Runs(Answer):
    runs: list[Run]
    next_after: str | None


class _Similar(Answer):
    similar: list[Similar]


class _Comments(Answer):
    comments: list[Comment]


class _Assignments(Answer):
    assignments: list[Assignment]


class _Places(Answer):
    places: list[str]


class Client:
    """Onmodel's API with one key. Safe to use in several threads; use it with `with`, or close it.

    timeout_s: how long an answer may take. Every method raises what `studio.client.errors` draws. Whatever makes something is
    sent with an Idempotency-Key of its own, the same in each of its tries; give `idempotency_key` to make it once however often
    the program itself is run.
    """

    def __init__(self, address: str, key: str, *, timeout_s: float = 60.0, patience: Patience | None = None) -> None:
        self._sender = Sender(address, key, timeout_s, patience or Patience())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self._sender.address!r})"  # never the key

    def close(self) -> None:
        self._sender.close()

    def me(self) -> Me:
        """Whose the key is, and what it may."""
        return self._sender.read(routes.ME, Me)

    # ------------------------------------------------------------------------ assets

    def assets(
        self, *, brand: str | None = None, campaign: str | None = None, character: str | None = None, review: str | None = None,
        availability: str | None = None, stage: str | None = None, person: str | None = None, check: str | None = None,
        outcome: str | None = None, since: datetime | None = None, until: datetime | None = None, text: str | None = None,
    ) -> Iterator[Asset]:  # fmt: skip
        """All assets that pass the filters, the newest first. person: who is asked to decide, `me` for the key."""
        query = {
            "brand": brand, "campaign": campaign, "character": character, "review": review, "availability": availability,
            "stage": stage, "person": person, "check": check, "outcome": outcome, "text": text,
            "since": since and since.isoformat(), "until": until and until.isoformat(),
        }  # fmt: skip
        return self._all(routes.ASSETS, _Assets, lambda page: page.assets, query)

    def asset(self, asset_id: UUID) -> Asset:
        return self._sender.read(routes.ASSET, Asset, asset_id=asset_id)

    def lineage(self, asset_id: UUID) -> LineageTree:
        """Where every version came from and went."""
        return self._sender.read(routes.LINEAGE, LineageTree, asset_id=asset_id)

    def similar(
        self, *, asset: UUID | None = None, reference: UUID | None = None, brand: str | None = None,
        review: str | None = None, availability: str | None = None, limit: int = 20,
    ) -> list[Similar]:  # fmt: skip
        """Assets whose newest picture is like that of an asset, or like a reference, the nearest first."""
        if (asset is None) == (reference is None):
            raise TypeError("give an asset or a reference")
        query = {"brand": brand, "review": review, "availability": availability, "limit": limit}
        if asset is not None:
            return self._sender.read(routes.SIMILAR_TO_ASSET, _Similar, query=query, asset_id=asset).similar
        return self._sender.read(routes.SIMILAR_TO_REFERENCE, _Similar, query=query, reference_id=reference).similar

    def picture(self, asset_id: UUID, sha256: str) -> bytes:
        """PNG of a version's picture, as it was made."""
        return self._sender.send(routes.PICTURE, asset_id=asset_id, sha256=sha256).content

    def thumbnail(self, asset_id: UUID, sha256: str) -> bytes:
        """WebP of it, 320 px at its longer side."""
        return self._sender.send(routes.THUMBNAIL, asset_id=asset_id, sha256=sha256).content

    # ------------------------------------------------------------------------ review

    def comments(self, asset_id: UUID) -> list[Comment]:
        """What was said of all versions, the oldest first."""
        return self._sender.read(routes.COMMENTS, _Comments, asset_id=asset_id).comments

    def comment(
        self, asset_id: UUID, version_id: UUID, text: str, *, region: Mapping[str, Any] | None = None, reply_to: UUID | None = None,
        comment_id: UUID | None = None,
    ) -> Comment:  # fmt: skip
        """Say something of a version, or of a place in it; under the same `comment_id` once."""
        body = {"id": str(comment_id or uuid.uuid4()), "version_id": str(version_id), "text": text, "region": region and dict(region),
                "reply_to": reply_to and str(reply_to)}  # fmt: skip
        return self._sender.read(routes.SAY, Comment, body=body, asset_id=asset_id)

    def assignments(self, asset_id: UUID) -> list[Assignment]:
        """Who is asked to decide."""
        return self._sender.read(routes.ASSIGNMENTS, _Assignments, asset_id=asset_id).assignments

    def assign(
        self, asset_id: UUID, stage: str, person: str, *, idempotency_key: str | None = None
    ) -> list[Assignment]:
        """Ask somebody to decide at a stage."""
        body = {"stage": stage, "person": person}
        told = self._sender.read(routes.ASSIGN, _Assignments, key=idempotency_key, body=body, asset_id=asset_id)
        return told.assignments

    def unassign(self, asset_id: UUID, stage: str, person: str) -> list[Assignment]:
        """Ask them no more."""
        query = {"stage": stage, "person": person}
        return self._sender.read(routes.UNASSIGN, _Assignments, query=query, asset_id=asset_id).assignments

    def retake_plan(self, asset_id: UUID) -> RetakePlan:
        """What making the picture anew would change; nothing is made."""
        return self._sender.read(routes.RETAKE_PLAN, RetakePlan, asset_id=asset_id)

    def retake(
        self, asset: Asset, *, wishes: Mapping[str, Any] | None = None, idempotency_key: str | None = None
    ) -> Asset:
        """Have it made anew, as it was seen: without wishes what was said of it says what changes. Stale; Conflict."""
        body = {"sha256": asset.current.sha256 if asset.current else "", "wishes": wishes and dict(wishes)}
        return self._changed(routes.RETAKE, asset, body, idempotency_key)

    def places(self) -> list[str]:
        """Where approved assets may be delivered to."""
        return self._sender.read(routes.PLACES, _Places).places

    def release(self, asset: Asset, place: str, *, idempotency_key: str | None = None) -> Asset:
        """Deliver an approved asset. Stale; Conflict where it is not approved."""
        return self._changed(routes.RELEASE, asset, {"place": place}, idempotency_key)

    # ------------------------------------------------------------------------ libraries

    def characters(self, *, brand: str | None = None) -> Iterator[Character]:
        """All characters, by brand and name."""
        return self._all(routes.CHARACTERS, _Characters, lambda page: page.characters, {"brand": brand})

    def find_references(
        self, *, text: str | None = None, picture: bytes | None = None, brand: str | None = None, character: str | None = None,
        usable: bool = True, limit: int = 20,
    ) -> list[FoundReference]:  # fmt: skip
        """References that show what words say, or that look like a picture of at most 1 MB, the nearest first. usable: only those
        that may be used today. Refused for what is no picture."""
        query = {"brand": brand, "character": character, "usable": usable, "limit": limit}
        if (text is None) == (picture is None):
            raise TypeError("give a text or a picture")
        if picture is not None:
            return self._sender.read(
                routes.REFERENCES_BY_PICTURE, _Found, query=query, files={"picture": picture}
            ).found
        return self._sender.read(routes.REFERENCES_BY_WORDS, _Found, query={**query, "text": text}).found

    def references(
        self, *, brand: str | None = None, character: str | None = None, state: str | None = None, ending: bool = False
    ) -> Iterator[Reference]:
        """All references, by key. ending: only those whose licence is over within 14 days, or is."""
        query = {"brand": brand, "character": character, "state": state, "ending": ending or None}
        return self._all(routes.REFERENCES, _References, lambda page: page.references, query)

    def reference_picture(self, reference_id: UUID) -> bytes:
        """A reference's own bytes."""
        return self._sender.send(routes.REFERENCE_PICTURE, reference_id=reference_id).content

    def reference_thumbnail(self, reference_id: UUID) -> bytes:
        """WebP of it, 320 px at its longer side."""
        return self._sender.send(routes.REFERENCE_THUMBNAIL, reference_id=reference_id).content

    # ------------------------------------------------------------------------ campaigns, sheets and runs

    def campaigns(self, *, brand: str | None = None) -> Iterator[Campaign]:
        """All campaigns, the newest first."""
        return self._all(routes.CAMPAIGNS, _Campaigns, lambda page: page.campaigns, {"brand": brand})

    def start_campaign(
        self, brief: str | Path | Mapping[str, Any], *, reason: str = "", idempotency_key: str | None = None
    ) -> Run:
        """Have a brief's pictures made: its YAML, a file of it, or the same as a mapping. Refused; QuotaSpent."""
        body = {"brief": brief_text(brief), "reason": reason}
        return self._sender.read(routes.START_CAMPAIGN, Run, key=idempotency_key, body=body)

    def schedules(self) -> list[Schedule]:
        """What runs by the calendar, by brand and name."""
        return self._sender.read(routes.SCHEDULES, _Schedules).schedules

    def schedule_campaign(
        self, brief: str | Path | Mapping[str, Any], *, reason: str = "", idempotency_key: str | None = None
    ) -> Schedule:
        """Have a brief run by itself when its `schedule` says so, in the place of the one that has its name. Refused."""
        body = {"brief": brief_text(brief), "reason": reason}
        return self._sender.read(routes.SCHEDULE, Schedule, key=idempotency_key, body=body)

    def calendar(self, schedule_id: UUID, month: str) -> list[Day]:
        """A month, such as `2026-12`, of a schedule in its time zone: what ran or was skipped, and what is to come."""
        return self._sender.read(routes.CALENDAR, _Calendar, query={"month": month}, schedule_id=schedule_id).days

    def pause(self, schedule_id: UUID) -> Schedule:
        """Let it run no more until it is resumed; what runs goes on."""
        return self._sender.read(routes.PAUSE, Schedule, schedule_id=schedule_id)

    def resume(self, schedule_id: UUID) -> Schedule:
        """Let it run again from now on."""
        return self._sender.read(routes.RESUME, Schedule, schedule_id=schedule_id)

    def end_schedule(self, schedule_id: UUID) -> Schedule:
        """Let it run never again; what it made stays."""
        return self._sender.read(routes.END_SCHEDULE, Schedule, schedule_id=schedule_id)

    def make_sheet(
        self, brand: str, character: str, *, reason: str = "", idempotency_key: str | None = None,
        **wishes: Unpack[SheetWishes],
    ) -> Run:  # fmt: skip
        """Have a model sheet of a character made. NotFound; Refused; QuotaSpent."""
        body = {"brand": brand, "character": character, "reason": reason, **wishes}
        return self._sender.read(routes.MAKE_SHEET, Run, key=idempotency_key, body=body)

    def sheet(self, run_id: UUID, kind: str = "png") -> bytes:
        """A sheet's file: png, pdf or json. NotFound until its run has succeeded."""
        return self._sender.send(routes.SHEET_FILE, run_id=run_id, kind=kind).content

    def runs(self) -> Iterator[Run]:
        """What was asked for, the newest first."""
        return self._all(routes.RUNS, _Runs, lambda page: page.runs, {})

    def run(self, run_id: UUID) -> Run:
        return self._sender.read(routes.RUN, Run, run_id=run_id)

    def cancel(self, run_id: UUID) -> Run:
        """End a run: what is not made yet is not made. Conflict where it is over."""
        return self._sender.read(routes.CANCEL, Run, run_id=run_id)

    def follow(self, run_id: UUID, *, timeout_s: float | None = None) -> Iterator[Event]:
        """Each change of a run as it comes, until its end; a connection that breaks is made again. WaitedTooLong."""
        return follow(self._sender, run_id, timeout_s)

    def wait(self, run: Run | UUID, *, timeout_s: float | None = None) -> Run:
        """The run when it is over, whatever came of it: `succeeded` and `problem` say that. WaitedTooLong."""
        *_, last = self.follow(run.id if isinstance(run, Run) else run, timeout_s=timeout_s)
        return last.run

    # ------------------------------------------------------------------------

    def _changed(self, route: Route, asset: Asset, body: Mapping[str, Any], key: str | None) -> Asset:
        seen = {"If-Match": f'"{asset.row_version}"'}
        return self._sender.read(route, Asset, key=key, body=body, headers=seen, asset_id=asset.id)

    def _all(
        self, route: Route, kind: type[Any], items: Callable[[Any], list[Item]], query: Mapping[str, Any]
    ) -> Iterator[Item]:
        after: str | None = None
        while True:
            page = self._sender.read(route, kind, query={**query, "after": after, "limit": PAGE})
            yield from items(page)
            after = page.next_after
            if after is None:
                return
