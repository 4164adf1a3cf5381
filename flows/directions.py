"""What a shot says beyond its words and conditions: how adapters speak, what to lead away from, regions, a picture to start
from. Found in the libraries and beside the brief, and put into the recipe."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from sqlalchemy import select

from asset_store.pictures import open_picture, pixel_sha256, to_png
from asset_store.tables import Library, Reference
from flows.brief import Making
from flows.brief_parts import NamedLora, NamedReference, Region, Source, Style
from flows.conditions import ConditionFinder, ControlReader, find_all_named
from flows.recipe_keys import DIRECTED, heard
from flows.recipe_words import told_of_adapter, told_of_lora, told_of_region, told_of_source
from flows.recipes import BY_MASK, BY_SOURCE, STYLE, models_of, reference_entry
from ipadapter_engine.controls import check_shape
from ipadapter_engine.emphasis import factors
from ipadapter_engine.errors import RequestRefused
from ipadapter_engine.prompts import IDENTITY

if TYPE_CHECKING:
    from ipadapter_engine.engines import PictureEngine

WHITE = 128  # from this grey on a mask is white


@dataclass(frozen=True)
class ReadPicture:
    """A picture or mask that a brief names: PNG bytes, known by their sha256. `pixels`: the pixel hash of the picture as it
    was opened, by which a reference is known in any file. size: (height_px, width_px)."""

    data: bytes = field(repr=False)
    sha256: str
    pixels: str
    size: tuple[int, int]


@dataclass(frozen=True)
class ReadPictures:
    """All that a brief names: the library's reference of each name, and what was read, masks by themselves."""

    sources: Mapping[str, Reference | None] = field(default_factory=dict)
    pictures: Mapping[str, ReadPicture] = field(default_factory=dict)
    masks: Mapping[str, ReadPicture] = field(default_factory=dict)


def names_of(makings: Iterable[Making]) -> tuple[list[str], list[str]]:
    """The pictures to start from, then the masks, that shots name."""
    pictures: list[str] = []
    masks: list[str] = []
    for making in makings:
        if making.source is not None:
            pictures.append(making.source.picture)
            masks += [making.source.mask] if making.source.mask is not None else []
        masks += [region.mask for region in _regions(making) if region.mask is not None]
    return list(dict.fromkeys(pictures)), list(dict.fromkeys(masks))


def read_pictures(
    reader: ControlReader, makings: Sequence[Making], sources: Mapping[str, Reference | None]
) -> ReadPictures:
    """Every picture and mask that is named, opened once; outside of any transaction.

    Raises NotFound, PictureRefused, or RequestRefused for a mask that marks nothing.
    """
    pictures, masks = names_of(makings)
    return ReadPictures(
        sources,
        {name: _read(reader.opened(name, sources[name])) for name in pictures},
        {name: _read_mask(name, reader.opened(name, sources[name])) for name in masks},
    )


def _read(image: Image.Image) -> ReadPicture:
    return _as_png(image.convert("RGB"), pixel_sha256(image))


def _read_mask(name: str, image: Image.Image) -> ReadPicture:
    grey = image.convert("L")
    white = np.asarray(grey) >= WHITE
    if white.all() or not white.any():
        raise RequestRefused(
            f"the mask {name} is {'white' if white.all() else 'black'} all over",
            "paint white on black; what is transparent in a file counts as white",
        )
    return _as_png(grey, pixel_sha256(image))


def _as_png(image: Image.Image, pixels: str) -> ReadPicture:
    data = to_png(image)
    return ReadPicture(data, hashlib.sha256(data).hexdigest(), pixels, (image.height, image.width))


def mask_of(data: bytes) -> np.ndarray:
    """A stored mask as uint8 (h, w)."""
    return np.asarray(open_picture(data).image.convert("L"))


def box_mask(box: Sequence[float], width_px: int, height_px: int) -> np.ndarray:
    """uint8 (height_px, width_px), 255 inside the box, whose sides lie on whole pixels; at least one is inside."""
    mask = np.zeros((height_px, width_px), np.uint8)
    left, right = _side(box[0], box[2], width_px)
    top, bottom = _side(box[1], box[3], height_px)
    mask[top:bottom, left:right] = 255
    return mask


