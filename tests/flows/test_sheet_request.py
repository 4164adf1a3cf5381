"""What a character sheet is asked for with, and the brief that makes it."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from pydantic import ValidationError

from flows.sheet_request import MOST_CELLS, SheetRequest

RUN = uuid.UUID("00000000-0000-4000-8000-000000000007")


def asked(**fields: Any) -> SheetRequest:
    return SheetRequest.model_validate({"brand": "lumen", "character": "Pip", **fields})


def test_each_row_varies_one_thing_of_the_first_view() -> None:
    sheet = asked(
        views=["front", "back view"], expressions=["sad"], poses=["waving"], outfits=["a red scarf"], style="pixel"
    )
    assert [(c.section, c.label) for c in sheet.cells] == [
        ("views", "front"), ("views", "back view"), ("expressions", "sad"), ("poses", "waving"), ("outfits", "a red scarf"),
    ]  # fmt: skip
    assert [c.prompt for c in sheet.cells] == [
        "a mascot, standing, happy, front view, in a studio, pixel style",
        "a mascot, standing, happy, back view, in a studio, pixel style",
        "a mascot, standing, sad, front view, in a studio, pixel style",
        "a mascot, waving, happy, front view, in a studio, pixel style",
        "a mascot, standing, happy, front view, wearing a red scarf, in a studio, pixel style",
    ]


def test_no_prompt_says_who() -> None:
    assert all("pip" not in c.prompt.casefold() for c in asked(expressions=["happy"], outfits=["a hat"]).cells)


def test_the_same_sheet_again_asks_for_the_same_pictures() -> None:
    one, two = asked().brief(RUN), asked().brief(uuid.UUID("12345678-0000-4000-8000-000000000008"))
    assert [s.seeds for s in one.shots] == [s.seeds for s in two.shots]
    assert one.campaign != two.campaign
    assert [s.seeds for s in asked(seed=1).brief(RUN).shots] != [s.seeds for s in one.shots]
    assert len({s.seeds for s in one.shots}) == len(one.shots)


def test_shots_have_names_of_their_own_whatever_is_written() -> None:
    sheet = asked(character="Zoë Ø", views=["front", "Front!", "前"], expressions=["x" * 80])
    brief = sheet.brief(RUN)
    assert len({shot.name for shot in brief.shots}) == 4
    assert brief.campaign == "sheet-zo-000000000000"


def test_settings_of_the_sheet_are_the_briefs() -> None:
    brief = asked(format="256x256", scale=0.5, steps=3, identity_min=0.4, stages=["brand", "legal"]).brief(RUN)
    assert (brief.defaults.size, brief.defaults.scale, brief.defaults.steps, brief.stages) == (
        "256x256",
        0.5,
        3,
        ("brand", "legal"),
    )
    assert brief.checks.identity_min == 0.4


@pytest.mark.parametrize(
    "fields",
    [
        {"views": []}, {"views": ["front", "FRONT"]}, {"views": [f"v{i}" for i in range(25)]},
        {"expressions": [f"e{i}" for i in range(24)], "poses": [f"p{i}" for i in range(24)], "outfits": [f"o{i}" for i in range(12)]},
        {"views": ["a, b"]}, {"views": ["  "]}, {"views": ["a\nb\0"]}, {"format": "big"}, {"attempts": 0}, {"attempts": 6}, {"stages": ["brand", "brand"]}, {"brand": "No Slug"},
        {"unknown": 1}, {"scale": float("nan")}, {"style": ""}, {"stages": []}, {"seed": -1}, {"character": ""},
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        asked(**fields)


def test_as_many_cells_as_there_may_be() -> None:
    words = [f"e{i}" for i in range(24)]
    assert len(asked(expressions=words, poses=words, outfits=words[:8]).cells) == MOST_CELLS
