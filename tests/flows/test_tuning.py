"""The search finds the scale that is most alike and still follows the prompt, stores it, and campaigns use it."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sqlalchemy import func, select

from asset_store.errors import NotFound, RightsRefused, StoreError
from asset_store.tables import Asset, Job, JobState, LineageRecord, RemovedBlob
from flows import tuning
from flows.brief import parse_brief
from flows.campaign import run_campaign
from flows.library import ingest_library
from flows.planning import plan_campaign
from flows.recall import withdraw
from flows.search import ALL_STEPS, GRID, REFINEMENTS, WINDOWS, Outcome, Point, Setting, search
from flows.tuning import curve_png, list_presets, stays_near, store_outcome
from flows.tuning_plan import MOST_PROMPTS, plan_tuning
from flows.wiring import open_store
from tests.ipadapter_engine import tiny_checkpoints as tiny
from tests.studio_home import SMALL_BRIEF, Home

Figures = Callable[[Setting], tuple[float, float]]


def searched(figures: Figures, share: float = 0.8, *, windows: bool = False) -> Outcome:
    steps = search(share, windows=windows)
    asked = next(steps)
    while True:
        try:
            asked = steps.send([Point(s, *figures(s), 4, (0.0, 0.0), (0.0, 0.0)) for s in asked])
        except StopIteration as ended:
            return ended.value  # type: ignore[no-any-return]


@given(st.floats(0.3, 1.4), st.floats(0.5, 0.95), st.floats(0.5, 3))
@settings(max_examples=150, deadline=None)
def test_where_the_prompt_is_what_limits_the_scale_comes_close_to_the_limit(
    edge: float, share: float, steepness: float
) -> None:
    def figures(s: Setting) -> tuple[float, float]:
        return 1 - np.exp(-s.scale), 1 - (1 - share) * (s.scale / edge) ** steepness

    outcome = searched(figures, share)
    assert outcome.met
    assert edge - 0.1 <= outcome.best.setting.scale <= edge + 0.01


@given(st.floats(0.3, 1.4))
@settings(max_examples=100, deadline=None)
def test_a_peak_between_the_grids_scales_is_found(peak: float) -> None:
    outcome = searched(lambda s: (-((s.scale - peak) ** 2), 1.0))
    assert abs(outcome.best.setting.scale - peak) <= 0.07


@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.booleans())
@settings(max_examples=150, deadline=None)
def test_whatever_the_noise_the_best_follows_and_nothing_that_follows_is_more_alike(
    seed: int, share: float, windows: bool
) -> None:
    numbers = np.random.default_rng(seed)
    outcome = searched(lambda s: tuple(numbers.uniform(0.1, 1, 2)), share, windows=windows)  # type: ignore[arg-type,return-value]
    following = [p for p in outcome.points[1:] if p.prompt >= outcome.floor]
    assert outcome.met == bool(following)
    assert outcome.best in (following or outcome.points[1:])
    assert all(outcome.best.identity >= p.identity for p in following)
    tried = [p.setting for p in outcome.points]
    assert len(set(tried)) == len(tried)
    assert len(tried) <= 1 + len(GRID) + REFINEMENTS + windows * 2 * len(WINDOWS)


def test_where_nothing_follows_the_nearest_to_following_is_told_as_such() -> None:
    outcome = searched(lambda s: (s.scale, 1.0 if s.scale == 0 else 0.5 - 0.1 * s.scale), 0.9)
    assert (outcome.met, outcome.best.setting.scale) == (False, min(GRID))


def test_a_negative_figure_of_text_only_has_a_floor_below_it() -> None:
    outcome = searched(lambda s: (s.scale, -0.2 - 0.039 * s.scale), 0.8)
    assert outcome.floor == pytest.approx(-0.24)
    assert outcome.met
    assert 1.0 <= outcome.best.setting.scale <= 1.03


def test_few_pictures_have_the_wide_interval_of_students_t() -> None:
    """Three values with mean 2 and standard deviation 1: 4.303 is t's 97.5 % point with two degrees of freedom."""
    assert tuning._interval(np.array([1.0, 2.0, 3.0])) == pytest.approx(
        (2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-3
    )


def test_a_window_that_frees_the_prompt_wins() -> None:
    def figures(s: Setting) -> tuple[float, float]:
        return s.scale, 1 - 0.4 * s.scale * (s.window[1] - s.window[0])

    outcome = searched(figures, 0.8, windows=True)
    assert outcome.best.setting.window != ALL_STEPS
    assert outcome.best.identity > max(
        p.identity for p in outcome.points if p.setting.window == ALL_STEPS and p.prompt >= outcome.floor
    )


def test_a_change_that_all_pictures_share_does_not_count_as_leaving_the_prompt() -> None:
    plain = np.eye(3, 8).reshape(3, 1, 8)
    shared = np.zeros(8)
    shared[7] = 1.0
    changed = (plain + shared) / np.linalg.norm(plain + shared, axis=-1, keepdims=True)
    mixed = np.broadcast_to(plain.sum(axis=0) / 3**0.5, plain.shape)
    assert stays_near(plain, plain) == pytest.approx(np.ones((3, 1)))
    assert stays_near(changed, plain) == pytest.approx(np.full((3, 1), 0.5**0.5))
    assert stays_near(mixed, plain) == pytest.approx(np.zeros((3, 1)))


# ---------------------------------------------------------------------------- with the engine

QUICK = ("tune", "Pip", "--seeds", "1", "--prompt", "a mascot, on the beach", "--prompt", "a mascot, in the snow")


def made(home: Home) -> int:
    with home.database.transaction() as session:
        return session.scalars(select(func.count()).where(Job.state == JobState.SUCCEEDED)).one()


@pytest.mark.usefixtures("prefect")
def test_a_killed_search_goes_on_and_campaigns_use_what_it_found(ingested: Home) -> None:
    process = ingested.start(*QUICK, "--json", ONMODEL_ENGINE__MAX_BATCH="2")
    deadline = time.monotonic() + 120
    while made(ingested) < 4 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = made(ingested)
    assert before >= 4
    curve = ingested.path / "curve.png"
    spoken = ingested.onmodel(*QUICK, "--curve", str(curve))
    assert spoken.code in (0, 3), spoken.err
    assert "Preset version 1" in spoken.out
    after = made(ingested)
    (preset,) = list_presets("Pip", None)
    assert (preset["version"], preset["in_use"]) == (1, True)
    assert after == 2 * len(preset["curve"])
    assert curve.read_bytes() == curve_png(preset["picture_sha256"])
    with Image.open(curve) as drawn:
        assert drawn.size == (960, 720)
        assert len(drawn.convert("RGB").getcolors(1 << 20)) > 50
    assert preset["target"]["references_used"][0] not in preset["target"]["references_measured"]
    again = ingested.onmodel(*QUICK, "--json").json
    assert (again["version"], again["new"], made(ingested)) == (1, False, after)

    with open_store() as store:
        plan = plan_campaign(store, parse_brief(SMALL_BRIEF, file="brief.yaml"))
    pip, mora = (next(p.job.recipe for p in plan.pictures if p.character == c) for c in ("Pip", "Mora"))
    assert (pip["scale"], pip["window"], pip["preset"]["version"]) == (preset["scale"], preset["window"], 1)
    assert (mora["scale"], "preset" in mora) == (1.0, False)
    with open_store() as store:
        own = SMALL_BRIEF.replace("steps: 3", "steps: 3, scale: 0.33")
        scales = {p.job.recipe["scale"] for p in plan_campaign(store, parse_brief(own, file="brief.yaml")).pictures}
    assert scales == {0.33}
    asyncio.run(run_campaign(SMALL_BRIEF, "brief.yaml", "pat"))
    with ingested.database.transaction() as session:
        records = [r.record for r in session.scalars(select(LineageRecord))]
    assert {r["settings"].get("preset", {}).get("version") for r in records if "pip" in r["run"]["shot"]} == {1}
    with ingested.database.transaction() as session:
        assets = [str(i) for i in session.scalars(select(Asset.id).where(Asset.shot == "pip-beach"))]
    told = [ingested.onmodel("lineage", a).out for a in assets]
    assert told
    assert all("preset version 1" in t for t in told)
    assert ingested.onmodel("gc", "--json").json["garbage"] == 0


@pytest.mark.usefixtures("prefect")
def test_what_missed_its_target_is_no_default_and_is_listed_as_such(ingested: Home) -> None:
    with open_store() as store:
        plan = plan_tuning(store, "Pip", None, ["a mascot", "a mascot", "a mascot, at night"], 1, 0.9)
        assert plan.prompts == ("a mascot", "a mascot, at night")
        outcome = searched(lambda s: (s.scale, 1.0 if s.scale == 0 else 0.1), 0.9)
        told, _ = store_outcome(store, plan, outcome, "pat")
        with store.database.transaction() as session:  # as if its curve had been rejected and removed once
            session.add(RemovedBlob(sha256=told["picture_sha256"]))
        store_outcome(store, plan, outcome, "pat")
        with store.database.transaction() as session:
            assert session.scalars(select(RemovedBlob)).all() == []
        recipe = plan_campaign(store, parse_brief(SMALL_BRIEF, file="brief.yaml")).pictures[0].job.recipe
    assert (recipe["scale"], "preset" in recipe) == (1.0, False)
    assert [(p["met"], p["in_use"]) for p in list_presets("Pip", None)] == [(False, False)]
    assert "target not met, not used" in ingested.onmodel("tune", "--list").out


@pytest.mark.usefixtures("prefect")
def test_a_reference_withdrawn_during_a_search_ends_it_without_a_preset(ingested: Home) -> None:
    with open_store() as store:
        plan = plan_tuning(store, "Pip", None, ["a mascot"], 1, None)
        assert {r["sha256"] for r in plan.measured}.isdisjoint(r["sha256"] for r in plan.used)
        withdraw(plan.measured[0]["key"], by="rita", reason="the contract ended")
        with pytest.raises(RightsRefused):
            store_outcome(store, plan, searched(lambda s: (s.scale, 1.0)), "pat")
    assert list_presets("Pip", None) == []


@pytest.mark.usefixtures("prefect")
def test_numbers_out_of_range_and_a_base_of_unknown_subjects_are_told(
    ingested: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store() as store:
        for seeds, share in ((0, None), (33, None), (1, 1.5)):
            with pytest.raises(StoreError, match="cannot be tried|is no share"):
                plan_tuning(store, "Pip", None, None, seeds, share)
        prompts = plan_tuning(store, "Pip", None, None, 1, None).prompts
    assert len(set(prompts)) == MOST_PROMPTS
    base = tiny.write_studio(tmp_path / "base")
    tiny.change_json(base / "model_index.json", _onmodel_family="sd15")
    monkeypatch.setenv("ONMODEL_ENGINE__BASE", str(base))
    asyncio.run(ingest_library(str(ingested.library), "pat"))
    with open_store() as store, pytest.raises(NotFound) as caught:
        plan_tuning(store, "Pip", None, None, 1, None)
    assert "--prompt" in caught.value.next_step


@pytest.mark.usefixtures("prefect")
def test_what_is_wrong_is_told_in_a_sentence(ingested: Home) -> None:
    assert "Give a name, or --list." in ingested.onmodel("tune").err
    assert "Known characters" in ingested.onmodel("tune", "Popeye").err
    assert "No presets yet" in ingested.onmodel("tune", "--list").out
