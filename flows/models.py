"""The store of models in ONMODEL_HOME/models: adding, listing, verifying and removing.

`NAME` there is a link to a folder in `.data`, which has a manifest beside its files. Adding writes aside, in `.adding`,
and ends with one rename: killed before, there is no such model, or still the one before; killed after, there is the new.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from flows.model_facts import NOTHING, Said, facts_of, weights_among
from flows.model_files import ModelRefused
from flows.model_sources import open_source
from flows.progress import report
from flows.settings import S3Settings
from ipadapter_engine import registry
from ipadapter_engine.errors import CheckpointRefused
from ipadapter_engine.hashing import sha256_of_file
from ipadapter_engine.manifests import FILE, Manifest, StoredFile, read_manifest

NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?\Z")
_TAKEN = {"feature_extractor"}  # a folder of that name beside an encoder is read as its preprocessing
_CONFIGS = ("model_index.json", "config.json")


@dataclass(frozen=True)
class Added:
    """`new`: whether anything changed; `notes`: what who added it should know."""

    model: Manifest
    new: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Problem:
    """One thing that is not as a manifest says; `what`: damaged, missing or foreign."""

    model: str
    file: str
    what: str
    message: str


class ModelStore:
    """Models by name. Safe for several processes; a folder that is not there is an empty store."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def add(
        self,
        source: str,
        by: str,
        s3: S3Settings,
        *,
        name: str | None = None,
        said: Said = NOTHING,
        replacing: bool = False,
    ) -> Added:
        """Add the model at `source`. Safe to repeat: the same files again change nothing; `replacing` writes them anew.

        Raises ModelRefused, CheckpointRefused, PlaceInvalid, SourceUnreachable; then nothing was added.
        """
        place = open_source(source, s3)
        name = _checked_name(name or suggested_name(place.name))
        with self._changing(name):
            kept = self._kept(name, replacing=replacing)
            if kept is not None and kept.source != place.address:
                raise _taken(kept)
            revision = place.resolve()
            if kept is not None and revision is not None and revision == kept.revision and said.holds_for(kept):
                return Added(kept, False, ())
            aside = self._aside(name, f"{place.address} {revision}", kept=revision is not None)
            try:
                fetched = place.fetch(aside)
                files = _hashed(aside)
                facts = facts_of(aside, files, said, registry.registry(), fetched.licence)
                model = Manifest(
                    name, facts.kind, facts.variant, facts.base, facts.encoder, facts.licence, place.address,
                    fetched.revision, facts.pinned, files, by, datetime.now(UTC).isoformat(timespec="seconds"),
                )  # fmt: skip
                if kept is not None and not (kept.files == files and said.holds_for(kept)):
                    raise _taken(kept)
            except (ModelRefused, CheckpointRefused):  # what could not be reached is gone on with, what is wrong is not
                shutil.rmtree(aside)
                raise
            if kept is not None:
                shutil.rmtree(aside)
                return Added(kept, False, facts.notes)
            self._publish(aside, model)
        return Added(model, True, facts.notes)

    def find(self, name: str) -> Manifest | None:
        """The model of that name; None where there is none. Raises CheckpointRefused for a manifest that is damaged."""
        folder = self.root / name
        return read_manifest(folder) if NAME.match(name) and folder.is_symlink() and folder.is_dir() else None

    def get(self, name: str) -> Manifest:
        """As `find`; raises ModelRefused where there is none."""
        found = self.find(name)
        if found is None:
            there = ", ".join(self.names()) or "none"
            raise ModelRefused(f"there is no model {name[:80]}", f"`onmodel models list` shows them: {there}.")
        return found

    def names(self) -> list[str]:
        """In order; also of models whose manifests are damaged."""
        return sorted(p.name for p in self._entries() if p.is_symlink())

    def place_of(self, name: str) -> Path:
        """What the engine opens: a model's folder, or its only file of weights. Raises as `get`."""
        model = self.get(name)
        if any(f.path in _CONFIGS for f in model.files):
            return self.root / name
        return self.root / name / weights_among(model.files)[0].path

    def verify(self, name: str | None = None) -> list[Problem]:
        """Hash everything again. Raises ModelRefused for a name that there is not."""
        if name is not None:
            if name not in self.names():
                self.get(name)
            return self._verified(name)
        found = [
            Problem(p.name, "", "foreign", f"{p} was not put there by `onmodel models add`")
            for p in self._entries()
            if not p.is_symlink()
        ]
        return found + [problem for each in self.names() for problem in self._verified(each)]

    def remove(self, name: str) -> Manifest | None:
        """Forget a model and delete its files. None for one whose manifest was damaged. Raises as `get`."""
        model: Manifest | None = None
        if name not in self.names():
            model = self.get(name)
        with self._changing(name), self._alone():
            try:
                model = self.get(name)
            except CheckpointRefused:
                model = None
            (self.root / name).unlink()
            _flush(self.root)
        return model

    def _verified(self, name: str) -> list[Problem]:
        folder = self.root / name
        try:
            model = read_manifest(folder)
        except CheckpointRefused as refused:
            return [Problem(name, FILE, "damaged", refused.message)]
        problems = []
        for done, said in enumerate(model.files):
            report(name, done, len(model.files))
            file = folder / said.path
            if not file.is_file():
                problems.append(Problem(name, said.path, "missing", f"{said.path} is gone"))
            elif (found := sha256_of_file(file)) != said.sha256:
                told = f"{said.path} has the sha256 {found}, its manifest says {said.sha256}"
                problems.append(Problem(name, said.path, "damaged", told))
        known = {f.path for f in model.files} | {FILE}
        for path in sorted(folder.rglob("*")):
            if path.is_file() and (other := path.relative_to(folder).as_posix()) not in known:
                problems.append(Problem(name, other, "foreign", f"{other} is not in the manifest"))
        return problems

    def _entries(self) -> list[Path]:
        try:
            return sorted(p for p in self.root.iterdir() if not p.name.startswith("."))
        except FileNotFoundError:
            return []

    def _kept(self, name: str, *, replacing: bool) -> Manifest | None:
        """The model of that name, unless it is to be replaced."""
        folder = self.root / name
        if os.path.lexists(folder) and not folder.is_symlink():
            raise ModelRefused(f"{folder} was not put there by `onmodel models add`", "Move it away.")
        return None if replacing else self.find(name)

    def _aside(self, name: str, of: str, *, kept: bool) -> Path:
        """The folder to write into; with what an interrupted fetch of the same left there, where that is `kept`."""
        folder, mark = self._adding(name) / "files", self._adding(name) / "of"
        if not (kept and mark.exists() and mark.read_text(encoding="utf-8") == of):
            shutil.rmtree(folder, ignore_errors=True)
            mark.write_text(of, encoding="utf-8")
        folder.mkdir(exist_ok=True)
        return folder

    def _adding(self, name: str) -> Path:
        return self.root / ".adding" / name

    def _publish(self, aside: Path, model: Manifest) -> None:
        (aside / FILE).write_text(json.dumps(model.as_json(), indent=2) + "\n", encoding="utf-8")
        for path in [*sorted(aside.rglob("*"), reverse=True), aside]:
            _flush(path)
        with self._alone():
            data = self.root / ".data" / f"{model.name}-{uuid.uuid4().hex[:12]}"
            data.parent.mkdir(exist_ok=True)
            os.rename(aside, data)
            _flush(data.parent)
            link = self._adding(model.name) / "link"
            link.unlink(missing_ok=True)
            os.symlink(f".data/{data.name}", link)
            os.replace(link, self.root / model.name)  # from here on it counts
            _flush(self.root)

    def _sweep(self) -> None:
        """Delete what no model names: one that was replaced or removed, or that a killed process did not come to name."""
        named = {os.path.basename(os.readlink(p)) for p in self._entries() if p.is_symlink()}
        data = self.root / ".data"
        for folder in list(data.iterdir()) if data.is_dir() else []:
            if folder.name not in named:
                shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _changing(self, name: str) -> Iterator[None]:
        """One process at a time adds or removes a model of that name; a killed one's lock is free at once."""
        self._adding(name).mkdir(parents=True, exist_ok=True)
        with (self._adding(name) / "lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ModelRefused(
                    f"another process is adding or removing {name} now", "Run the command again when it has ended."
                ) from None
            yield
            with self._alone():  # also where nothing changed: whoever was killed before may have left something
                self._sweep()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with (self.root / ".adding" / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _taken(before: Manifest) -> ModelRefused:
    return ModelRefused(
        f"there is another model {before.name} already, from {before.source}",
        "Give this one another --name, or --replace that one.",
    )


def suggested_name(told: str) -> str:
    """A source's name in the letters that a model's name may have."""
    return re.sub(r"[^a-z0-9]+\Z|\A[^a-z0-9]+", "", re.sub(r"[^a-z0-9._-]+", "-", told.lower()))[:64]


def _checked_name(name: str) -> str:
    if not NAME.match(name) or name in _TAKEN:
        raise ModelRefused(
            f"{name[:80]!r} is no name for a model",
            "Give --name of up to 64 lower-case letters, digits, points, hyphens and underscores.",
        )
    return name


def _hashed(folder: Path) -> tuple[StoredFile, ...]:
    paths: Sequence[Path] = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != FILE]
    out = []
    for done, path in enumerate(paths):
        report("hashed", done, len(paths))
        out.append(StoredFile(path.relative_to(folder).as_posix(), sha256_of_file(path), path.stat().st_size))
    return tuple(out)


def _flush(path: Path) -> None:
    """To the disk, so that a power cut does not leave a name without its bytes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems cannot flush a folder; there is nothing else to do
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)
