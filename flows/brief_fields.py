"""What the fields of a brief are made of: strict numbers, prompts, sizes, seeds, windows."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from ipadapter_engine.requests import MAX_SEED


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _size(value: str) -> str:
    width, x, height = value.partition("x")
    if not (x and width.isdigit() and height.isdigit() and 8 <= int(width) <= 4096 and 8 <= int(height) <= 4096):
        raise ValueError("write width x height in pixels, such as 512x512")
    return value


def _prompt(value: str) -> str:
    if "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
        raise ValueError("write text that can be stored: no NUL and no half surrogate pairs")
    return value


def _no_truth(value: object) -> object:
    """YAML reads yes, no, on and off as truth values, which would be taken for 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("write a number: what stands here is a yes or a no to YAML")
    return value


def _model_choice(value: object) -> object:
    if isinstance(value, bool) or not (value in ("latest", "none") or (isinstance(value, int) and value >= 1)):
        raise ValueError("write latest, none or a version such as 2")
    return value


Whole = Annotated[int, Field(strict=True), BeforeValidator(_no_truth)]
Number = Annotated[float, Field(strict=True), BeforeValidator(_no_truth)]  # whole numbers, too
Prompt = Annotated[str, Field(max_length=2000), AfterValidator(_prompt)]
ModelChoice = Annotated[Literal["latest", "none"] | int, BeforeValidator(_model_choice)]
Size = Annotated[str, AfterValidator(_size)]
Seed = Annotated[Whole, Field(ge=0, le=MAX_SEED)]
Window = tuple[Number, Number]


def check_window(window: tuple[float, float]) -> None:
    if not 0 <= window[0] <= window[1] <= 1:
        raise ValueError("a window is two numbers, start and end, with 0 ≤ start ≤ end ≤ 1")
