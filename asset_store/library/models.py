"""What a library.yaml says."""

from __future__ import annotations

import re
from datetime import date, datetime
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


class ReferenceRole(StrEnum):
    """What a reference is for: who the character is, how pictures look, a face, or a composition to follow."""

    IDENTITY = "identity"
    STYLE = "style"
    FACE = "face"
    COMPOSITION = "composition"


def _slug(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", value):
        raise ValueError("use lower-case letters, digits and single hyphens only, such as acme-toys")
    return value


def _line_of_text(value: str) -> str:
    if not value.strip() or value != value.strip() or not value.isprintable():
        raise ValueError("write one line of visible text, without spaces around it")
    return value


def _text(value: str) -> str:
    if not value.strip():
        raise ValueError("write some text, or leave the field out")
    return value.strip()


def _colour(value: object) -> str:
    # In YAML an unquoted #ff0000 is a comment, and what is left of the line is nothing.
    if not isinstance(value, str) or not re.fullmatch(r"#(?:[0-9a-fA-F]{3}|[0-9a-fA-F]{6})", value):
        raise ValueError("write a hex colour in quotes, such as '#1a2b3c' (without quotes YAML takes # for a comment)")
    digits = value[1:].lower()
    return "#" + (digits if len(digits) == 6 else "".join(digit * 2 for digit in digits))


def _relative_path(value: str) -> str:
    if value.startswith("/") or re.match(r"[A-Za-z]:|[A-Za-z][A-Za-z0-9+.-]*://", value):
        raise ValueError("write a path relative to the library, not an absolute one or a URL")
    if "\\" in value:
        raise ValueError("write the path with forward slashes")
    if any(character in value for character in "*?[]"):
        raise ValueError("name one file; patterns with *, ? or [] are not expanded")
    parts = value.split("/")
    if ".." in parts:
        raise ValueError("the path may not leave the library with '..'")
    if "" in parts or "." in parts or not all(character.isprintable() for character in value):
        raise ValueError("write a plain path such as mara/front.png")
    return value


def _day(value: object) -> object:
    if value is None or (isinstance(value, date) and not isinstance(value, datetime)):
        return value
    if isinstance(value, str) and re.fullmatch(r"\d{4}-\d{2}-\d{2}", value):
        try:
            return date.fromisoformat(value)
        except ValueError:
            raise ValueError("there is no such day") from None
    raise ValueError("write a day as YYYY-MM-DD")


Slug = Annotated[str, Field(max_length=63), AfterValidator(_slug)]
LineOfText = Annotated[str, Field(max_length=200), AfterValidator(_line_of_text)]
Text = Annotated[str, Field(max_length=4_000), AfterValidator(_text)]
Colour = Annotated[str, BeforeValidator(_colour)]
RelativePath = Annotated[str, Field(max_length=1_000), AfterValidator(_relative_path)]
Day = Annotated[date | None, BeforeValidator(_day)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Licence(_Entry):
    """What allows a picture's use, and until when: `until` is the last day of it; None means without end."""

    name: LineOfText
    holder: LineOfText | None = None
    until: Day = None


class Brand(_Entry):
    """Whose library this is; `name` is a slug, `title` how people write it."""

    name: Slug
    title: LineOfText | None = None


class Character(_Entry):
    """Someone the pictures are of; colours are lower-case `#rrggbb`."""

    name: LineOfText
    description: Text | None = None
    palette: tuple[Colour, ...] = ()
    rules: tuple[Text, ...] = ()


class ReferenceEntry(_Entry):
    """One approved picture. `file` is its key in the library; `character` may be left out of a style or composition
    reference that is the whole brand's; `weight` 0..10, relative to the others of the same role."""

    file: RelativePath
    character: LineOfText | None = None
    role: ReferenceRole
    licence: Licence | None = None
    weight: Annotated[float, Field(ge=0, le=10, strict=True)] = 1.0
    tags: tuple[LineOfText, ...] = ()


class LibraryFile(_Entry):
    """A whole library.yaml. Every reference has a licence: its own or the library's."""

    brand: Brand
    characters: tuple[Character, ...] = ()
    references: tuple[ReferenceEntry, ...] = ()
    licence: Licence | None = None
    palette: tuple[Colour, ...] = ()
    rules: tuple[Text, ...] = ()

    def licence_of(self, reference: ReferenceEntry) -> Licence:
        """The reference's own licence, or the library's; LookupError for a file not made by `parse_library`."""
        licence = reference.licence or self.licence
        if licence is None:
            raise LookupError(f"{reference.file} has no licence")
        return licence

    def references_of(self, character: str) -> tuple[ReferenceEntry, ...]:
        """The character's own references, in the order of the file."""
        return tuple(reference for reference in self.references if reference.character == character)
