"""Words that a brief leaves open, such as {product}, {market} or {date}: one shot becomes one for each. Loads no engine."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from asset_store.errors import BriefInvalid, Problem
from asset_store.library.models import LineOfText, Slug

if TYPE_CHECKING:
    from asset_store.library.yaml_lines import YamlDocument
    from flows.brief import Brief, Shot

MOST_SHOTS = 10_000
OF_THE_DAY = ("date", "year", "month", "week", "weekday")
OPEN = re.compile(r"\{([^{}]*)\}")


def _name(value: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,30}", value):
        raise ValueError("name a variable in small letters, digits and underscores")
    if value in OF_THE_DAY:
        raise ValueError(f"{value} is of the day on which the campaign runs; choose another name")
    return value


def _as_named(value: object) -> object:
    """A list of words as names for them, for the shots' names."""
    if not isinstance(value, list | tuple) or not all(isinstance(words, str) for words in value):
        return value
    named = {_key(words): words for words in value}
    if "" in named or len(named) < len(value):
        raise ValueError("no letters or digits tell these words apart; write {name: words}")
    return named


Words = Annotated[dict[Slug, LineOfText], BeforeValidator(_as_named), Field(min_length=1, max_length=1000)]
Variables = dict[Annotated[str, AfterValidator(_name)], Words]  # by variable and name, the words


def _key(words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", words.casefold()).strip("-")[:30].strip("-")


def of_the_day(at: datetime) -> dict[str, str]:
    """What is known by itself; at: when the campaign runs, in its own time zone."""
    return {
        "date": at.strftime("%Y-%m-%d"), "year": at.strftime("%Y"), "month": MONTHS[at.month - 1],
        "week": str(at.isocalendar().week), "weekday": DAYS[at.weekday()],
    }  # fmt: skip


# Not by strftime: what a prompt says must not depend on the machine's language.
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
          "December")  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def check_names(document: YamlDocument) -> None:
    """Tell of words that no variable stands for, by line; in a brief without variables and schedule braces are text."""
    data = document.data
    if not isinstance(data, dict) or not ("variables" in data or "schedule" in data):
        return
    variables = data.get("variables")
    known = [*(variables if isinstance(variables, dict) else ()), *OF_THE_DAY]
    for place, used in _used(data.get("shots"), ("shots",)):
        if used not in known:
            document.add(place, f"There is no variable {used[:40]!r}; there are: {', '.join(map(str, known))}.")
    for place, used in _used(data.get("defaults"), ("defaults",)):
        if used not in OF_THE_DAY:
            document.add(place, f"Defaults know of the day alone: {', '.join(OF_THE_DAY)}.")


def _used(value: Any, place: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Every open word with where it stands."""
    if isinstance(value, str):
        yield from ((place, found) for found in OPEN.findall(value))
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _used(inner, (*place, str(key)))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _used(inner, (*place, index))


def filled(brief: Brief, at: datetime, *, as_campaign: str | None = None) -> Brief:
    """The campaign that a brief asks for at a moment (in its own time zone): every open word is filled in, nothing else is left to plan.

    as_campaign: its name, where the brief's own is of all runs of a schedule. BriefInvalid where the words make something that is none.
    """
    told = brief.model_dump(mode="json", exclude={"variables", "schedule", "budget", "shots"})
    told["campaign"] = as_campaign or brief.campaign
    shots = [shot.model_dump(mode="json") for shot in brief.shots]
    if brief.has_open_words:
        day = of_the_day(at)
        told["defaults"] = _with(told["defaults"], day)
        shots = [made for shot in brief.shots for made in _of_each(brief, shot, day)]
    return _checked(type(brief), {**told, "shots": shots})


def count(brief: Brief, shot: Shot) -> int:
    """How many shots one becomes."""
    total = 1
    for name in _open_of(brief, shot):
        total *= len(brief.variables[name])
    return total


def _open_of(brief: Brief, shot: Shot) -> list[str]:
    """The variables that a shot leaves open, in the brief's order."""
    used = {name for _, name in _used(shot.model_dump(mode="json"), ())}
    return [name for name in brief.variables if name in used]


def _of_each(brief: Brief, shot: Shot, day: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    names, told = _open_of(brief, shot), shot.model_dump(mode="json")
    for chosen in itertools.product(*(brief.variables[name].items() for name in names)):
        words = {**day, **{name: words for name, (_, words) in zip(names, chosen, strict=True)}}
        yield {**_with(told, words), "name": "-".join([shot.name, *(key for key, _ in chosen)])}


def _with(value: Any, words: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return OPEN.sub(lambda found: words[found[1]], value)
    if isinstance(value, dict):
        return {key: _with(inner, words) for key, inner in value.items()}
    return [_with(inner, words) for inner in value] if isinstance(value, list) else value


def _checked(kind: type[Brief], told: dict[str, Any]) -> Brief:
    from pydantic import ValidationError

    def invalid(message: str, field: str = "") -> BriefInvalid:
        return BriefInvalid([Problem("the brief with its variables filled in", 0, field, message)])

    names = Counter(shot["name"] for shot in told["shots"])
    if twice := next((name for name, times in names.items() if times > 1), None):
        raise invalid(f"Two shots become {twice!r}; name one of them otherwise.")
    try:
        return kind.model_validate(told)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise invalid(first["msg"].removeprefix("Value error, "), ".".join(map(str, first["loc"]))) from None
