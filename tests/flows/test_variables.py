"""Words that a brief leaves open become shots."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from asset_store.canonical import sha256_of
from asset_store.errors import BriefInvalid
from flows.brief import Brief, parse_brief
from flows.variables import filled

AT = datetime(2026, 12, 7, 9, tzinfo=UTC)
OPEN = """\
campaign: spring
brand: lumen
variables:
  product: [desk lamp, floor lamp]
  market: {de: in Berlin, us: in New York}
shots:
  - {name: pip, character: Pip, prompt: "a mascot with a {product} {market}, {month} {year}", variants: 2}
  - {name: bo, character: Bo, prompt: "a mascot, {weekday} {date}, week {week}"}
"""


def parsed(text: str = OPEN) -> Brief:
    return parse_brief(text, file="brief.yaml")


def test_a_shot_becomes_one_for_each_of_the_words_that_it_uses() -> None:
    shots = filled(parsed(), AT).shots
    assert [(s.name, s.prompt) for s in shots] == [
        ("pip-desk-lamp-de", "a mascot with a desk lamp in Berlin, December 2026"),
        ("pip-desk-lamp-us", "a mascot with a desk lamp in New York, December 2026"),
        ("pip-floor-lamp-de", "a mascot with a floor lamp in Berlin, December 2026"),
        ("pip-floor-lamp-us", "a mascot with a floor lamp in New York, December 2026"),
        ("bo", "a mascot, Monday 2026-12-07, week 50"),
    ]


def test_pictures_are_counted_before_anything_is_planned() -> None:
    assert parsed().pictures == filled(parsed(), AT).pictures == 9


def test_references_and_controls_may_be_of_the_product_too() -> None:
    text = OPEN.replace(
        "variants: 2", 'references: ["pip/{product}.png"], controls: [{kind: pose, picture: "p/{market}.png"}]'
    )
    first = filled(parsed(text.replace("{product} {market}", "")), AT).shots[0]
    assert first.references == ("pip/desk lamp.png",)
    assert first.controls is not None
    assert first.controls[0].picture == "p/in Berlin.png"


def test_the_filled_brief_is_a_campaign_of_its_own_and_asks_for_nothing_more() -> None:
    text = OPEN + "schedule: {cron: 0 9 * * mon}\nbudget: {pictures: 9, per: week}\n"
    made = filled(parsed(text), AT, as_campaign="spring-2026-12-07")
    assert made.campaign == "spring-2026-12-07"
    assert not {"variables", "schedule", "budget"} & set(made.model_dump(mode="json"))
    assert filled(made, AT) == made


def test_braces_are_text_in_a_brief_without_variables() -> None:
    text = "campaign: c\nbrand: lumen\nshots:\n  - {name: a, character: Bo, prompt: 'a {mascot} on {date}'}\n"
    brief = parsed(text)
    assert filled(brief, AT).shots[0].prompt == "a {mascot} on {date}"
    assert sha256_of(filled(brief, AT).model_dump(mode="json")) == sha256_of(brief.model_dump(mode="json"))


@pytest.mark.parametrize(
    ("change", "to", "line", "told"),
    [
        ("{product} ", "{produkt} ", 7, "no variable 'produkt'"),
        ("{weekday}", "{}", 8, "no variable ''"),
        ("product: [", "Product: [", 4, "small letters"),
        ("product: [", "date: [", 4, "of the day"),
        ("[desk lamp, floor lamp]", "[Lamp, lamp!]", 4, "tell these words apart"),
        ("[desk lamp, floor lamp]", "[]", 4, ""),
        ("shots:", "defaults: {negative_prompt: '{product}'}\nshots:", 6, "Defaults know of the day alone"),
        ("shots:", "budget: {pictures: 3, per: week}\nshots:", 1, "needs a schedule"),
        ("shots:", "budget: {per: run}\nshots:", 6, "pictures, gpu_seconds or both"),
    ],
)
def test_a_mistake_is_told_by_its_line(change: str, to: str, line: int, told: str) -> None:
    with pytest.raises(BriefInvalid) as caught:
        parsed(OPEN.replace(change, to))
    assert any(p.line == line and told in p.message for p in caught.value.problems), caught.value.problems


def test_words_that_make_too_many_shots_are_refused() -> None:
    many = ", ".join(f"w{n}" for n in range(200))
    text = OPEN.replace("[desk lamp, floor lamp]", f"[{many}]").replace("{de: in Berlin, us: in New York}", f"[{many}]")
    with pytest.raises(BriefInvalid, match="more than 10000 shots"):
        parsed(text)


def test_words_that_make_no_shot_say_which() -> None:
    clash = OPEN.replace("name: bo", "name: pip-desk-lamp-de")
    with pytest.raises(BriefInvalid, match="Two shots become 'pip-desk-lamp-de'"):
        filled(parsed(clash), AT)
