"""A user's folder of pictures and captions: `name.txt` beside `name.png`, or a `metadata.jsonl`.

The latter is Hugging Face's imagefolder: an object a line with `file_name` and `text`; ours may also have
`reference`, another picture of the folder, and `identity`: pictures of one identity are each other's references.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ipadapter_engine.training.errors import FolderInvalid, FolderProblem
from ipadapter_engine.training.latents import upright

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
SMALLEST_PX = 32
METADATA = "metadata.jsonl"
_COLUMNS = ("file_name", "text", "reference", "identity")


@dataclass(frozen=True)
class Entry:
    """A picture to learn, its caption, and where its reference comes from."""

    file: Path
    caption: str
    reference: Path | None = None
    identity: str | None = None


def read_folder(folder: Path) -> list[Entry]:
    """The entries in the order of the metadata or of the file names; raises FolderInvalid with all that is wrong."""
    if not folder.is_dir():
        raise FolderInvalid([FolderProblem(str(folder), "there is no such folder")])
    problems: list[FolderProblem] = []
    metadata = folder / METADATA
    entries = list(_listed(folder, metadata, problems) if metadata.exists() else _beside(folder, problems))
    files = list(dict.fromkeys([e.file for e in entries] + [e.reference for e in entries if e.reference]))
    with ThreadPoolExecutor() as pool:  # decoding leaves the interpreter to others
        looked = pool.map(_look_at, files, (f.relative_to(folder.resolve()).as_posix() for f in files))
        problems += [problem for problem in looked if problem is not None]
    if not entries and not problems:
        problems.append(FolderProblem(str(folder), f"it holds no {METADATA} and no pictures ({', '.join(SUFFIXES)})"))
    if problems:
        raise FolderInvalid(problems)
    return entries


def _beside(folder: Path, problems: list[FolderProblem]) -> Iterator[Entry]:
    pictures = sorted(f for f in folder.resolve().iterdir() if f.suffix.lower() in SUFFIXES)
    for file in pictures:
        beside = file.with_suffix(".txt")
        if not beside.exists():
            problems.append(FolderProblem(file.name, f"it has no caption: {beside.name} is not there"))
        elif caption := beside.read_text(encoding="utf-8-sig", errors="replace").strip():
            yield Entry(file, " ".join(caption.split()))
        else:
            problems.append(FolderProblem(beside.name, "the caption is empty"))
    stems: dict[str, str] = {}
    for file in pictures:
        if file.stem in stems:
            problems.append(FolderProblem(file.name, f"it shares the caption of {stems[file.stem]}; rename one"))
        stems[file.stem] = file.name


def _listed(folder: Path, metadata: Path, problems: list[FolderProblem]) -> Iterator[Entry]:
    seen: dict[Path, int] = {}
    lines = metadata.read_text(encoding="utf-8-sig", errors="replace").split("\n")  # a caption may hold U+2028
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        wrong: list[str] = []
        row = _row(line, wrong)
        file = _inside(folder, row, "file_name", wrong)
        reference = _inside(folder, row, "reference", wrong) if row.get("reference") else None
        if not wrong and not row.get("text", "").strip():
            wrong.append("text: the caption is missing or empty")
        if file is not None and seen.setdefault(file, number) != number:
            wrong.append(f"file_name: {row['file_name']} is on line {seen[file]} already")
        problems += [FolderProblem(METADATA, message, number) for message in wrong]
        if not wrong and file is not None:
            yield Entry(file, " ".join(row["text"].split()), reference, row.get("identity") or None)


def _row(line: str, wrong: list[str]) -> dict[str, str]:
    """Our columns of a line, without those that are null."""
    try:
        row = json.loads(line)
    except ValueError as error:
        wrong.append(f"this is no JSON: {error}")
        return {}
    if not isinstance(row, dict):
        wrong.append("this is no JSON object")
        return {}
    told = {k: row[k] for k in _COLUMNS if row.get(k) is not None}
    wrong += [f"{k}: this is no text" for k, value in told.items() if not isinstance(value, str)]
    return told if not wrong else {}


def _inside(folder: Path, row: dict[str, str], column: str, wrong: list[str]) -> Path | None:
    """A file of the folder by its relative path; what is outside or not there is told."""
    if wrong:
        return None
    name = row.get(column, "")
    try:
        file = (folder / name).resolve()
        if not name:
            wrong.append(f"{column} is missing")
        elif not file.is_relative_to(folder.resolve()):
            wrong.append(f"{column}: {name} is outside the folder")
        elif not file.is_file():
            wrong.append(f"{column}: {name} is not there")
        else:
            return file
    except (OSError, ValueError):  # too long for a name, or with a NUL in it
        wrong.append(f"{column}: {name[:80]!r} is no file's name")
    return None


def _look_at(file: Path, shown: str) -> FolderProblem | None:
    """Whether the picture can be read to its end, shown in 8 bits, and is large enough."""
    try:
        with Image.open(file) as picture:
            side, mode = min(upright(picture).size), picture.mode
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return FolderProblem(shown, f"it is no readable picture: {(str(error) or repr(error)).splitlines()[0]}")
    if mode in ("I", "F"):
        return FolderProblem(shown, "its pixels have 32 bits, and how bright they are is not known")
    if side < SMALLEST_PX:
        return FolderProblem(shown, f"its shorter side has {side} px, below {SMALLEST_PX}")
    return None
