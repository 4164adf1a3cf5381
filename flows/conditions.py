"""What a shot is made with beside its prompt and its character's references: controls, a style, the character's own model."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from asset_store.errors import Ambiguous, NotFound, RightsRefused
from asset_store.library.models import ReferenceRole
from asset_store.pictures import open_picture, pixel_sha256, to_png
from asset_store.repositories import models
from asset_store.rights import licences
from asset_store.tables import Brand, Character, Library, Reference, ReferenceState, TrainedModel
from flows.brief import Making, NamedControl
from flows.brief_parts import NamedReference
from flows.configured import configured
from flows.loading import limits_of
from flows.recipe_keys import BY_MODEL, WITH_CONDITIONS, heard
from flows.recipes import BY_CONTROL, STYLE, models_of, reference_entry
from flows.wiring import Store
from ipadapter_engine.errors import RequestRefused

if TYPE_CHECKING:
    from ipadapter_engine.engines import PictureEngine


@dataclass(frozen=True)
class ControlPicture:
    """A control as the ControlNet gets it: PNG bytes, known by their sha256. `pixels`: the pixel hash of the picture
    that it was made from, by which a reference is known under any name and in any file."""

    data: bytes = field(repr=False)
    sha256: str
    pixels: str


@dataclass(frozen=True)
class Control:
    """What a shot names, as it was read. `source`: the reference whose picture it is, if it is one's."""

    named: NamedControl
    read: ControlPicture
    source: Reference | None

    @property
    def sha256(self) -> str:
        return self.read.sha256

    def as_recipe(self) -> dict[str, Any]:
        named = self.named
        return {"kind": named.kind, "sha256": self.sha256, "strength": named.strength, "window": list(named.window),
                "picture": named.picture, "extracted": named.extract}  # fmt: skip

    @property
    def told(self) -> str:
        how = "extracted from " if self.named.extract else ""
        return f"{self.named.kind}: {how}{self.named.picture}, strength {self.named.strength:g}"


@dataclass(frozen=True)
class Conditions:
    """All of one shot. `references`: entries of the recipe that no identity adapter hears."""

    controls: tuple[Control, ...] = ()
    model: TrainedModel | None = None
    references: tuple[dict[str, Any], ...] = ()

    def into(self, recipe: dict[str, Any], made: PictureEngine) -> dict[str, Any]:
        """The recipe with what is used here, and only that: an unused condition leaves the job's key as it was."""
        out = dict(recipe)
        if self.references:
            out["references"] = [*recipe["references"], *self.references]
            out["encoder"] = made.encoder.sha256 if heard(out) else None
        if self.controls:
            out["controls"] = [c.as_recipe() for c in self.controls]
        if (model := self.model) is not None:
            out["character_model"] = {"id": str(model.id), "name": model.name, "version": model.version,
                                      "sha256": model.sha256, "strength": 1.0}  # fmt: skip
        if self != Conditions():
            out["recipe"], out["models"] = WITH_CONDITIONS, [m.__dict__ for m in models_of(made, out)]
        return out

    def prompt(self, asked: str) -> str:
        """The shot's prompt as the character's own model knows it: `a mascot, waving` becomes `a sks mascot, waving`.

        The words that the model learnt stand for its subject where the prompt names it, else before the prompt.
        """
        if self.model is None:
            return asked
        phrase, subject = (str(self.model.settings.get(name, "")) for name in ("phrase", "subject"))
        if not phrase or phrase.lower() in asked.lower():
            return asked
        said, found = re.subn(rf"\b{re.escape(subject)}\b", lambda _: phrase, asked, count=1, flags=re.IGNORECASE)
        return said if subject and found else f"{phrase}, {asked}"

    @property
    def blobs(self) -> Mapping[str, bytes]:
        return {c.sha256: c.read.data for c in self.controls}

    def as_json(self) -> dict[str, Any]:
        model = self.model
        return {
            "controls": [c.told for c in self.controls],
            "character_model": None if model is None else f"version {model.version}, sha256 {model.sha256[:16]}…",
            "style_references": [r["key"] for r in self.references if r.get("adapter") == STYLE],
        }


# ---------------------------------------------------------------------------- references by their key


