"""library.yaml: read whole, with every problem told by file, line and field."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Any

from asset_store.errors import LibraryFileInvalid
from asset_store.library.keys import safe_key
from asset_store.library.models import LibraryFile, ReferenceRole
from asset_store.library.yaml_lines import YamlDocument
from asset_store.library.yaml_model import parse_yaml

LIBRARY_FILE = "library.yaml"
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".avif")
_OF_A_PERSON = (ReferenceRole.IDENTITY, ReferenceRole.FACE)


def parse_library(text: str, *, file: str) -> LibraryFile:
    """The library that the text describes; `file` is its name for the problems.

    LibraryFileInvalid with every problem there is: YAML, fields, and what does not fit together.
    """
    return parse_yaml(text, LibraryFile, file=file, invalid=LibraryFileInvalid, cross_check=_cross_check)


def unlisted(library: LibraryFile, keys: Iterable[str]) -> list[str]:
    """The keys that are pictures by their suffix and not in the library's references, in ascending order."""
    listed = {reference.file for reference in library.references}
    return sorted(key for key in set(keys) - listed if key.lower().endswith(PICTURE_SUFFIXES))


def missing(library: LibraryFile, keys: Iterable[str]) -> list[str]:
    """The references' files that are not among the keys, in the order of the file."""
    present = set(keys)
    return [reference.file for reference in library.references if reference.file not in present]


def _cross_check(document: YamlDocument) -> None:
    """What spans several entries. On the plain data, so that it is told even where other fields are wrong."""
    if not isinstance(document.data, dict):
        return
    characters = _check_characters(document)
    has_default_licence = document.data.get("licence") is not None
    seen: dict[str, int] = {}
    for place, entry in _entries(document.data, "references"):
        at = ("references", place)
        _check_character(document, at, entry, characters)
        if entry.get("licence") is None and not has_default_licence:
            document.add(at, "This reference has no licence; give it one, or give the library a default one.")
        file = entry.get("file")
        if isinstance(file, str):
            # Two spellings of one name are one file on some file systems, and look the same on all.
            name = unicodedata.normalize("NFC", file)
            line = document.line_of((*at, "file"))
            if name in seen:
                document.add((*at, "file"), f"This file is listed twice; first in line {seen[name]}.")
            seen.setdefault(name, line)


def _check_characters(document: YamlDocument) -> set[str]:
    names: dict[str, str] = {}
    for place, entry in _entries(document.data, "characters"):
        name = entry.get("name")
        if isinstance(name, str):
            if name.casefold() in names:
                document.add(("characters", place, "name"), f"There is already a character {safe_key(name)!r}.")
            names.setdefault(name.casefold(), name)
    return set(names.values())


def _check_character(document: YamlDocument, at: tuple[str, int], entry: dict[str, Any], characters: set[str]) -> None:
    character = entry.get("character")
    if character is None:
        if entry.get("role") in _OF_A_PERSON:
            document.add(at, f"A reference of role {entry['role']} needs a 'character'.")
    elif isinstance(character, str) and character not in characters:
        known = ", ".join(sorted(map(safe_key, characters))) or "none"
        document.add((*at, "character"), f"There is no character {safe_key(character)!r}; there are: {known[:200]}.")


def _entries(data: dict[str, Any], name: str) -> list[tuple[int, dict[str, Any]]]:
    listed = data.get(name)
    if not isinstance(listed, list):
        return []
    return [(place, entry) for place, entry in enumerate(listed) if isinstance(entry, dict)]
