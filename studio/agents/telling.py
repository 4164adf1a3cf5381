"""What tools answer: what an agent needs of the API's answers, small enough for a model's context, and pictures as pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from datetime import date
from typing import Any, Self
from uuid import UUID

from mcp.types import CallToolResult, ContentBlock, ImageContent, TextContent
from PIL import Image
from pydantic import BaseModel, Field

from studio.client import Asset, Character, FoundReference, Lineage, Run, Sheet

LARGE_PX = 1024  # the longer side of a picture that is looked at closely
WEBP = "image/webp"


class Told(BaseModel):
    pass


class Caller(Told):
    """actions: what the key may, by brand; "*" is what belongs to no brand."""

    actor: str
    actions: dict[str, list[str]]


class Characters(Told):
    characters: list[Character]
    more: bool = Field(description="there are others: ask for one brand, or for more")


class Reference(Told):
    """problem: why it may not be used today."""

    id: UUID
    brand: str
    character: str | None
    key: str
    role: str
    licence: str
    licence_until: date | None
    problem: str | None
    likeness: float

    @classmethod
    def of(cls, found: FoundReference) -> Self:
        return cls.model_validate(found.model_dump(include=set(cls.model_fields)))


class References(Told):
    found: list[Reference]


class RunTold(Told):
    """A run: `done` of `total` pictures are made. problem: what went wrong, or which cells stayed off model."""

    id: UUID
    kind: str
    brand: str
    state: str
    phase: str
    done: int
    total: int
    reason: str
    requested_by: str
    problem: str | None
    is_over: bool
    campaign_id: UUID | None

    @classmethod
    def of(cls, run: Run) -> Self:
        return cls.model_validate({**run.model_dump(include=set(cls.model_fields)), "is_over": run.is_over})


class Runs(Told):
    runs: list[RunTold]


class AssetTold(Told):
    """doubts: its checks that did not pass, with what they found; waits_at: the stages that lack an approval."""

    id: UUID
    brand: str
    campaign: str
    character: str
    shot: str
    variant: int
    review: str
    availability: str
    waits_at: list[str]
    version: int | None
    version_id: UUID | None
    doubts: list[str]

    @classmethod
    def of(cls, asset: Asset) -> Self:
        now = asset.current
        doubts = [f"{c.name} {c.outcome}: {c.message}" for c in now.checks if c.outcome != "pass"] if now else []
        known = asset.model_dump(include=set(cls.model_fields))
        version = {"version": now and now.number, "version_id": now and now.id}
        return cls.model_validate({**known, **version, "doubts": doubts})


class CellTold(Told):
    section: str
    label: str
    asset: UUID | None
    tries: int
    on_model: bool
    failed: list[str]


class SheetTold(Told):
    """consistency: the mean likeness of all pairs of cells."""

    brand: str
    character: str
    consistency: float | None
    cells: list[CellTold]

    @classmethod
    def of(cls, sheet: Sheet) -> Self:
        return cls.model_validate(sheet.model_dump(include=set(cls.model_fields)))


class Results(Told):
    """more: there are other assets behind those that are told."""

    run: RunTold | None
    sheet: SheetTold | None
    assets: list[AssetTold]
    more: bool


class Remark(Told):
    by: str
    version: int
    text: str


class AssetSeen(Told):
    asset: AssetTold
    comments: list[Remark]
    asked: list[str] = Field(description="who is asked to decide, at which stage")


class Asking(Told):
    """One asset that review was asked for: at which stage, or why not."""

    asset: UUID
    stage: str | None = None
    person: str | None = None
    problem: str | None = None


class Asked(Told):
    results: list[Asking]


class LineageTold(Told):
    """Where versions came from: references with their licences, models by sha256, settings, run, checks, decisions, deliveries."""

    asset_id: UUID
    brand: str
    campaign: str
    shot: str
    review: str
    availability: str
    versions: list[dict[str, Any]]


def lineage_version(version: Lineage) -> dict[str, Any]:
    """A version without what only machines compare."""
    told = version.model_dump(mode="json")
    for reference in told["references"]:
        reference.pop("embeddings", None)
    return told


def with_pictures(told: Told, pictures: Iterable[tuple[str, bytes, str]]) -> CallToolResult:
    """An answer with pictures behind it, each under the name that it has in the answer. pictures: (name, data, media type)."""
    content: list[ContentBlock] = [TextContent(type="text", text=told.model_dump_json())]
    for name, data, kind in pictures:
        content.append(TextContent(type="text", text=name))
        content.append(ImageContent(type="image", data=base64.b64encode(data).decode(), mime_type=kind))
    return CallToolResult(content=content, structured_content=told.model_dump(mode="json"))


def shrunk(png: bytes, longest_px: int = LARGE_PX) -> bytes:
    """WebP of a picture, so many pixels at its longer side at most."""
    with Image.open(io.BytesIO(png), formats=("PNG",)) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((longest_px, longest_px), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=85)
    return out.getvalue()
