"""What a character sheet is asked for with, and the brief that makes its cells. Loads no engine."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from asset_store.library.models import LineOfText, Slug
from asset_store.reviewing import policy
from flows.brief import Brief, Making, Shot, checked_stages
from flows.brief_fields import Number, Seed, Size, Whole

MOST_CELLS, MOST_ATTEMPTS = 60, 5
LONGEST_WORD = 80
SECTIONS = ("views", "expressions", "poses", "outfits")


def _said(value: str) -> str:
    value = " ".join(value.split())
    if not value or not value.isprintable() or any(c in value for c in ",;{}"):
        raise ValueError("write a few printable words without commas")
    return value


Word = Annotated[str, Field(min_length=1, max_length=LONGEST_WORD), AfterValidator(_said)]
Words = Annotated[tuple[Word, ...], Field(max_length=24)]


@dataclass(frozen=True, slots=True)
class SheetCell:
    """One picture of a sheet: the row that it stands in, what is written under it, and the shot that makes it."""

    section: str
    label: str
    shot: str
    prompt: str


class SheetRequest(BaseModel):
    """A model sheet of one character: its views, and in the first view its expressions, poses and outfits.

    pose, expression: of the cells that show something else.
    subject, background: the words that stand first and last in each prompt; who is shown comes from the references.
    attempts: how often a cell whose identity check fails is made, each time with another seed.
    identity_min: the likeness under which a cell is off model; the character's own threshold where it is left out.
    format: the size of a cell, such as 512x512; the family's own where it is left out.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False,
        json_schema_extra={"examples": [{"brand": "lumen", "character": "Pip", "views": ["front", "side", "back"], "expressions": ["sad", "surprised"]}]},
    )  # fmt: skip
    brand: Slug
    character: LineOfText
    views: Words = ("front", "three-quarter", "side", "back")
    expressions: Words = ()
    poses: Words = ()
    outfits: Words = ()
    style: Word | None = None
    pose: Word = "standing"
    expression: Word = "happy"
    subject: Word = "a mascot"
    background: Word = "in a studio"
    format: Size | None = None
    scale: Number | None = Field(None, ge=0, le=10)
    steps: Whole | None = Field(None, ge=1, le=200)
    identity_min: Number | None = Field(None, ge=-1, le=1)
    attempts: Whole = Field(3, ge=1, le=MOST_ATTEMPTS)
    seed: Seed = 0
    stages: Annotated[tuple[LineOfText, ...], AfterValidator(checked_stages)] = Field(
        ("brand",), min_length=1, max_length=10
    )
    reason: str = Field("", max_length=1000)

    @model_validator(mode="after")
    def _has_cells(self) -> SheetRequest:
        wanted = [getattr(self, section) for section in SECTIONS]
        if not 0 < sum(map(len, wanted)) <= MOST_CELLS:
            raise ValueError(f"a sheet has 1 to {MOST_CELLS} cells")
        if any(len(set(map(str.casefold, words))) < len(words) for words in wanted):
            raise ValueError("nothing stands twice in a row")
        return self

    @property
    def cells(self) -> tuple[SheetCell, ...]:
        return tuple(self._cells())

    def _cells(self) -> Iterator[SheetCell]:
        usual = {"poses": self.pose, "expressions": self.expression, "views": next(iter(self.views), "front")}
        for section in SECTIONS:
            for place, word in enumerate(getattr(self, section)):
                shot = f"{section}-{place + 1:02d}-{_slug(word)}".rstrip("-")
                yield SheetCell(section, word, shot, self._prompt({**usual, section: word}))

    def _prompt(self, told: dict[str, str]) -> str:
        view = told["views"] if "view" in told["views"].split() else f"{told['views']} view"
        style = () if self.style is None else (self.style if "style" in self.style.split() else f"{self.style} style",)
        outfit = (f"wearing {told['outfits']}",) if "outfits" in told else ()
        return ", ".join([self.subject, told["poses"], told["expressions"], view, *outfit, self.background, *style])

    def brief(self, run_id: uuid.UUID) -> Brief:
        """The campaign that makes the cells. Seeds are of what is shown: the same sheet again finds its pictures made."""
        shots = tuple(
            Shot(name=c.shot, character=self.character, prompt=c.prompt, seeds=(self._seed(c),)) for c in self.cells
        )
        defaults = Making(size=self.format, scale=self.scale, steps=self.steps, choose=2)
        checks = {} if self.identity_min is None else {"identity_min": self.identity_min}
        return Brief.model_validate(
            {
                "campaign": f"sheet-{_slug(self.character) or 'character'}-{run_id.hex[:12]}", "brand": self.brand,
                "stages": self.stages, "retakes": policy.MOST_RETAKES, "defaults": defaults, "seed": self.seed, "shots": shots,
                "checks": checks,
            }
        )  # fmt: skip

    def _seed(self, cell: SheetCell) -> int:
        named = f"sheet/{self.brand}/{self.character}/{cell.prompt}/{self.seed}"
        return int.from_bytes(hashlib.sha256(named.encode()).digest()[:4], "big")


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.casefold()).strip("-")[:40].strip("-")


def request_of(stored: dict[str, Any]) -> SheetRequest:
    """As a run keeps it."""
    return SheetRequest.model_validate(stored)
