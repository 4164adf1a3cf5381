"""Near-duplicates and outliers are dropped, the rest is ranked, and every reference is told why."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from sqlalchemy import select

from asset_store.tables import LineageRecord
from flows.brief import parse_brief
from flows.campaign import run_campaign
from flows.choosing import (
    LIKELY_COSINE,
    RankedReference,
    choose,
    is_same,
    list_references,
    near_duplicates,
    outliers,
    ranked,
    unit,
)
from flows.library import ingest_library
from flows.planning import plan_campaign
from flows.settings import load_settings
from flows.text_tower import text_tower
from flows.wiring import engine, open_store
from ipadapter_engine.evaluation.likeness import TEXT_PROJECTION, TEXT_PROJECTION_KEY
from tests.ipadapter_engine import tiny_checkpoints as tiny
from tests.studio_home import Home

DIM = 6


@st.composite
def libraries(draw: st.DrawFn) -> list[RankedReference]:
    """Pictures in random directions, some of them copies, near copies and far strays of others."""
    numbers = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(1, 24))
    centre = numbers.normal(size=DIM) * draw(st.floats(0, 4))
    vectors = numbers.normal(size=(count, DIM)) * draw(st.floats(0.01, 1)) + centre
    hashes = [int.from_bytes(numbers.bytes(32), "big") for _ in range(count)]
    for i in range(1, count):
        if draw(st.booleans()):
            twin = draw(st.integers(0, i - 1))
            vectors[i] = vectors[twin] + numbers.normal(size=DIM) * 1e-4
            hashes[i] = hashes[twin] ^ (1 << draw(st.integers(0, 255)))
    sizes = draw(st.lists(st.integers(1, 4), min_size=count, max_size=count))
    return [_candidate(i, vectors[i], hashes[i], sizes[i] * 1000) for i in range(count)]


def _candidate(i: int, vector: np.ndarray, hash_: int, pixels: int = 1000, weight: float = 1.0) -> RankedReference:
    return RankedReference(f"{i:03}.png", f"{i:064x}", vector, pixels, weight, lambda: hash_)


@given(libraries())
@settings(max_examples=150, deadline=None)
def test_each_reference_is_told_once_and_never_all_are_dropped(library: list[RankedReference]) -> None:
    told = choose(library)
    assert sorted(c.sha256 for c in told) == sorted(c.sha256 for c in library)
    kept = [c for c in told if c.kept]
    assert kept
    assert [c.rank for c in kept] == list(range(1, len(kept) + 1))
    assert all(c.reason for c in told)


@given(libraries(), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_the_order_in_which_a_library_is_listed_does_not_matter(library: list[RankedReference], random: object) -> None:
    mixed = list(library)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    assert choose(mixed) == choose(library)


@given(libraries())
@settings(max_examples=150, deadline=None)
def test_no_two_kept_references_show_the_same_and_every_twin_has_a_kept_one_that_is_no_worse(
    library: list[RankedReference],
) -> None:
    better = sorted(range(len(library)), key=lambda i: (-library[i].pixels, i))
    vectors = np.stack([c.embedding for c in library])
    dropped = near_duplicates(vectors, better, lambda i: library[i].hash())
    alike = unit(vectors) @ unit(vectors).T
    kept = [i for i in range(len(library)) if i not in dropped]
    for i in kept:
        for j in kept:
            if i < j and alike[i, j] >= LIKELY_COSINE:
                assert not is_same((library[i].hash() ^ library[j].hash()).bit_count(), alike[i, j])
    for row, (other, _) in dropped.items():
        assert other in kept
        assert library[other].pixels >= library[row].pixels


@given(libraries())
@settings(max_examples=150, deadline=None)
def test_typicality_falls_along_the_ranking(library: list[RankedReference]) -> None:
    typicality = [c.typicality for c in choose(library) if c.kept]
    assert typicality == sorted(typicality, reverse=True)  # type: ignore[type-var]


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.floats(0.01, 3))
@settings(max_examples=150, deadline=None)
def test_at_most_half_are_outliers_and_they_are_the_farthest(seed: int, count: int, spread: float) -> None:
    numbers = np.random.default_rng(seed)
    vectors = np.eye(1, DIM)[0] + numbers.normal(size=(count, DIM)) * spread
    odd = outliers(vectors)
    assert len(odd) <= count / 2
    rows = unit(vectors)
    distances = 1 - rows @ unit(np.median(rows, axis=0))
    inside = [distances[i] for i in range(count) if i not in odd]
    assert all(distances[i] >= max(inside) for i in odd)


def test_a_stray_is_dropped_and_a_side_view_is_not() -> None:
    front = unit(np.eye(1, DIM)[0] + np.linspace(-0.05, 0.05, 5)[:, None] * np.ones(DIM))
    side = unit(np.array([1, 0.55, 0, 0, 0, 0]))
    stray = unit(np.array([0, 0, 0, 1, 0, 0]))
    assert set(outliers(np.vstack([front, side, stray]))) == {6}


def test_three_references_have_no_outlier() -> None:
    assert outliers(np.eye(3)) == {}


def test_the_prompt_decides_between_references_that_are_equally_typical() -> None:
    vectors = unit(np.array([[1, 0.3, 0], [1, -0.3, 0]]))
    order, _, fitness = ranked(vectors, np.array([0.0, -1.0, 0.0]))
    assert order == [1, 0]
    assert fitness is not None
    assert fitness[1] > fitness[0]
    assert ranked(vectors, None)[2] is None


def test_of_two_copies_the_larger_is_kept_and_of_equal_ones_the_heavier() -> None:
    def kept(library: Sequence[RankedReference]) -> str:
        return next(c.key for c in choose(library) if c.kept)

    vector = np.ones(DIM)
    assert kept([_candidate(0, vector, 7, 100), _candidate(1, vector, 7, 200)]) == "001.png"
    assert kept([_candidate(0, vector, 7), _candidate(1, vector, 7, weight=2)]) == "001.png"
    assert kept([_candidate(0, vector, 7), _candidate(1, vector, 7)]) == "000.png"


def test_the_text_half_of_the_encoders_clip_is_found_where_it_is_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without, beside = tiny.write_studio(tmp_path / "without"), tiny.write_studio(tmp_path / "beside")
    monkeypatch.setenv("ONMODEL_ENGINE__BASE", str(without))
    assert text_tower(load_settings()) is None
    projection = torch.randn(tiny.EMBED, tiny.WIDTH, generator=torch.Generator().manual_seed(1))
    save_file({TEXT_PROJECTION_KEY: projection}, beside / "image_encoder" / TEXT_PROJECTION)
    monkeypatch.setenv("ONMODEL_ENGINE__BASE", str(beside))
    tower = text_tower(load_settings())
    assert tower is not None
    said = tower.texts(["a mascot", "a city at night", "a mascot"])
    assert said.shape == (3, engine(load_settings()).encoder.dim)
    assert said[0] == pytest.approx(said[2])
    assert not np.allclose(said[0], said[1])


# ---------------------------------------------------------------------------- a real library

CHOOSING_BRIEF = """\
campaign: chosen
brand: lumen
defaults: {steps: 2, choose: 2, size: 64x64}
shots:
  - {name: pip, character: Pip, prompt: "a mascot, on the beach"}
  - {name: bo, character: Bo, prompt: "a mascot, in the city", references: [bo/side.png]}
