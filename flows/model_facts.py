"""What a model is: by what who adds it says, by the registry's sha256, by its own files, and by its name, in that order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.model_files import ModelRefused
from ipadapter_engine.manifests import KINDS, Manifest, StoredFile, is_sha256
from ipadapter_engine.registry import Found, KnownFile, Registry
from ipadapter_engine.weight_files import SUFFIXES, Told, shapes_of, told_by

_WIDTHS = {768: "sd15", 2048: "sdxl"}
_ENCODERS = {1280: "vit-h", 1664: "vit-bigg"}  # by the width of a hidden state


@dataclass(frozen=True)
class Said:
    """What who adds a model says of it; None where nothing is said."""

    kind: str | None = None
    variant: str | None = None
    base: str | None = None
    encoder: str | None = None
    licence: str | None = None
    sha256: str | None = None

    def holds_for(self, model: Manifest) -> bool:
        """Whether nothing is said that the model's manifest does not say already."""
        pairs = [(self.kind, model.kind), (self.variant, model.variant), (self.base, model.base),
                 (self.encoder, model.encoder), (self.licence, model.licence)]  # fmt: skip
        pinned = self.sha256 is None or (model.pinned and self.sha256 in {f.sha256 for f in model.files})
        return pinned and all(said is None or said == told for said, told in pairs)


NOTHING = Said()


@dataclass(frozen=True)
class Facts:
    """What is found out of a model's files. `notes`: sentences for who adds it."""

    kind: str
    variant: str
    base: str | None
    encoder: str | None
    licence: str | None
    pinned: bool
    notes: tuple[str, ...]


def facts_of(folder: Path, files: Sequence[StoredFile], said: Said, known: Registry, card_licence: str | None) -> Facts:
    """Open every file of weights as far as its header, and say what the model is.

    Raises ModelRefused or CheckpointRefused: damaged, a pickle that runs code, another sha256 than `said`, another kind.
    """
    weights = weights_among(files)
    pinned = _check_sha256(weights, said.sha256)
    own = _own(folder, files, weights)
    several = len(weights) > 1  # then one file's variant is not the model's, nor is every file of its kind
    found = [f for w in weights if (f := known.find(w.sha256, w.path.rsplit("/", 1)[-1])) is not None]
    found = [f for f in found if not several or f.file.kind == own.kind]
    sure = next((f.file for f in found if f.by == "sha256"), None)
    maybe = next((f.file for f in found if f.by == "name"), None)
    kind = said.kind or _of(sure, "kind") or own.kind or _of(maybe, "kind")
    if kind is None:
        raise ModelRefused(
            f"what {folder_name(files)} is cannot be told from its files", f"Say it with --kind {'|'.join(KINDS)}."
        )
    of = _of(sure, "kind") or own.kind
    if said.kind is not None and of is not None and of != said.kind:
        raise ModelRefused(f"{folder_name(files)} is of kind {of}, not {said.kind}", f"Leave --kind out, or say {of}.")
    one, guess = (None, None) if several else (sure, maybe)
    licence = said.licence or _of(sure, "licence") or card_licence or _own_licence(folder)
    if licence is None and maybe is not None:
        licence = f"{maybe.licence} (by its name, unverified)"
    return Facts(
        kind,
        said.variant or _of(one, "variant") or _of(guess, "variant") or own.variant,
        said.base or _of(sure, "base") or own.base or _of(maybe, "base"),
        said.encoder or _of(one, "encoder") or own.encoder or _of(guess, "encoder"),
        licence,
        pinned,
        tuple(_notes(found, licence)),
    )


def _of(file: KnownFile | None, what: str) -> str | None:
    return None if file is None else getattr(file, what)


def weights_among(files: Sequence[StoredFile]) -> list[StoredFile]:
    return [f for f in files if f.path.endswith(SUFFIXES)]


def folder_name(files: Sequence[StoredFile]) -> str:
    weights = weights_among(files)
    return weights[0].path if len(weights) == 1 else "the model"


def recognised(model: Manifest, known: Registry) -> str:
    """How sure the registry is of a stored model: sha256, in part, pinned, name or no."""
    found = [known.find(w.sha256, w.path.rsplit("/", 1)[-1]) for w in weights_among(model.files)]
    by_sha256 = [f is not None and f.by == "sha256" for f in found]
    if found and all(by_sha256):
        return "sha256"
    if model.pinned:
        return "pinned"
    if any(by_sha256):
        return "in part"
    return "name" if any(f is not None and f.by == "name" for f in found) else "no"


def _check_sha256(weights: Sequence[StoredFile], expected: str | None) -> bool:
    if expected is None:
        return False
    if not is_sha256(expected):
        raise ModelRefused(f"{expected[:80]!r} is no sha256", "Give 64 lower-case hex digits.")
    if len(weights) != 1:
        raise ModelRefused(
            f"--sha256 is of one file of weights, and the model has {len(weights)}",
            "Leave it out, or add one file alone.",
        )
    if weights[0].sha256 != expected:
        raise ModelRefused(
            f"{weights[0].path} has the sha256 {weights[0].sha256}, and {expected} was expected",
            "Nothing was added. Fetch the file again from where the sha256 was published.",
        )
    return True


def _own(folder: Path, files: Sequence[StoredFile], weights: Sequence[StoredFile]) -> Told:
    """What the files themselves tell, after each file of weights was found whole."""
    if not weights:
        raise ModelRefused("the model has no file of weights", f"Give one of {', '.join(SUFFIXES)}.")
    shapes = [shapes_of(folder / w.path) for w in weights]
    names = {f.path for f in files}
    if "model_index.json" in names:
        return Told("base", "diffusers folder", _base_in(folder / "unet" / "config.json"))
    if "config.json" not in names:
        return told_by(shapes[0]) if len(weights) == 1 else Told(None)
    config = _json(folder / "config.json")
    if "ControlNet" in str(config.get("_class_name", "")):
        return Told("controlnet", "", _base_in(folder / "config.json"))
    vision = config.get("vision_config", config)
    if "vision" in str(config.get("model_type", "")) or "Vision" in str(config.get("architectures", "")):
        return Told("encoder", _ENCODERS.get(vision.get("hidden_size"), ""))
    return told_by(shapes[0]) if len(weights) == 1 else Told(None)


def _base_in(config: Path) -> str | None:
    return _WIDTHS.get(_json(config).get("cross_attention_dim"))  # type: ignore[arg-type]


def _own_licence(folder: Path) -> str | None:
    told = _json(folder / "model_index.json").get("_onmodel_licence")
    return str(told) if told else None


def _json(file: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none that can be read."""
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}


def _notes(found: Sequence[Found], licence: str | None) -> list[str]:
    notes = []
    for f in found:
        if f.by == "name":
            notes.append(
                f"{f.file.name} is {f.file.title} by its name alone: no sha256 of it is known, so this is unverified"
            )
        if f.by == "differs":
            notes.append(
                f"{f.file.name} is not the published {f.file.title}, whose sha256 is {f.file.sha256}; it is taken as your own"
            )
    if licence is None:
        notes.append("its licence is not known: say it with --licence and --replace")
    elif licence.startswith("non-commercial"):
        notes.append(f"its licence is {licence}")
    return notes
