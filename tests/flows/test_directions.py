"""How adapters speak, negative references, regions and a picture to start from: in the recipe, the request, the picture and
lineage, under rights, and told by line."""

from __future__ import annotations

import asyncio
import io
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from rich.console import Console
from sqlalchemy import select

from asset_store import retention
from asset_store.database import Database, open_database
from asset_store.errors import BriefInvalid, NotFound, RightsRefused
from asset_store.lineage.tree import tree_of
from asset_store.repositories import jobs as job_table
from asset_store.tables import Asset, Job, JobState, LineageRecord, Reference, ReferenceState
from flows import recipe_keys, recipes
from flows.brief import parse_brief
from flows.contact_sheet import made_from
from flows.directions import box_mask
from flows.finishing import waits_for_its_job
from flows.library import ingest_library
from flows.loading import picture_of
from flows.planning import plan_campaign, submit_campaign
from flows.requesting import requests_of
from flows.retake_plan import Wishes, plan_retake
from flows.starting import BriefText, known
from flows.wiring import engine, open_store
from flows.worker import Worker
from ipadapter_engine.emphasis import AdapterSettings
from ipadapter_engine.errors import RequestRefused
from ipadapter_engine.requests import GenerationRequest
from studio.cli.asking import _drawn
from studio.cli.campaigns import _made_with
from tests.database import _named, _numbers
from tests.ipadapter_engine import tiny_checkpoints as tiny

SIDE_PX = 32
LIBRARY = """\
brand: {name: lumen}
licence: {name: house artwork}
characters: [{name: Pip}, {name: Mora}]
references:
  - {file: pip/front.png, character: Pip, role: identity}
  - {file: pip/side.png, character: Pip, role: identity}
  - {file: pip/tall.png, character: Pip, role: identity}
  - {file: mora/front.png, character: Mora, role: identity}
  - {file: mood.png, role: style}
  - {file: crowd.png, role: style}
  - {file: layouts/beach.png, role: composition}
  - {file: layouts/mask.png, role: composition}
"""
BRIEF = """\
campaign: parts
brand: lumen
defaults: {steps: 2, variants: 1, seeds_left_out}
shots:
  - {name: one, character: Pip, prompt: red fox, references: [pip/front.png]%s}
""".replace(", seeds_left_out", "")
ALL = (
    ", blocks: {up_blocks.1: 1.0, others: 0.2}, scale_steps: [0.2, 1.0], combine: average, guidance_window: [0, 0.6],"
    " style_references: [mood.png], style: {blocks: {mid_block: 0.5}, scale: 0.7, window: [0.2, 0.9], combine: add},"
    " negative_references: [{file: crowd.png, weight: 0.5}],"
    " source: {picture: layouts/beach.png, strength: 0.6, mask: layouts/mask.png},"
    " regions: [{name: left, box: [0, 0, 0.5, 1]},"
    " {name: right, mask: layouts/mask.png, character: Mora, references: [mora/front.png]}], region: left"
)
TWO = (
    ", region: left, regions: [{name: left, box: [0, 0, 0.5, 1]},"
    " {name: right, mask: layouts/mask.png, character: Mora, references: choose}]"
)


def draw(file: Path, colour: str, box: tuple[int, int, int, int], side_px: int = 64) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (side_px, side_px), "black")
    ImageDraw.Draw(picture).rectangle(box, fill=colour)
    picture.save(file)