"""


@pytest.fixture
def crowded(home: Home) -> Home:
    """Pip's library with a smaller copy of one reference and a picture that is someone else altogether."""
    folder = home.library / "pip"
    with Image.open(folder / "front.png") as front:
        front.resize((front.width * 3 // 4, front.height * 3 // 4)).save(folder / "small.png")
    with Image.open(home.library / "mora" / "front.png") as other:
        other.save(folder / "odd.png", compress_level=1)
    file = home.library / "library.yaml"
    listed = yaml.safe_load(file.read_text())
    for name in ("small", "odd"):
        listed["references"].append({"file": f"pip/{name}.png", "character": "Pip", "role": "identity"})
    file.write_text(yaml.safe_dump(listed))
    asyncio.run(ingest_library(str(home.library), "pat"))
    return home


def by_key(told: dict[str, object]) -> dict[str, dict[str, object]]:
    return {r["key"]: r for r in told["references"]}  # type: ignore[attr-defined]


@pytest.mark.usefixtures("prefect")
def test_a_real_library_is_ranked_with_its_copy_and_its_stray_dropped(crowded: Home) -> None:
    told = list_references("Pip", brand=None, prompt="")
    rows = by_key(told)
    assert len(rows) == 6
    assert "near-duplicate of pip/front.png" in str(rows["pip/small.png"]["reason"])
    assert "is larger" in str(rows["pip/small.png"]["reason"])
    assert str(rows["pip/odd.png"]["reason"]).startswith("outlier")
    assert {k for k, r in rows.items() if r["kept"]} == {
        f"pip/{n}.png" for n in ("front", "side", "surprised", "waving")
    }
    spoken = crowded.onmodel("references", "Pip")
    assert spoken.code == 0, spoken.err
    assert "near-duplicate of pip/front.png" in spoken.out
    assert (
        "Known characters: lumen/Bo, lumen/Mora, lumen/Pip, lumen/Tilda" in crowded.onmodel("references", "Popeye").err
    )


@pytest.mark.usefixtures("prefect")
def test_the_plan_and_the_lineage_say_how_each_reference_was_chosen(crowded: Home) -> None:
    with open_store() as store:
        pip, bo = plan_campaign(store, parse_brief(CHOOSING_BRIEF, file="brief.yaml")).as_json()["shots"]
    best = [c for c in list_references("Pip", brand=None, prompt="a mascot, on the beach")["references"] if c["kept"]]
    assert [line.split(" (")[0] for line in pip["references"]] == [c["key"] for c in best[:2]]
    assert "typicality" in pip["references"][0]
    assert any("outlier" in line for line in pip["left_out"])
    assert (bo["references"], bo["left_out"]) == (["bo/side.png"], [])
    asyncio.run(run_campaign(CHOOSING_BRIEF, "brief.yaml", "pat"))
    with crowded.database.transaction() as session:
        records = {r.record["run"]["shot"]: r.record for r in session.scalars(select(LineageRecord))}
    assert [r["chosen"] for r in records["bo"]["references"]] == ["named in the brief"]
    assert [r["part"] for r in records["bo"]["references"]] == [["identity adapter"]]
    for row, choice in zip(records["pip"]["references"], best[:2], strict=True):
        assert row["chosen"] == f"chosen, {choice['reason']}"