def _side(start: float, end: float, px: int) -> tuple[int, int]:
    first = min(round(start * px), px - 1)
    return first, max(round(end * px), first + 1)


# ---------------------------------------------------------------------------- of a shot


@dataclass(frozen=True)
class Direction:
    """All of one shot. adapters, source, regions: as they stand in the recipe; `read`: the pictures that it names."""

    adapters: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    guidance_window: tuple[float, float] | None = None
    source: dict[str, Any] | None = None
    regions: tuple[dict[str, Any], ...] = ()
    references: tuple[dict[str, Any], ...] = ()
    read: Mapping[str, ReadPicture] = field(default_factory=dict)
    loras: tuple[dict[str, Any], ...] = ()

    def into(self, recipe: dict[str, Any], made: PictureEngine) -> dict[str, Any]:
        """The recipe with what is used here, and only that: what is not used leaves the job's key as it was.

        Raises RequestRefused where the base has no such blocks, or a picture has another shape than the made one.
        """
        out = {**recipe, "references": [*recipe["references"], *self.references]}
        speak = {r.get("adapter", IDENTITY) for r in heard(out)}
        adapters = {name: said for name, said in self.adapters.items() if name in speak}
        said = {
            "adapters": adapters,
            "guidance_window": None if self.guidance_window is None else list(self.guidance_window),
            "source": self.source,
            "regions": list(self.regions),
            "loras": list(self.loras),
        }
        used = {name: value for name, value in said.items() if value}
        self._check_mask(made)
        if not used and not self.references and not any("tiled" in r for r in heard(out)):
            return recipe
        out |= used
        out["recipe"], out["encoder"] = DIRECTED, made.encoder.sha256 if heard(out) else None
        out["models"] = [m.__dict__ for m in models_of(made, out)]
        self._check(out, made)
        return out

    def _check_mask(self, made: PictureEngine) -> None:
        if getattr(made.checkpoint, "inpaints", False) and "mask_sha256" not in (self.source or {}):
            raise RequestRefused(
                "the loaded base paints within a mask and the shot has none",
                "give its source a mask, or load a text-to-image base",
            )

    def _check(self, recipe: dict[str, Any], made: PictureEngine) -> None:
        from ipadapter_engine.attention import cross_attention_layers  # it loads torch, as the engine did
        from ipadapter_engine.pipeline import Engine

        if not isinstance(made, Engine):
            said = [name for name in ("adapters", "guidance_window", "source", "regions", "loras") if name in recipe]
            told = ", ".join(said) or ("negative references" if self.references else "to see references in tiles")
            raise RequestRefused(
                f"{made.family.title} cannot be told {told}",
                "leave it out of the shot, or name an engine with an IP-Adapter",
            )
        paths = tuple(name.removesuffix(".processor") for name in cross_attention_layers(made.checkpoint.unet).values())
        told_guidance = made.checkpoint.guidance_dim is not None
        if (recipe["guidance"] <= 1 or told_guidance) and (
            self.guidance_window or any(r.get("negative") for r in heard(recipe))
        ):
            raise RequestRefused(
                "negative references and a guidance window need guidance, and this shot is made without",
                "give a guidance of more than 1 on a base that is guided by two passes, or leave them out",
            )
        for adapter in recipe.get("adapters", {}).values():
            factors(adapter.get("blocks"), paths, made.family.presets)
        for what, read in self.read.items():
            check_shape(what, read.size, recipe["width_px"], recipe["height_px"])

    @property
    def blobs(self) -> Mapping[str, bytes]:
        return {read.sha256: read.data for read in self.read.values()}

    def as_json(self) -> dict[str, Any]:
        return {
            "negative_references": [r["key"] for r in self.references if r.get("negative")],
            "adapters": [told_of_adapter(name, said) for name, said in self.adapters.items()],
            "guidance_window": None if self.guidance_window is None else list(self.guidance_window),
            "source": None if self.source is None else told_of_source(self.source),
            "regions": [told_of_region(region) for region in self.regions],
            "loras": [told_of_lora(lora) for lora in self.loras],
        }