def find_named(session: Session, among: Select[Reference], key: str, *, removed: bool = True) -> Reference | None:
    """The reference called `key` among those of a question: the active one, else the newest that was withdrawn or, with
    `removed`, is no longer in its library. Ambiguous where two libraries have different pictures of that name."""
    newest = (Reference.made_at.desc(), Reference.id)
    rows = session.scalars(among.where(Reference.key == key).order_by(*newest)).all()
    active = [r for r in rows if r.state is ReferenceState.ACTIVE]
    if len({r.sha256 for r in active}) > 1:
        urls = select(Library.url).where(Library.id.in_([r.library_id for r in active])).order_by(Library.url)
        raise Ambiguous(
            "picture", key, [f"{key} of {url}" for url in session.scalars(urls)],
            "Rename one of them in its library and ingest that again.",
        )  # fmt: skip
    others = [r for r in rows if removed or r.state is ReferenceState.WITHDRAWN]
    return next(iter([*active, *others]), None)


def find_all_named(
    session: Session,
    among: Select[Reference],
    items: Sequence[str | NamedReference],
    on: date,
    *,
    called: str,
    next_step: str,
) -> list[tuple[Reference, NamedReference]]:
    """Each reference that a brief names, among those of a question, with what the brief says of it.

    called: what an error calls one. Raises NotFound with the next step, Ambiguous, and RightsRefused for that day.
    """
    pairs = []
    for entry in map(NamedReference.of, items):
        row = find_named(session, among, entry.file)
        if row is None:
            raise NotFound(f"{called} called", entry.file, next_step)
        pairs.append((row, entry))
    check_rights((row for row, _ in pairs), on)
    return pairs


def check_rights(rows: Iterable[Reference], on: date) -> None:
    """RightsRefused, naming each reference that may not be used on that day."""
    problems = [p for row in rows if (p := licences.problem_of(row, on)) is not None]
    if problems:
        raise RightsRefused(problems)


# ---------------------------------------------------------------------------- controls


@dataclass(frozen=True)
class ControlReader:
    """Reads the control pictures that a brief names: of the brand's libraries, else beside the brief.

    folder: where the brief lies; None where only its text is here.
    """

    store: Store
    made: PictureEngine
    brand: Brand
    today: date
    folder: Path | None

    def sources(self, session: Session, controls: Iterable[NamedControl]) -> dict[str, Reference | None]:
        """The library's reference of each picture that is named. Raises RequestRefused where the loaded base has no such
        control, Ambiguous and RightsRefused."""
        known = sorted(self.made.checkpoint.controls)
        asked = list(controls)
        for named in asked:
            if named.kind not in known:
                raise RequestRefused(
                    f"the loaded base has no {named.kind} control",
                    f"use one of: {', '.join(known)}"
                    if known
                    else "load a base with controlnet/ folders, or leave it out",
                )
        return self.named(session, (c.picture for c in asked))

    def named(self, session: Session, pictures: Iterable[str]) -> dict[str, Reference | None]:
        """The library's reference of each picture that is named, None where it lies beside the brief. Raises Ambiguous
        and RightsRefused."""
        among = select(Reference).join(Library).where(Library.brand_id == self.brand.id)
        asked = dict.fromkeys(pictures)
        found = {picture: find_named(session, among, picture, removed=self.folder is None) for picture in asked}
        check_rights((r for r in found.values() if r is not None), self.today)
        return found

    def read(
        self, controls: Iterable[NamedControl], sources: Mapping[str, Reference | None]
    ) -> dict[tuple[str, str], ControlPicture]:
        """Every picture that is named, by `key_of`, opened and extracted once; outside of any transaction.

        Raises NotFound, PictureRefused, or RequestRefused where the control cannot be extracted.
        """
        opened: dict[str, Image.Image] = {}
        out: dict[tuple[str, str], ControlPicture] = {}
        for named in controls:
            if named.picture not in opened:
                opened[named.picture] = self.opened(named.picture, sources[named.picture])
            if key_of(named) not in out:
                picture = opened[named.picture]
                drawn = self._extracted(named.kind, picture) if named.extract else picture.convert("RGB")
                data = to_png(drawn)
                out[key_of(named)] = ControlPicture(data, hashlib.sha256(data).hexdigest(), pixel_sha256(picture))
        return out

    def opened(self, picture: str, source: Reference | None) -> Image.Image:
        """A picture that is named, RGB: of the library where it is a reference's, else from beside the brief. Raises
        NotFound and PictureRefused."""
        if source is not None:
            data = self.store.blobs.get(source.sha256)
        elif self.folder is not None and (self.folder / picture).is_file():
            data = (self.folder / picture).read_bytes()
        else:
            beside = "or a path beside the brief" if self.folder else "as the brief's own folder is not known here"
            raise NotFound("picture", picture, f"Name a file of the library of {self.brand.name}, {beside}.")
        return open_picture(data, limits_of(self.store)).image

    def _extracted(self, kind: str, picture: Image.Image) -> Image.Image:
        from ipadapter_engine.controls import extract

        depth = configured(self.store.settings).engine.depth_model
        return extract(kind, picture.convert("RGB"), depth_model=depth).convert("RGB")


