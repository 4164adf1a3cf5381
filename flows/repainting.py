"""Repainting the places that reviewers marked in a picture: a mask of their boxes and drawings, and the recipe that starts
from the picture as it is. Loads no engine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, ImageDraw
from pydantic import Field, field_validator

from asset_store.errors import RemarkRefused, RetakeRefused
from asset_store.pictures import to_png
from asset_store.reviewing.comments import Remark, checked_region
from asset_store.reviewing.decide import GUEST
from asset_store.tables import AssetVersion
from flows.brief_fields import Number, Part
from ipadapter_engine.families import families

STRENGTH = 0.75  # how far a marked place may leave the picture, unless said
MOST_PLACES = 50
AREAS = ("box", "path")  # a pin says where to look, and not how much of it
PEN = 0.05  # the width of a drawing's line, in shares of the shorter side
LEAST = 0.1  # of a place's sides, in the same: less is lost in the latents
WHOLE = "Draw a smaller box, or have the whole picture made anew."


class Repaint(Part):
    """Only these places are made anew, and the rest stays. `places`: boxes and drawings as comments have them; `strength`: how
    far they may leave the picture that is there, up to 1."""

    places: list[dict[str, Any]] = Field(min_length=1, max_length=MOST_PLACES)
    strength: Number = Field(STRENGTH, gt=0, le=1)

    @field_validator("places")
    @classmethod
    def _areas(cls, places: list[dict[str, Any]]) -> list[dict[str, Any]]:
        try:
            checked = [checked_region(place) for place in places]
        except RemarkRefused as error:
            raise ValueError(f"{error.message}: {error.next_step}") from None
        if any(place is None or place["kind"] not in AREAS for place in checked):
            raise ValueError("a pin is no area: give boxes or paths")
        return [place for place in checked if place is not None]


@dataclass(frozen=True)
class Repainted:
    """What a recipe says of it, and the mask as PNG."""

    source: dict[str, Any]
    mask: bytes = field(repr=False)


def can_repaint(recipe: Mapping[str, Any]) -> bool:
    """Whether the family that made a picture can start from it; those that read references themselves cannot."""
    return recipe["family"] in families()


def is_all(places: Sequence[Mapping[str, Any]], width_px: int, height_px: int) -> bool:
    """Whether nothing would stay."""
    return _all_white(_drawn(places, width_px, height_px))


def marked(remarks: Iterable[Remark], version: AssetVersion) -> Repaint | None:
    """The places that reviewers, not guests, marked in this version; None where there are none."""
    regions = [
        dict(r.region) for r in remarks if r.version_id == version.id and r.region and not r.by.startswith(GUEST)
    ]
    places = [region for region in regions if region["kind"] in AREAS][:MOST_PLACES]
    return Repaint(places=places) if places else None


def repainted(version: AssetVersion, recipe: Mapping[str, Any], wished: Repaint) -> Repainted:
    """The version's own picture as the source, and the mask that it is repainted within. RetakeRefused."""
    if not can_repaint(recipe):
        raise RetakeRefused(
            f"a picture of the family {recipe['family']} cannot be repainted in places",
            "Have the whole picture made anew.",
        )
    drawn = _drawn(wished.places, recipe["width_px"], recipe["height_px"])
    if _all_white(drawn):
        raise RetakeRefused("the marked places are the whole picture", WHOLE)
    mask = to_png(drawn)
    count = len(wished.places)
    source = {
        "picture": f"version {version.number}",
        "sha256": version.sha256,
        "strength": wished.strength,
        "mask": "a marked place" if count == 1 else f"{count} marked places",
        "mask_sha256": hashlib.sha256(mask).hexdigest(),
        "version": version.number,
    }
    return Repainted(source, mask)


def unpainted(recipe: dict[str, Any], first: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe for a whole picture: with the source that the brief named, which stands in the first version's recipe."""
    if "version" not in recipe.get("source", {}):
        return recipe
    whole = {name: said for name, said in recipe.items() if name != "source"} | {"recipe": first["recipe"]}
    return whole | ({"source": first["source"]} if "source" in first else {})


def mask_of_places(places: Sequence[Mapping[str, Any]], width_px: int, height_px: int) -> bytes:
    """A PNG that is white where the picture is repainted: boxes, and drawings with what they go around."""
    return to_png(_drawn(places, width_px, height_px))


def _all_white(mask: Image.Image) -> bool:
    return mask.getextrema() == (255, 255)


def _drawn(places: Sequence[Mapping[str, Any]], width_px: int, height_px: int) -> Image.Image:
    mask = Image.new("L", (width_px, height_px))
    draw, side = ImageDraw.Draw(mask), min(width_px, height_px)
    for place in places:
        if place["kind"] == "box":
            left, right = _grown(place["x"] * width_px, place["width"] * width_px, LEAST * side)
            top, bottom = _grown(place["y"] * height_px, place["height"] * height_px, LEAST * side)
            draw.rectangle((left, top, right - 1, bottom - 1), fill=255)
        else:
            points = [(x * width_px, y * height_px) for x, y in place["points"]]
            if len(points) > 2:
                draw.polygon(points, fill=255)
            draw.line(points, fill=255, width=max(1, round(PEN * side)), joint="curve")
            for x, y in (points[0], points[-1]):
                reach = LEAST * side / 2
                draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=255)
    return mask


def _grown(start: float, length: float, least: float) -> tuple[int, int]:
    """From the first to behind the last pixel of a side, widened about its middle where it is shorter than `least`."""
    more = max(0.0, least - length) / 2
    return round(start - more), max(round(start + length + more), round(start - more) + 1)
