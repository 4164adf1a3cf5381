"""A file that a person wrote, read into a model, with every problem told by file, line and field."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from asset_store.errors import FileInvalid, Problem
from asset_store.library.keys import safe_key
from asset_store.library.yaml_lines import YamlDocument, dotted, read_yaml

Model = TypeVar("Model", bound=BaseModel)


def parse_yaml(
    text: str,
    model: type[Model],
    *,
    file: str,
    invalid: type[FileInvalid],
    cross_check: Callable[[YamlDocument], None] | None = None,
) -> Model:
    """The model that the text describes; raises `invalid` with every problem there is, in the order of lines.

    `cross_check` adds what spans several fields; it sees plain data, also where single fields are wrong.
    """
    document = read_yaml(text, file=file)
    found: Model | None = None
    if document.data is not None or not document.problems:
        try:
            found = model.model_validate(document.data)
        except ValidationError as error:
            known = {problem.field for problem in document.problems}
            details = error.errors(include_url=False)
            for detail in details:
                # What could not be read was told already; a list whose entries are wrong is not short of entries, too.
                if dotted(detail["loc"]) not in known and not (
                    detail["type"] == "too_short" and _has_more(detail, details)
                ):
                    document.add(detail["loc"], _sentence(detail))
        if cross_check is not None:
            cross_check(document)
    if document.problems or found is None:
        raise invalid(_ordered(document.problems))
    return found


def _has_more(detail: ErrorDetails, details: list[ErrorDetails]) -> bool:
    place = detail["loc"]
    return any(len(other["loc"]) > len(place) and other["loc"][: len(place)] == place for other in details)


def _sentence(detail: ErrorDetails) -> str:
    name = str(detail["loc"][-1]) if detail["loc"] else "the file"
    kind = detail["type"]
    if kind == "missing":
        return f"{name!r} is required."
    if kind == "extra_forbidden":
        return f"{safe_key(name)!r} is not a field here."
    if kind == "string_type":
        return "This must be text; put it in quotes."
    if kind in ("model_type", "dict_type"):
        return "This must be a mapping of fields to values."
    if kind in ("tuple_type", "list_type"):
        return "This must be a list."
    message = detail["msg"].removeprefix("Value error, ").replace("Input should be", "this should be")
    return message[:1].upper() + message[1:] + "."


def _ordered(problems: list[Problem]) -> list[Problem]:
    return sorted(dict.fromkeys(problems), key=lambda problem: problem.line)
