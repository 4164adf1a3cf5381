"""Whom an evaluation is about: a subject, its reference pictures, and the shots that are made of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from ipadapter_engine.errors import EngineError
from ipadapter_engine.evaluation.characters import Sample, reference_set, reference_stagings, samples
from ipadapter_engine.training.captions import prompt_for
from ipadapter_engine.training.mascots import Identity, Staging

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SUBJECT = "{subject}"  # stands for the subject's own words in a prompt
METADATA = "metadata.jsonl"


class SubjectsRefused(EngineError):
    """A folder of pictures that cannot be evaluated as it is."""


@dataclass(frozen=True)
class Shot:
    """One picture to be made. `prompt` holds {subject} where a trained character's word goes; `seed` is the noise's.

    group: shots of one group differ in their seed alone.
    staged: what a mascot does and where, None for pictures whose truth nobody knows.
    caption: what CLIP-T compares the picture with where that is not the prompt.
    """

    prompt: str
    seed: int
    group: int
    staged: Sample | None = None
    caption: str | None = None

    def said(self, words: str) -> str:
        """The prompt that names the subject by `words`."""
        return self.prompt.replace(SUBJECT, words)


@dataclass(frozen=True, eq=False)
class Subject:
    """words: what the subject is in a prompt, such as `mascot`; references: `count` pictures, opened at its turn.

    captions: what the references show, for methods that train on them, with {subject} in each; None: not known.
    """

    name: str
    words: str
    references: Callable[[], list[Image.Image]]
    count: int
    shots: tuple[Shot, ...]
    captions: tuple[str, ...] | None = None


def held_out_subjects(characters: int, prompts: int, seeds: int, *, size_px: int, references: int) -> list[Subject]:
    """Held-out mascots, `prompts` stagings of each, `seeds` pictures a staging, with so many references."""
    asked = samples(characters, prompts)
    subjects = []
    for i in range(characters):
        own = asked[i * prompts : (i + 1) * prompts]
        shots = tuple(
            Shot(_about(s.staging), 100 * s.seed + n, group, replace(s, seed=100 * s.seed + n))
            for group, s in enumerate(own)
            for n in range(seeds)
        )
        who = own[0].who
        captions = tuple(_about(staging) for staging in reference_stagings(who, references))
        pictures = _drawn(who, size_px, references)
        subjects.append(Subject(f"held out {i + 1}", "mascot", pictures, references, shots, captions))
    return subjects


def _about(staging: Staging) -> str:
    """The prompt of a staging, with {subject} for the mascot."""
    return prompt_for(staging).replace("mascot", SUBJECT, 1)


def _drawn(who: Identity, size_px: int, count: int) -> Callable[[], list[Image.Image]]:
    return lambda: reference_set(who, size_px, count)


def folder_subjects(folder: Path, prompts: Sequence[str], seeds: int) -> list[Subject]:
    """A user's pictures: a folder a subject, or a metadata.jsonl whose lines name subject, file and prompt.

    A line may hold a file, a prompt, or both; a subject's references are all its files, its shots all its prompts and
    those of `prompts`. Raises SubjectsRefused with the line or folder that is wrong.
    """
    if not folder.is_dir():
        raise SubjectsRefused(f"there is no folder {folder}", "name a folder with one folder of pictures a subject")
    listed = (folder / METADATA).exists()
    found = list(_from_metadata(folder) if listed else _from_folders(folder))
    if not found:
        raise SubjectsRefused(
            f"{folder} has no subjects: no {METADATA} and no folders with pictures",
            "put each subject's pictures into a folder of its name",
        )
    subjects = []
    for name, files, own in found:
        asked = list(dict.fromkeys([*own, *prompts]))
        if not files:
            raise SubjectsRefused(f"the subject {name} in {folder} has no pictures", "name a file of it, its reference")
        if not asked:
            raise SubjectsRefused(
                f"no prompt is given for the subject {name} in {folder}",
                f"give --prompt 'a photo of a {SUBJECT} on the beach', or prompts in {METADATA}",
            )
        subjects.append(Subject(name, name.replace("_", " "), opened(files), len(files), shots_of(asked, seeds)))
    return subjects


def shots_of(prompts: Sequence[str], seeds: int) -> tuple[Shot, ...]:
    """Every prompt with every seed from 0."""
    return tuple(Shot(p, seed, group) for group, p in enumerate(prompts) for seed in range(seeds))


def _from_folders(folder: Path) -> Iterator[tuple[str, list[Path], list[str]]]:
    for place in sorted(p for p in folder.iterdir() if p.is_dir()):
        files = pictures_in(place)
        if files:
            yield place.name, files, []


def _from_metadata(folder: Path) -> Iterator[tuple[str, list[Path], list[str]]]:
    files: dict[str, list[Path]] = {}
    prompts: dict[str, list[str]] = {}
    lines = (folder / METADATA).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            subject = row["subject"]
        except (ValueError, KeyError, TypeError):
            raise _wrong(folder, number, "is no JSON object with a subject") from None
        if not isinstance(subject, str) or not subject or not set(row) <= {"subject", "file", "prompt"}:
            raise _wrong(folder, number, "has other fields than subject, file and prompt")
        files.setdefault(subject, []), prompts.setdefault(subject, [])
        if row.get("file"):
            file = (folder / str(row["file"])).resolve()
            if not (file.is_file() and file.is_relative_to(folder.resolve())):
                raise _wrong(folder, number, f"names {row['file']}, which is not in the folder")
            files[subject].append(file)
        if row.get("prompt"):
            prompts[subject].append(str(row["prompt"]))
    yield from ((s, files[s], prompts[s]) for s in files)


def _wrong(folder: Path, line: int, what: str) -> SubjectsRefused:
    return SubjectsRefused(
        f"{folder / METADATA}:{line} {what}",
        'write lines such as {"subject": "bo", "file": "bo/1.png", "prompt": "a photo of a {subject} on the beach"}',
    )


def pictures_in(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in PICTURES)


def opened(files: Sequence[Path]) -> Callable[[], list[Image.Image]]:
    return lambda: [open_picture(f) for f in files]


def open_picture(file: Path) -> Image.Image:
    """RGB, turned the way its camera says; raises SubjectsRefused."""
    try:
        with Image.open(file) as picture:
            return ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise SubjectsRefused(f"{file} is not a picture that opens", "replace the file, or leave it out") from None