def key_of(named: NamedControl) -> tuple[str, str]:
    """What of a control decides its picture: strength and window do not."""
    return named.picture, named.kind if named.extract else ""


# ---------------------------------------------------------------------------- of a shot


@dataclass(frozen=True)
class ConditionFinder:
    """Finds the conditions of a brief's shots, with the control pictures that were read before."""

    session: Session
    made: PictureEngine
    brand: Brand
    today: date
    sources: Mapping[str, Reference | None]
    pictures: Mapping[tuple[str, str], ControlPicture]

    def of(self, character: Character, making: Making) -> Conditions:
        """Raises NotFound, RightsRefused, or RequestRefused where the loaded base cannot."""
        entries: list[dict[str, Any]] = []
        model = self._model(character, making.character_model)
        if model is not None:
            entries += [reference_entry(r, 0.0, part=BY_MODEL) for r in models.references_of(self.session, model)]
        controls = tuple(self._control(c) for c in making.controls or ())
        sources = {c.source.id: c.source for c in controls if c.source is not None}
        entries += [reference_entry(r, 0.0, part=BY_CONTROL) for r in sources.values()]
        silent = making.style is not None and making.style.scale == 0
        style = () if silent else making.style_references or ()
        entries += [reference_entry(r, e.weight, adapter=STYLE, tiled=e.tiled) for r, e in self._style(style)]
        return Conditions(controls, model, tuple(entries))

    def _model(self, character: Character, wanted: str | int | None) -> TrainedModel | None:
        if wanted in (None, "none"):
            return None
        version = wanted if isinstance(wanted, int) else None
        model = models.get_character_model(self.session, character, version, self.today)
        base = getattr(self.made.checkpoint, "base_model", None)
        if base is None or model.base_sha256 != base.sha256:
            raise RequestRefused(
                f"version {model.version} of {character.name}'s model was trained on {model.base_name}, another base",
                f"load that base, or train {character.name} on this one: onmodel train character {character.name}",
            )
        return model

    def _control(self, named: NamedControl) -> Control:
        picture = self.pictures[key_of(named)]
        return Control(named, picture, self.descended(picture.pixels, self.sources[named.picture]))

    def descended(self, pixels: str, named: Reference | None) -> Reference | None:
        """The reference that a picture of these pixels is, under whatever name: `named`, unless one that is the same
        picture was withdrawn. Raises RightsRefused."""
        same, source = self._same_picture(pixels), named
        if source is None or (same is not None and same.state is ReferenceState.WITHDRAWN):
            source = same
        if source is not None:
            check_rights([source], self.today)
        return source

    def _same_picture(self, pixels: str) -> Reference | None:
        """The reference with these very pixels, wherever it lies: a withdrawn one first, as rights are of the picture,
        then the brand's own, then the one that may be used longest."""
        order = (
            (Reference.state == ReferenceState.WITHDRAWN).desc(), (Library.brand_id == self.brand.id).desc(),
            Reference.licence_until.desc().nulls_first(), Reference.made_at.desc(), Reference.id,
        )  # fmt: skip
        known = select(Reference).join(Library).where(Reference.pixel_sha256 == pixels)
        return self.session.scalars(known.where(Reference.state != ReferenceState.REMOVED).order_by(*order)).first()

    def _style(self, named: Sequence[str | NamedReference]) -> list[tuple[Reference, NamedReference]]:
        if named and STYLE not in self.made.checkpoint.adapters:
            raise RequestRefused(
                "no style adapter is loaded", "load a base that ships one, or leave style_references out"
            )
        of_brand = select(Reference).join(Library).where(Library.brand_id == self.brand.id)
        return find_all_named(
            self.session, of_brand.where(Reference.role == ReferenceRole.STYLE), named, self.today,
            called="style reference", next_step="Name a file whose role in library.yaml is style.",
        )  # fmt: skip


def pixels_of(data: bytes) -> np.ndarray:
    """A stored control picture as uint8 (h, w, 3)."""
    return np.asarray(open_picture(data).image.convert("RGB"))


def reference_ids(recipe: dict[str, Any]) -> list[uuid.UUID]:
    """All references that the picture of a recipe descends from, each once, in their order."""
    return list(dict.fromkeys(uuid.UUID(r["id"]) for r in recipe["references"]))