@pytest.fixture(scope="module")
def studio(database: Database, prefect: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with a tiny base that has a style adapter, and a small library, embedded; the engine starts once."""
    path, name = tmp_path_factory.mktemp("directions"), f"directions_{next(_numbers)}"
    with database.direct() as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE migrated".encode())
    with open_database(_named(database, name), path) as opened, pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONMODEL_HOME", str(path))
        patch.setenv("ONMODEL_DATABASE__URL", opened.url.render_as_string(hide_password=False))
        patch.setenv("ONMODEL_ENGINE__BASE", str(tiny.write_studio(path / "base")))
        boxes = {"pip/front.png": "gold", "pip/side.png": "orange", "mora/front.png": "navy", "mood.png": "teal",
                 "crowd.png": "gray", "layouts/beach.png": "tan"}  # fmt: skip
        for place, (file, colour) in enumerate(boxes.items()):
            draw(path / "lumen" / file, colour, (4 + 5 * place, 8, 30 + 5 * place, 50))
        draw(path / "lumen" / "layouts/mask.png", "white", (32, 0, 63, 63))
        tall = Image.new("RGB", (64, 160), "gold")
        tall.paste("navy", (0, 80, 64, 160))
        tall.save(path / "lumen" / "pip/tall.png")
        (path / "lumen" / "library.yaml").write_text(LIBRARY)
        asyncio.run(ingest_library(str(path / "lumen"), "pat"))
        yield path
    with database.direct() as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def planned(more: str, folder: Path | None = None) -> Any:
    with open_store() as store:
        return plan_campaign(store, parse_brief(BRIEF % more, file="brief.yaml"), folder=folder)


def recipe_of(more: str, folder: Path | None = None) -> dict[str, Any]:
    return dict(planned(more, folder).pictures[0].job.recipe)


def submit(more: str, name: str) -> tuple[uuid.UUID, list[str]]:
    with open_store() as store:
        brief = parse_brief((BRIEF % more).replace("campaign: parts", f"campaign: {name}"), file="brief.yaml")
        return submit_campaign(store, plan_campaign(store, brief), by="pat", trigger="test")


def request_of(recipe: dict[str, Any]) -> GenerationRequest:
    with open_store() as store:
        return requests_of(store, engine(store.settings), recipe)[0]


@contextmanager
def withdrawn(key: str) -> Iterator[None]:
    def put(state: ReferenceState) -> None:
        with open_store() as store, store.database.transaction() as session:
            session.scalars(select(Reference).where(Reference.key == key)).one().state = state

    put(ReferenceState.WITHDRAWN)
    try:
        yield
    finally:
        put(ReferenceState.ACTIVE)


# ---------------------------------------------------------------------------- recipe and request


def test_the_request_holds_exactly_what_the_brief_says(studio: Path) -> None:
    planned_here = planned(ALL)
    with open_store() as store:
        for data in planned_here.directions["one"].blobs.values():
            store.blobs.put(data, "image/png")
    request = request_of(planned_here.pictures[0].job.recipe)
    assert request.settings == {
        "identity": AdapterSettings({"up_blocks.1": 1.0, "others": 0.2}, None, (0.2, 1.0), "average"),
        "style": AdapterSettings({"mid_block": 0.5}, (0.2, 0.9), (), "add"),
    }
    assert request.scales == {"style": 0.7}
    assert request.guidance_window == (0.0, 0.6)
    heard = [(r.adapter, r.region, r.negative, r.weight) for r in request.references]
    assert heard == [
        ("identity", "left", False, 1.0), ("identity", "right", False, 1.0), ("style", None, False, 1.0),
        ("identity", None, True, 0.5),
    ]  # fmt: skip
    left = np.zeros((SIDE_PX, SIDE_PX), np.uint8)
    left[:, : SIDE_PX // 2] = 255
    assert np.array_equal(request.regions["left"], left)
    with Image.open(studio / "lumen/layouts/mask.png") as mask, Image.open(studio / "lumen/layouts/beach.png") as beach:
        assert np.array_equal(request.regions["right"], np.asarray(mask.convert("L")))
        assert request.source is not None
        assert np.array_equal(request.source.picture, np.asarray(beach))
        assert np.array_equal(request.source.mask, np.asarray(mask.convert("L")))
    assert request.source.strength == 0.6


def test_what_changes_nothing_is_not_in_the_recipe(studio: Path) -> None:
    nothing = ", combine: concat, scale_steps: [1, 1], guidance_window: [0, 1], style: {scale: 0.5}, regions: []"
    silent = ", style_references: [mood.png], style: {scale: 0}"
    text_only = f"{TWO}, negative_references: [crowd.png], blocks: {{others: 0.5}}, scale: 0"
    plain, first, second, words, third = recipes_of("", nothing, silent, ", scale: 0", text_only)
    assert plain["recipe"] == recipe_keys.PLAIN
    assert first == second == plain
    assert third == words


DETERMINING = (
    "",
    ", blocks: {others: 0.5}",
    ", blocks: {others: 0.6}",
    ", scale_steps: [0.5]",
    ", scale_steps: [0.5, 1]",
    ", combine: add",
    ", combine: average",
    ", guidance_window: [0, 0.5]",
    ", guidance_window: [0, 0.6]",
    ", negative_references: [crowd.png]",
    ", negative_references: [{file: crowd.png, weight: 0.5}]",
    ", negative_references: [{file: crowd.png, tiled: true}]",
    ", style_references: [mood.png]",
    ", style_references: [{file: mood.png, tiled: true}]",
    ", style_references: [mood.png], style: {scale: 0.5}",
    ", style_references: [mood.png], style: {window: [0, 0.5]}",
    ", source: {picture: layouts/beach.png}",
    ", source: {picture: layouts/beach.png, strength: 0.5}",
    ", source: {picture: layouts/beach.png, mask: layouts/mask.png}",
    ", regions: [{name: a, box: [0, 0, 0.5, 1]}]",
    ", regions: [{name: a, box: [0, 0, 0.6, 1]}]",
    ", regions: [{name: a, mask: layouts/mask.png}]",
    ", regions: [{name: a, box: [0, 0, 0.5, 1]}], region: a",
    TWO,
)


def recipes_of(*shots: str) -> list[dict[str, Any]]:
    """Of shots of one brief that differ in this alone."""
    head, line = BRIEF.split("shots:\n")
    lines = [(line % f", seeds: [5]{more}").replace("name: one", f"name: n{i}", 1) for i, more in enumerate(shots)]
    with open_store() as store:
        plan = plan_campaign(store, parse_brief(f"{head}shots:\n{''.join(lines)}", file="brief.yaml"))
    return [dict(p.job.recipe) for p in plan.pictures]


def test_each_thing_that_determines_the_picture_is_in_its_key(studio: Path) -> None:
    keys = [recipe_keys.job_key(recipe) for recipe in recipes_of(*DETERMINING)]
    assert [keys.index(key) for key in keys] == list(range(len(DETERMINING)))


def test_names_of_regions_and_files_decide_nothing(studio: Path, tmp_path: Path) -> None:
    one, other = recipes_of(TWO, TWO.replace("left", "links").replace("name: right", "name: rechts"))
    assert recipe_keys.job_key(one) == recipe_keys.job_key(other)
    draw(tmp_path / "a.png", "tan", (2, 2, 20, 20))
    draw(tmp_path / "b.png", "tan", (2, 2, 20, 20))
    first, second = (recipe_of(f", source: {{picture: {name}.png}}", tmp_path) for name in "ab")
    assert first["source"]["picture"] != second["source"]["picture"]
    assert recipe_keys.job_key(first) == recipe_keys.job_key(second)


def tall(more: str) -> str:
    return BRIEF.replace("[pip/front.png]", f"[{{file: pip/tall.png, weight: 0.6{more}}}]") % ""


def plan_of(text: str) -> Any:
    with open_store() as store:
        return plan_campaign(store, parse_brief(text, file="brief.yaml"))


def test_a_tall_reference_is_seen_whole_where_the_brief_says_so(studio: Path) -> None:
    cropped, whole = (dict(plan_of(tall(more)).pictures[0].job.recipe) for more in ("", ", tiled: true"))
    assert (cropped["recipe"], whole["recipe"]) == (recipe_keys.PLAIN, recipe_keys.DIRECTED)
    assert recipe_keys.job_key(cropped) != recipe_keys.job_key(whole)
    middle, tiles = request_of(cropped).references, request_of(whole).references
    assert [r.weight for r in middle] == [0.6]
    assert [r.weight for r in tiles] == pytest.approx([0.2] * 3)
    with open_store() as store, Image.open(studio / "lumen/pip/tall.png") as picture:
        said = engine(store.settings).encoder.encode_tiled(picture)
    assert len(said) == 3
    for reference, one in zip(tiles, said, strict=True):
        np.testing.assert_allclose(reference.embedding, one.pooled, atol=1e-6)
    differs = [float(np.abs(tile.embedding - middle[0].embedding).max()) > 1e-3 for tile in tiles]
    assert differs == [True, False, True]  # the middle one is what is seen of it otherwise
    assert _made_with(plan_of(tall(", tiled: true")).as_json()["shots"][0])[0] == "pip/tall.png (in tiles)"


def test_a_worker_of_a_release_that_does_not_know_it_leaves_it_to_others(studio: Path) -> None:
    """Recipes of kinds 1 and 2 are those that earlier releases make."""
    new = recipes_of(TWO, f"{TWO}, best_of: 2", ", blocks: {others: 0.5}", ", guidance_window: [0, 0.5]")
    assert [r["recipe"] for r in new] == [recipe_keys.DIRECTED] * 4 == [3] * 4


def test_a_box_lies_on_whole_pixels_and_is_never_empty() -> None:
    assert box_mask((0.5, 0.0, 1.0, 0.5), 4, 4).tolist() == [[0, 0, 255, 255]] * 2 + [[0] * 4] * 2
    assert (box_mask((0.99, 0.99, 1.0, 1.0), 8, 8) == 255).sum() == 1


# ---------------------------------------------------------------------------- rights


@pytest.mark.parametrize(
    ("more", "key", "part"),
    [
        (", source: {picture: layouts/beach.png}", "layouts/beach.png", "source picture"),
        (", source: {picture: layouts/beach.png, mask: layouts/mask.png}", "layouts/mask.png", "mask"),
        (", negative_references: [crowd.png]", "crowd.png", None),
        (TWO, "mora/front.png", None),
        (TWO, "layouts/mask.png", "mask"),
    ],
)
def test_what_is_withdrawn_blocks_the_job(studio: Path, more: str, key: str, part: str | None) -> None:
    recipe = recipe_of(more)
    assert part in {r.get("part") for r in recipe["references"] if r["key"] == key}
    with withdrawn(key):
        with pytest.raises(RightsRefused, match=key) if "choose" not in more or part else pytest.raises(NotFound):
            planned(more)
        with pytest.raises(RightsRefused, match=key):
            request_of(recipe)


def test_a_copy_of_a_reference_beside_the_brief_is_still_that_reference(studio: Path, tmp_path: Path) -> None:
    with Image.open(studio / "lumen/layouts/beach.png") as picture:
        picture.save(tmp_path / "mine.png", compress_level=1)
    recipe = recipe_of(", source: {picture: mine.png}", tmp_path)
    assert [(r["key"], r["part"]) for r in recipe["references"][1:]] == [("layouts/beach.png", "source picture")]
    with withdrawn("layouts/beach.png"), pytest.raises(RightsRefused):
        planned(", source: {picture: mine.png}", tmp_path)


# ---------------------------------------------------------------------------- end to end


def test_two_characters_in_two_regions_from_brief_to_lineage(studio: Path) -> None:
    campaign, keys = submit(TWO, "two")
    plain, _ = submit("", "plain")
    with open_store() as store:
        assert Worker(store, engine(store.settings)).run(until=lambda: True).problems == []
        with store.database.transaction() as session:
            assert job_table.states(session, keys) == {JobState.SUCCEEDED: 1}
            assets = {a.campaign_id: a for a in session.scalars(select(Asset).where(~waits_for_its_job()))}
            asset, other = assets[campaign], assets[plain]
            assert asset.current is not None
            assert other.current is not None
            assert asset.current.pixel_sha256 != other.current.pixel_sha256
            (check,) = [c for c in asset.current.checks if c.name == "identity"]
            assert "several characters" in check.message
            rows = select(LineageRecord).where(LineageRecord.version_id == asset.current.id)
            record = session.scalars(rows).one().record
            told = Console(width=200, file=io.StringIO(), record=True)
            told.print(_drawn(tree_of(session, asset).as_json()))
            recipe = session.get_one(Job, asset.job_key).recipe
            shown = {r["key"] for r in recipes.of_identity(recipe)}
            mask = record["settings"]["regions"][1]["sha256"]
            assert retention.names(session, {mask}) == {mask}
            retake = plan_retake(session, asset, Wishes(prompt="blue cat", same_seed=True))
    assert shown == {"pip/front.png", "mora/front.png"}
    parts = {r["key"]: r["part"] for r in record["references"]}
    assert parts == {
        "pip/front.png": ["identity adapter in region left"],
        "mora/front.png": ["identity adapter in region right"],
        "layouts/mask.png": ["mask"],
    }
    assert [(r["name"], r["character"]) for r in record["settings"]["regions"]] == [("left", "Pip"), ("right", "Mora")]
    text = told.export_text()
    assert "region left: Pip, box [0, 0, 0.5, 1]" in text
    assert "region right: Mora, mask layouts/mask.png" in text
    assert {c.name for c in retake.changes} == {"prompt"}
    assert retake.job.recipe["regions"] == recipe["regions"]


def test_lineage_says_that_a_reference_was_seen_in_tiles(studio: Path) -> None:
    with open_store() as store:
        brief = parse_brief(tall(", tiled: true").replace("campaign: parts", "campaign: tall"), file="brief.yaml")
        campaign, _ = submit_campaign(store, plan_campaign(store, brief), by="pat", trigger="test")
        assert Worker(store, engine(store.settings)).run(until=lambda: True).problems == []
        with store.database.transaction() as session:
            asset = session.scalars(select(Asset).where(Asset.campaign_id == campaign)).one()
            assert asset.current is not None
            (told,) = asset.current.lineage.record["references"]
    assert (told["key"], told["part"], told["weight"]) == ("pip/tall.png", ["identity adapter, seen in tiles"], 0.6)


def test_a_part_is_repainted_and_the_rest_stays(studio: Path) -> None:
    campaign, _ = submit(", source: {picture: layouts/beach.png, mask: layouts/mask.png}", "repaint")
    with open_store() as store:
        assert Worker(store, engine(store.settings)).run(until=lambda: True).problems == []
        with store.database.transaction() as session:
            asset = session.scalars(select(Asset).where(Asset.campaign_id == campaign)).one()
            assert asset.current is not None
            made = np.asarray(picture_of(store, asset.current.sha256))
            record = asset.current.lineage.record
            recipe = session.get_one(Job, asset.job_key).recipe
        assert [t.first for t in made_from(store, recipe)] == ["reference", "starts from"]
    with Image.open(studio / "lumen/layouts/beach.png") as beach:
        before = np.asarray(beach.resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS))
    assert np.array_equal(made[:, :15], before[:, :15])
    assert not np.array_equal(made[:, 17:], before[:, 17:])
    assert {r["key"]: r["part"] for r in record["references"]}["layouts/beach.png"] == ["source picture"]


# ---------------------------------------------------------------------------- told


def test_the_plan_names_what_a_shot_says(studio: Path) -> None:
    (shot,) = planned(ALL).as_json()["shots"]
    told = _made_with(shot)
    assert "pip/front.png, in region left" in told
    assert "mora/front.png, in region right" in told
    assert "away from crowd.png" in told
    assert "starts from layouts/beach.png, strength 0.6, repainted within layouts/mask.png" in told
    assert "region right: Mora, mask layouts/mask.png" in told
    assert "guidance window [0.0, 0.6]" in told
    assert any(
        line.startswith("identity adapter: blocks up_blocks.1 1, others 0.2; factors of steps 0.2, 1") for line in told
    )


@pytest.mark.parametrize(
    ("more", "refused", "told"),
    [
        (", blocks: {up_blocks.7: 1.0}", RequestRefused, "no attention layer lies under the block"),
        (", blocks: style", RequestRefused, "no preset 'style'"),
        (", source: {picture: wide.png}", RequestRefused, "another shape"),
        (", source: {picture: layouts/beach.png, mask: black.png}", RequestRefused, "black all over"),
        (", regions: [{name: a, mask: white.png}]", RequestRefused, "white all over"),
        (", source: {picture: gone.png}", NotFound, "no picture gone.png"),
        (", negative_references: [gone.png]", NotFound, "negative reference"),
        (", negative_references: [{file: crowd.png, tiled: 1}]", BriefInvalid, "valid boolean"),
        (", regions: [{name: a, box: [0, 0, 1, 1], references: [mora/front.png]}]", NotFound, "reference of Pip"),
    ],
)
def test_what_cannot_be_made_is_refused_before_a_job_is_there(
    studio: Path, tmp_path: Path, more: str, refused: type[Exception], told: str
) -> None:
    Image.new("RGB", (128, 64), "white").save(tmp_path / "wide.png")
    Image.new("L", (64, 64), 0).save(tmp_path / "black.png")
    Image.new("RGBA", (64, 64), (255, 255, 255, 0)).save(tmp_path / "white.png")
    with pytest.raises(refused, match=told):
        planned(more, tmp_path)


def test_an_unknown_character_of_a_region_is_told_by_line(studio: Path) -> None:
    text = (BRIEF % "") + (
        "  - name: two\n    character: Pip\n    prompt: red fox\n    regions:\n"
        "      - {name: a, box: [0, 0, 0.5, 1]}\n      - name: b\n        box: [0.5, 0, 1, 1]\n        character: Mara\n"
    )
    written = BriefText(text, "brief.yaml")
    with open_store() as store, store.database.transaction() as session, pytest.raises(BriefInvalid) as caught:
        known(session, written.parsed, written)
    (problem,) = caught.value.problems
    assert (problem.line, problem.field) == (13, "shots[1].regions[1].character")
    assert "there are: Mora, Pip" in problem.message
