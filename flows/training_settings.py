"""Settings of a training, from what a person or a program gave as JSON."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from ipadapter_engine.training.errors import TrainingRefused

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Chosen = TypeVar("Chosen", bound="DataclassInstance")


def read_settings(kind: type[Chosen], given: dict[str, Any]) -> Chosen:
    """A settings dataclass from JSON; raises TrainingRefused for fields that it does not have and values of another kind."""
    names = {f.name for f in dataclasses.fields(kind)}
    strange = sorted(set(given) - names)
    if strange:
        raise TrainingRefused(f"{', '.join(strange)}: no such setting", f"choose from {', '.join(sorted(names))}")
    try:
        return TypeAdapter(kind).validate_python({k: v for k, v in given.items() if v is not None})
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, e['loc']))}: {e['msg'].lower()}" for e in error.errors()]
        raise TrainingRefused("; ".join(wrong), "correct the training's settings") from None
