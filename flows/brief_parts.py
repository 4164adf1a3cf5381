"""What a brief says beside words and numbers: references, where and when adapters speak, a picture to start from, regions."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from asset_store.library.keys import safe_key
from asset_store.library.models import LineOfText, RelativePath
from asset_store.library.yaml_lines import Location, YamlDocument
from flows.brief_fields import Number, Part, Window, check_window
from ipadapter_engine.emphasis import OTHERS, SDXL_PRESETS, Combine
from ipadapter_engine.prompts import NAMES

MOST_BLOCKS = 100
_BLOCK = re.compile(r"[a-z]+(_[a-z]+)*(\.[a-z0-9_]+)*")


def _setting_name(value: str) -> str:
    if not NAMES.fullmatch(value):
        raise ValueError(
            "write the name in lower-case letters, digits and single underscores, as the setting ends in it"
        )
    return value


class NamedReference(Part):
    """tiled: it is seen whole, in squares along its long side; otherwise an encoder sees the square in its middle."""

    file: str
    weight: Number = Field(1.0, ge=0, le=10)
    tiled: bool = Field(False, strict=True)

    @classmethod
    def of(cls, item: str | NamedReference) -> NamedReference:
        return cls(file=item) if isinstance(item, str) else item


class NamedLora(Part):
    """A LoRA that the settings name. strength: what it adds is multiplied by it."""

    name: Annotated[str, AfterValidator(_setting_name)]
    strength: Number = Field(1.0, gt=0, le=10)


References = Literal["choose"] | tuple[str | NamedReference, ...]


def _blocks(value: object) -> object:
    if isinstance(value, str):
        if value not in SDXL_PRESETS:
            raise ValueError(f"choose one of {', '.join(SDXL_PRESETS)}, or write factors by block")
        return value
    if not isinstance(value, Mapping) or not 1 <= len(value) <= MOST_BLOCKS:
        raise ValueError("write a preset such as style, or factors by block, such as {up_blocks.0: 1.0, others: 0.2}")
    for name, factor in value.items():
        if not (isinstance(name, str) and _BLOCK.fullmatch(name)):
            raise ValueError(
                f"{safe_key(str(name))!r} is no block; name one such as up_blocks.0.attentions.1, or {OTHERS}"
            )
        number = isinstance(factor, int | float) and not isinstance(factor, bool)
        if not (number and math.isfinite(factor) and abs(factor) <= 10):
            raise ValueError(f"the factor of {name} is no number from -10 to 10")
    return {name: float(factor) for name, factor in value.items()}


def _in_order(value: Window) -> Window:
    check_window(value)
    return value


def _region_name(value: str) -> str:
    if not NAMES.fullmatch(value):
        raise ValueError("name a region in lower-case letters, digits and single underscores, such as left")
    return value


def _box(value: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = value
    if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
        raise ValueError("a box is [x0, y0, x1, y1], left, top, right and bottom as shares of the picture from 0 to 1")
    return value


Blocks = Annotated[str | dict[str, float], BeforeValidator(_blocks)]
ScaleSteps = Annotated[tuple[Annotated[Number, Field(ge=0, le=10)], ...], Field(min_length=1, max_length=200)]
OrderedWindow = Annotated[Window, AfterValidator(_in_order)]
RegionName = Annotated[str, Field(max_length=63), AfterValidator(_region_name)]
Box = Annotated[tuple[Number, Number, Number, Number], AfterValidator(_box)]


class Style(Part):
    """How the style adapter speaks; the fields of a shot of the same names are the identity adapter's."""

    scale: Number | None = Field(None, ge=0, le=10)
    window: OrderedWindow | None = None
    blocks: Blocks | None = None
    scale_steps: ScaleSteps | None = None
    combine: Combine | None = None


class Source(Part):
    """The picture that a shot starts from; `mask` is white where it is repainted, and the rest of it stays."""

    picture: RelativePath
    strength: Number = Field(0.8, gt=0, le=1)
    mask: RelativePath | None = None


class Region(Part):
    """A part of the picture, white in `mask` or inside `box`, and who is shown in it."""

    name: RegionName
    mask: RelativePath | None = None
    box: Box | None = None
    character: LineOfText | None = None
    references: References | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Region:
        if (self.mask is None) == (self.box is None):
            raise ValueError("say where the region is, by a mask or by a box")
        if self.references == ():
            raise ValueError("name the region's references, or write 'choose'")
        return self


# ---------------------------------------------------------------------------- what spans several fields


def check_regions(document: YamlDocument) -> None:
    """Tell of regions with one name, and of a `region` that is none or has references of its own, by line."""
    data = document.data
    if not isinstance(data, dict):
        return
    defaults = data.get("defaults")
    usual = defaults if isinstance(defaults, dict) else {}
    shots = data.get("shots")
    makings: list[tuple[Location, Any]] = [
        (("shots", i), s) for i, s in enumerate(shots if isinstance(shots, list) else ())
    ]
    for place, making in [(("defaults",), usual), *makings]:
        _check_names(document, (*place, "regions"), making)
    for place, shot in makings:
        if not isinstance(shot, dict):
            continue
        there = {name: region for _, name, region in _regions(shot if shot.get("regions") is not None else usual)}
        own, at = shot.get("region"), (*place, "region")
        if own is None:
            own, at = usual.get("region"), ("defaults", "region")
            if not there and shot.get("regions") is not None:
                continue  # a shot that does without the regions of the defaults
        if not isinstance(own, str):
            continue
        if own not in there:
            known = f"there are: {', '.join(map(safe_key, there))}" if there else "there is none"
            document.add(at, f"There is no region {safe_key(own)!r}; {known}.")
        elif there[own].get("references") is not None or there[own].get("character") is not None:
            document.add(
                at,
                f"The shot's own references speak in region {safe_key(own)!r}: leave out the region's own character and "
                "references, or `region`.",
            )


def _check_names(document: YamlDocument, place: Location, making: Any) -> None:
    seen: dict[str, int] = {}
    for index, name, _ in _regions(making):
        at = (*place, index, "name")
        if name in seen:
            document.add(at, f"There is already a region {safe_key(name)!r}, in line {seen[name]}.")
        seen.setdefault(name, document.line_of(at))


def _regions(making: Any) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Place, name and fields of every region that is written as one."""
    regions = making.get("regions") if isinstance(making, dict) else None
    for index, region in enumerate(regions if isinstance(regions, list) else ()):
        if isinstance(region, dict) and isinstance(region.get("name"), str):
            yield index, region["name"], region


def places_of_character(document: YamlDocument, name: str) -> list[Location]:
    """Where a brief says that a region shows this character."""
    data = document.data if isinstance(document.data, dict) else {}
    shots = data.get("shots")
    makings: list[tuple[Location, Any]] = [(("defaults",), data.get("defaults"))]
    makings += [(("shots", i), shot) for i, shot in enumerate(shots if isinstance(shots, list) else ())]
    return [
        (*place, "regions", index, "character")
        for place, making in makings
        for index, _, region in _regions(making)
        if region.get("character") == name
    ]
