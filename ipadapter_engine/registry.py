"""What is known of model files: the published ones by sha256, a team's own beside them, and manifests of the model store.

Shape cannot tell light from base, plus-face from plus, nor FaceID Plus v1 from v2, and a file's licence stands in no
tensor: the sha256 tells both. Nothing here reaches a network; `models/known.toml` says where each file comes from.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from ipadapter_engine.errors import CheckpointRefused
from ipadapter_engine.families.sd15 import SD15
from ipadapter_engine.families.sdxl import SDXL
from ipadapter_engine.hashing import sha256_of_file, sha256_of_weights
from ipadapter_engine.manifests import KINDS, Manifest, is_sha256, manifest_beside

KNOWN = Path(__file__).parent / "models" / "known.toml"
BASES = {family.name: family.title for family in (SD15, SDXL)}
# What a file is usually called says nothing of which one it is.
_COMMON_NAMES = {"model.safetensors", "diffusion_pytorch_model.safetensors", "pytorch_model.bin"}


@dataclass(frozen=True)
class KnownFile:
    """One file. `name`: as it was published; `base`: the family it is for; `encoder`: a key of Registry.encoders.

    source: hub:owner/name:path, or what else `onmodel models add` takes. Without a sha256 it is matched by name alone.
    seen_in: the public projects whose lists name this sha256.
    """

    name: str
    kind: str
    licence: str
    variant: str = ""
    base: str | None = None
    encoder: str | None = None
    source: str | None = None
    size_bytes: int | None = None
    sha256: str | None = None
    seen_in: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What it is, as in `IP-Adapter plus-face for SDXL`."""
        what = {"adapter": "IP-Adapter", "encoder": "image encoder", "base": "base model"}.get(self.kind, self.kind)
        told = f"{what} {self.variant}".strip()
        return f"{told} for {BASES.get(self.base, self.base)}" if self.base and self.kind != "base" else told


@dataclass(frozen=True)
class Found:
    """A known file, and by what it was recognised; `differs`: its name is that of a file with another sha256."""

    file: KnownFile
    by: Literal["sha256", "name", "differs"]


@dataclass(frozen=True)
class Registry:
    """Known files, what encoders are called, and where they come from."""

    files: tuple[KnownFile, ...]
    encoders: Mapping[str, str]
    encoder_sources: Mapping[str, str]

    def find(self, sha256: str | None, name: str) -> Found | None:
        """By sha256, else by the name that it was published under, if that says enough."""
        for file in self.files:
            if sha256 is not None and file.sha256 == sha256:
                return Found(file, "sha256")
        for file in self.files:
            if file.name == name and name not in _COMMON_NAMES:
                return Found(file, "differs" if sha256 is not None and file.sha256 is not None else "name")
        return None

    def needs(self, base: str | None, encoder: str | None) -> str:
        """What a model needs beside it, with the command that fetches a published encoder; empty if nothing is known."""
        wanted = [f"a base of {BASES.get(base, base)}"] if base else []
        if encoder:
            source = self.encoder_sources.get(encoder)
            add = f" (`onmodel models add {source} --name {encoder}`)" if source and "+" not in encoder else ""
            wanted.append(f"{self.encoders.get(encoder, encoder)} as image encoder{add}")
        return " and ".join(wanted)


_own: Path | None = None


def learn(file: Path | None) -> None:
    """Take a team's own entries from `file` too, from now on in this process; None, or no file there: none."""
    global _own
    _own = file


def registry() -> Registry:
    """The published files, a team's own before them. Raises CheckpointRefused for a malformed file."""
    published = _read(KNOWN, KNOWN.stat().st_mtime_ns)
    if _own is None or not _own.exists():
        return published
    own = _read(_own, _own.stat().st_mtime_ns)
    return Registry(
        own.files + published.files,
        {**published.encoders, **own.encoders},
        {**published.encoder_sources, **own.encoder_sources},
    )


