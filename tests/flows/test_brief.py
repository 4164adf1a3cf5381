"""A brief with mistakes is refused whole, with file, line and field of each."""

from __future__ import annotations

import pytest

from asset_store.errors import BriefInvalid
from flows.brief import parse_brief
from tests.studio_home import EXAMPLES, SMALL_BRIEF


def problems(text: str) -> list[tuple[int, str]]:
    with pytest.raises(BriefInvalid) as caught:
        parse_brief(text, file="brief.yaml")
    return [(p.line, p.field) for p in caught.value.problems]


def test_the_shipped_brief_is_valid() -> None:
    brief = parse_brief((EXAMPLES / "spring.yaml").read_text(), file="spring.yaml")
    assert [s.character for s in brief.shots] == ["Pip", "Mora", "Bo", "Tilda"]


@pytest.mark.parametrize(
    ("change", "to", "line", "field"),
    [
        ("steps: 3", "steps: many", 4, "defaults.steps"),
        ("variants: 3", "variants: 0", 4, "defaults.variants"),
        ("brand: lumen", "brand: Lumen Toys", 2, "brand"),
        ("character: Pip", "charakter: Pip", 6, "shots[0].charakter"),
        ("name: mora-snow", "name: pip-beach", 7, "shots[1].name"),
        ("seed: 3", "seed: -1", 3, "seed"),
        ("size: 64x64", "size: big", 4, "defaults.size"),
        ("character: Mora", "character: Mora, seeds: [1], seed: 2", 7, "shots[1]"),
        ("character: Mora", "character: Mora, window: [0.8, 0.2]", 7, "shots[1]"),
        ("steps: 3", "blocks: stile", 4, "defaults.blocks"),
        ("steps: 3", "blocks: {up_blocks.1: yes}", 4, "defaults.blocks"),
        ("steps: 3", "scale_steps: [0.2, -1]", 4, "defaults.scale_steps[1]"),
        ("steps: 3", "combine: sum", 4, "defaults.combine"),
        ("steps: 3", "guidance_window: [0.6, 0]", 4, "defaults.guidance_window"),
        ("steps: 3", "style: {scael: 1}", 4, "defaults.style.scael"),
        ("steps: 3", "source: {picture: a.png, strength: 0}", 4, "defaults.source.strength"),
        ("steps: 3", "regions: [{name: left}]", 4, "defaults.regions[0]"),
        ("steps: 3", "regions: [{name: Left, box: [0, 0, 1, 1]}]", 4, "defaults.regions[0].name"),
        ("steps: 3", "regions: [{name: left, box: [0, 0, 2, 1]}]", 4, "defaults.regions[0].box"),
        ("character: Mora", "character: Mora, region: left", 7, "shots[1].region"),
        (
            "character: Mora",
            "character: Mora, regions: [{name: a, box: [0, 0, 1, 1]}, {name: a, mask: m.png}]",
            7,
            "shots[1].regions[1].name",
        ),
        (
            "character: Mora",
            "character: Mora, region: a, regions: [{name: a, box: [0, 0, 1, 1], character: Pip}]",
            7,
            "shots[1].region",
        ),
    ],
)
def test_a_mistake_is_named_by_line_and_field(change: str, to: str, line: int, field: str) -> None:
    assert (line, field) in problems(SMALL_BRIEF.replace(change, to))


def test_every_mistake_is_told_at_once() -> None:
    wrong = SMALL_BRIEF.replace("seed: 3", "seed: x").replace("steps: 3", "steps: 900")
    assert [line for line, _ in problems(wrong)] == [3, 4]


def test_an_empty_file_is_not_a_brief() -> None:
    assert problems("")


def test_the_documented_shots_are_valid() -> None:
    text = (EXAMPLES.parent.parent / "docs" / "brief.md").read_text()
    shown = [part.split("```")[0] for part in text.split("```yaml\n")[1:]]
    shots = [part for part in shown if part.startswith("shots:")]
    assert len(shots) == 4
    for part in shots:
        assert parse_brief(f"campaign: shown\nbrand: lumen\n{part}", file="brief.yaml").shots