@dataclass(frozen=True)
class DirectionFinder:
    """Finds the directions of a brief's shots, with the pictures that were read before."""

    finder: ConditionFinder
    read: ReadPictures

    def of(self, character: str, making: Making) -> Direction:
        """character: the shot's own. Raises NotFound, Ambiguous, RightsRefused."""
        adapters = {
            IDENTITY: _spoken(Style(blocks=making.blocks, scale_steps=making.scale_steps, combine=making.combine)),
            STYLE: _spoken(making.style or Style()),
        }
        window = making.guidance_window if making.guidance_window != (0.0, 1.0) else None
        loras = tuple(self._lora(named) for named in making.loras or ())
        out = Direction({name: said for name, said in adapters.items() if said}, window, loras=loras)
        out = self._with_source(out, making.source) if making.source is not None else out
        out = self._with_regions(out, character, _regions(making))
        negative = () if making.scale == 0 else making.negative_references or ()
        away = [
            reference_entry(row, entry.weight, negative=True, tiled=entry.tiled)
            for row, entry in self._negative(negative)
        ]
        return replace(out, references=(*out.references, *away))

    def _lora(self, named: NamedLora) -> dict[str, Any]:
        loaded = getattr(self.finder.made.checkpoint, "loras", {})
        if named.name not in loaded:
            there = f"set are {', '.join(sorted(loaded))}" if loaded else "none is set"
            raise RequestRefused(
                f"there is no LoRA {named.name!r}; {there}",
                f"set ONMODEL_ENGINE__LORAS__{named.name.upper()} to its file, or leave it out",
            )
        return {"name": named.name, "sha256": loaded[named.name].sha256, "strength": named.strength}

    def _with_source(self, out: Direction, named: Source) -> Direction:
        picture = self.read.pictures[named.picture]
        source = {"picture": named.picture, "sha256": picture.sha256, "strength": named.strength}
        read = {**out.read, f"the picture to start from, {named.picture},": picture}
        parts = self._descent(named.picture, picture, BY_SOURCE)
        if named.mask is not None:
            mask = self.read.masks[named.mask]
            source |= {"mask": named.mask, "mask_sha256": mask.sha256}
            read[f"the mask {named.mask}"] = mask
            parts += self._descent(named.mask, mask, BY_MASK)
        return replace(out, source=source, read=read, references=(*out.references, *parts))

    def _with_regions(self, out: Direction, character: str, regions: Sequence[Region]) -> Direction:
        read, parts, said = dict(out.read), list(out.references), []
        for region in regions:
            entry: dict[str, Any] = {"name": region.name, "character": region.character or character}
            if region.mask is not None:
                mask = self.read.masks[region.mask]
                entry |= {"mask": region.mask, "sha256": mask.sha256}
                read[f"the mask {region.mask}"] = mask
                parts += self._descent(region.mask, mask, BY_MASK)
            elif region.box is not None:
                entry["box"] = list(region.box)
            said.append(entry)
        distinct = {(part["id"], part["part"]): part for part in parts}
        return replace(out, regions=tuple(said), read=read, references=tuple(distinct.values()))

    def _descent(self, name: str, read: ReadPicture, part: str) -> list[dict[str, Any]]:
        """The entry of the reference that a picture or mask is, if it is one's."""
        row = self.finder.descended(read.pixels, self.read.sources[name])
        return [] if row is None else [reference_entry(row, 0.0, part=part)]

    def _negative(self, named: Sequence[str | NamedReference]) -> list[tuple[Reference, NamedReference]]:
        brand = self.finder.brand
        return find_all_named(
            self.finder.session, select(Reference).join(Library).where(Library.brand_id == brand.id), named,
            self.finder.today, called="negative reference",
            next_step=f"Name a file of a library of {brand.name}, or ingest again.",
        )  # fmt: skip


def _regions(making: Making) -> tuple[Region, ...]:
    """With text only no reference speaks, and so no region has a part in the picture."""
    return () if making.scale == 0 else making.regions or ()


def _spoken(said: Style) -> dict[str, Any]:
    """What is said of one adapter and changes something."""
    out: dict[str, Any] = {}
    if said.scale is not None and said.scale != 1:
        out["scale"] = said.scale
    if said.window is not None:
        out["window"] = list(said.window)
    if said.blocks is not None:
        out["blocks"] = said.blocks
    if said.scale_steps is not None and set(said.scale_steps) != {1.0}:
        out["scale_steps"] = list(said.scale_steps)
    if said.combine not in (None, "concat"):
        out["combine"] = said.combine
    return out