@functools.lru_cache(maxsize=8)
def _read(path: Path, _changed_ns: int) -> Registry:
    try:
        held = tomllib.loads(path.read_text(encoding="utf-8"))
        files = tuple(_entry(e) for e in held.get("file", []))
        return Registry(files, dict(held.get("encoders", {})), dict(held.get("encoder_sources", {})))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointRefused(
            f"{path} is no list of known models: {error}",
            "correct it; each [[file]] has name, kind and licence, and may have "
            "variant, base, encoder, source, size_bytes and sha256",
        ) from None


def _entry(told: Mapping[str, Any]) -> KnownFile:
    named = told.get("name", "one without a name")
    if unknown := sorted(set(told) - {f.name for f in fields(KnownFile)}):
        raise ValueError(f"{named} has {unknown[0]!r}, which there is not")
    if missing := [name for name in ("name", "kind", "licence") if not isinstance(told.get(name), str)]:
        raise ValueError(f"{named} says no {missing[0]}")
    if told["kind"] not in KINDS:
        raise ValueError(f"{named} is of kind {told['kind']!r}, which is none of {', '.join(KINDS)}")
    if "sha256" in told and not is_sha256(told["sha256"]):
        raise ValueError(f"the sha256 of {named} is not 64 lower-case hex digits")
    return KnownFile(**{**told, "seen_in": tuple(told.get("seen_in", ()))})


def look_up(path: Path, sha256: str | None = None) -> Found | None:
    """What is known of a weights file, or of the weights in a folder; `sha256` where it was computed already."""
    if sha256 is None:
        sha256 = sha256_of_weights(path) if path.is_dir() else sha256_of_file(path)
    return registry().find(sha256, path.name)


def licence_of(path: Path, sha256: str | None = None) -> str | None:
    """The licence of a file or a folder: as the manifest beside it says, else as the registry knows."""
    if (beside := _manifest(path, sha256)) is not None and beside.licence is not None:
        return beside.licence
    found = look_up(path, sha256)
    if found is None or found.by == "differs":
        return None
    return found.file.licence if found.by == "sha256" else f"{found.file.licence} (by its name, unverified)"


def advice(of: str | Path) -> str | None:
    """What a model file is and what it needs beside it, for who has to load that; None where nothing is known.

    of: a sha256, or a path of a weights file or of a folder of weights.
    """
    known = registry()
    if not isinstance(of, Path):
        found, sha256, shown = known.find(of, ""), of, f"the file {of[:16]}…"
    else:
        shown = of.name
        if (beside := _manifest(of)) is not None and (needs := known.needs(beside.base, beside.encoder)):
            return f"{shown} is the {beside.kind} {beside.name} {beside.variant}".rstrip() + f": it needs {needs}"
        sha256 = sha256_of_weights(of) if of.is_dir() else sha256_of_file(of)
        found = known.find(sha256, of.name)
    if found is None:
        return None
    file = found.file
    if found.by == "differs":
        return (
            f"{shown} is not the published {file.title} of that name: its sha256 is {sha256}, that one's {file.sha256}; "
            f"fetch that one from {file.source}, or use what the file at hand was trained with"
        )
    what = f"{shown} is {file.title}" if found.by == "sha256" else f"by its name (unverified) {shown} is {file.title}"
    needs = known.needs(file.base if file.kind != "base" else None, file.encoder)
    return f"{what}: it needs {needs}" if needs else what


@contextmanager
def advising(path: Path) -> Iterator[None]:
    """A refusal of a model says what the file needs, exactly, where that is known."""
    try:
        yield
    except CheckpointRefused as refusal:
        raise CheckpointRefused(refusal.message, advice(path) or refusal.next_step) from None


def _manifest(path: Path, sha256: str | None = None) -> Manifest | None:
    """The manifest of the stored model that `path` is, or is the weights file of, if it speaks of these very bytes."""
    found = manifest_beside(path)
    if found is None:
        return None
    if path.is_dir():  # of shards `sha256` is a hash of hashes
        sharded = any(f.path.endswith(".index.json") for f in found.files)
        return found if sha256 is None or sharded or sha256 in {f.sha256 for f in found.files} else None
    said = next((f.sha256 for f in found.files if f.path == path.name), None)
    return found if said is not None and said == (sha256 or sha256_of_file(path)) else None
