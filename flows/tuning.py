"""`onmodel tune`: which adapter scale and window make a character most itself while the words are still followed.

Its pictures are jobs like all others: made by the same workers, kept by their keys, so that a search that was stopped
goes on where it was, and references are checked when they are used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import numpy as np
import scipy.stats  # type: ignore[import-untyped]
from PIL import Image
from prefect import flow, task
from prefect.artifacts import acreate_image_artifact, acreate_markdown_artifact
from prefect.cache_policies import NO_CACHE
from pydantic import Field
from sqlalchemy import select

from asset_store.errors import NotFound, StoreError
from asset_store.pictures import open_picture, to_png
from asset_store.repositories import jobs as job_table
from asset_store.repositories import libraries, presets
from asset_store.repositories.jobs import NewJob
from asset_store.repositories.presets import NewPreset
from asset_store.retention import name_blobs
from asset_store.rights import licences
from asset_store.tables import Job, JobState, Preset
from flows import recipe_keys, recipes
from flows.brief import Making
from flows.choosing import unit
from flows.curve import draw_curve
from flows.making import make_all
from flows.parameters import Actor, Name, Workers
from flows.preview import preview_url
from flows.progress import report
from flows.retrying import if_it_may_pass
from flows.search import ALL_STEPS, TEXT_ONLY, Outcome, Point, Setting, search
from flows.text_tower import text_tower
from flows.tuning_plan import DIGITS, MOST_SEEDS, SEEDS, Plan, plan_tuning
from flows.wiring import Store, engine, open_store

CONFIDENCE = 0.95


@flow(name="tune-character", flow_run_name="tune {character}")
async def tune_character(
    character: Name, brand: str | None = None, by: Actor = "schedule", prompts: list[str] | None = None,
    seeds: Annotated[int, Field(ge=1, le=MOST_SEEDS)] = SEEDS, share: Annotated[float | None, Field(ge=0, le=1)] = None,
    windows: bool = False, workers: Workers = 1,
) -> dict[str, Any]:  # fmt: skip
    """Search a character's scale, and with `windows` its window, and store what was found as its next preset.

    Killed and started again it makes only the pictures that are missing.

    Args:
        character: A character of the library.
        brand: Its brand, where several have one of that name.
        by: Who asks for it, as the audit will say.
        prompts: What is made with each setting; by default prompts of the studio.
        seeds: Pictures of each prompt and setting.
        share: How much of the text-only figure of following the prompt must be left; by default by the measure there is.
        windows: Search the window of steps, too.
        workers: How many make pictures inside this process; 0 leaves it to workers elsewhere.
    """
    plan = await asyncio.to_thread(_with_store, plan_tuning, character, brand, prompts, seeds, share)
    steps = search(plan.share, windows=windows)
    asked, rounds, plain = next(steps), 0, None
    while True:
        rounds += 1
        report("search", rounds, 0)
        keys = await submit_settings(plan, asked)
        await make_all([k for row in keys for k in row], workers)
        points, plain = await asyncio.to_thread(_with_store, measure_settings, plan, asked, keys, plain)
        try:
            asked = steps.send(points)
        except StopIteration as ended:
            outcome: Outcome = ended.value
            break
    told, drawn = await asyncio.to_thread(_with_store, store_outcome, plan, outcome, by)
    await acreate_image_artifact(preview_url(drawn), key="tuning-curve", description=f"Tuning of {plan.character}")
    await acreate_markdown_artifact(_markdown(told), key="tuning-report", description=f"Tuning of {plan.character}")
    return told


def _with_store(action: Any, *args: Any) -> Any:
    with open_store() as store:
        return action(store, *args)


# ---------------------------------------------------------------------------- pictures


@task(retries=2, retry_delay_seconds=[1, 5], cache_policy=NO_CACHE, retry_condition_fn=if_it_may_pass)
async def submit_settings(plan: Plan, settings: Sequence[Setting]) -> list[list[str]]:
    """Queue the pictures of some settings; keys, a row a setting, prompts in order and seeds within. Safe to repeat."""
    return await asyncio.to_thread(_with_store, _submit, plan, settings)


def _submit(store: Store, plan: Plan, settings: Sequence[Setting]) -> list[list[str]]:
    made = engine(store.settings)
    rows = [[_job(made, plan, s, p, seed) for p in plan.prompts for seed in plan.seeds] for s in settings]
    with store.database.transaction() as session:
        job_table.submit(session, list({job.key: job for row in rows for job in row}.values()))
    return [[job.key for job in row] for row in rows]


def _job(made: Any, plan: Plan, setting: Setting, prompt: str, seed: int) -> NewJob:
    making = Making.model_validate({"scale": setting.scale, "window": setting.window})
    recipe = recipes.recipe_of(made, prompt, seed, making, plan.used if setting.scale > 0 else ())
    return NewJob(recipe_keys.job_key(recipe), recipes.batch_key(made, recipe), recipe)


def measure_settings(
    store: Store, plan: Plan, settings: Sequence[Setting], keys: Sequence[Sequence[str]], plain: np.ndarray | None
) -> tuple[list[Point], np.ndarray]:
    """One point a setting, and the text-only pictures' embeddings (prompts, seeds, d): those given, or of the first
    round, whose first setting is text only. StoreError where a picture could not be made, with why."""
    vectors = _embeddings(store, list(dict.fromkeys(k for row in keys for k in row)))
    references, tower = _references(store, plan), text_tower(store.settings)
    texts = unit(tower.texts(plan.prompts)) if tower is not None else None
    shape = (len(plan.prompts), len(plan.seeds), -1)
    if plain is None:
        plain = np.stack([vectors[k] for k in keys[settings.index(TEXT_ONLY)]]).reshape(shape)
    points = []
    for setting, row in zip(settings, keys, strict=True):
        pictures = np.stack([vectors[k] for k in row]).reshape(shape)
        identity = (pictures @ references.T).mean(axis=-1)
        prompt = follows_text(pictures, texts) if texts is not None else stays_near(pictures, plain)
        points.append(Point(setting, _mean(identity), _mean(prompt), len(row), _interval(identity), _interval(prompt)))
    return points, plain


def _references(store: Store, plan: Plan) -> np.ndarray:
    """Unit embeddings (measured, d) of the references that pictures are measured against."""
    encoder = engine(store.settings).encoder.sha256
    with store.database.transaction() as session:
        found = libraries.embeddings_of(session, {r["sha256"] for r in plan.measured}, encoder)
    if missing := [r["key"] for r in plan.measured if r["sha256"] not in found]:
        raise NotFound("embedding of", missing[0], "Ingest its library again, then tune anew.")
    return unit(np.stack([np.asarray(found[r["sha256"]].pooled, dtype=np.float32) for r in plan.measured]))


def follows_text(pictures: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """CLIP-T: cosine of each picture (prompts, seeds, d) to its prompt's text (prompts, d); unit vectors."""
    return np.asarray(np.einsum("psd,pd->ps", pictures, texts))


def stays_near(pictures: np.ndarray, plain: np.ndarray) -> np.ndarray:
    """How near pictures (prompts, seeds, d) stay to the text-only ones of the same prompt and seed; unit vectors.

    With several prompts, the likeness to the text-only pictures of the other prompts is taken off: what the reference
    changes in all pictures alike, such as who is on them, then does not count as leaving the prompt.
    """
    alike = np.einsum("psd,qsd->psq", pictures, plain)
    count = alike.shape[0]
    own = np.stack([alike[p, :, p] for p in range(count)])
    if count == 1:
        return own
    return np.asarray(own - (alike.sum(axis=-1) - own) / (count - 1))


def _mean(values: np.ndarray) -> float:
    return round(float(values.mean()), DIGITS)


def _interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the mean, by Student's t, as there are few pictures; of one the value alone."""
    half = 0.0
    if values.size > 1:
        width = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, values.size - 1))
        half = width * float(values.std(ddof=1)) / values.size**0.5
    return round(float(values.mean()) - half, DIGITS), round(float(values.mean()) + half, DIGITS)


def _embeddings(store: Store, keys: Sequence[str]) -> Mapping[str, np.ndarray]:
    """Unit embeddings (d,) of jobs' pictures."""
    encoder = engine(store.settings).encoder
    with store.database.transaction() as session:
        jobs = {j.key: j for j in session.scalars(select(Job).where(Job.key.in_(keys)))}
    bad = [j for j in jobs.values() if j.state is not JobState.SUCCEEDED]
    if bad:
        why = bad[0].evidence[-1].get("message", "") if bad[0].evidence else "no evidence"
        raise StoreError(
            f"{len(bad)} of {len(keys)} pictures of the search were not made: {why}", "Mend that and run it again."
        )
    out: dict[str, np.ndarray] = {}
    for start in range(0, len(keys), store.settings.ingest.batch):
        some = keys[start : start + store.settings.ingest.batch]
        pictures = [open_picture(store.blobs.get(str(jobs[k].picture_sha256))).image for k in some]
        encoded = encoder.encode(pictures)
        out |= {k: unit(e.pooled) for k, e in zip(some, encoded, strict=True)}
    return out


# ---------------------------------------------------------------------------- what was found


def store_outcome(store: Store, plan: Plan, outcome: Outcome, by: str) -> tuple[dict[str, Any], Image.Image]:
    """Draw the curve and store the preset: the report and the drawing. The same outcome again is no new version.

    RightsRefused where a reference that the search rests on was withdrawn, or its licence ended, while it ran.
    """
    best, made = outcome.best.setting, engine(store.settings)
    drawn = draw_curve(plan.character, f"{plan.brand} · {made.models[0].name}", outcome, plan.measure, plan.share)
    data = to_png(drawn)
    picture = store.blobs.put(data, "image/png")  # before the row that names it
    found = NewPreset(best.scale, best.window, plan.target(outcome), outcome.as_curve(), picture)
    with store.database.transaction() as session:
        name_blobs(session, {picture}, lambda _: store.blobs.put(data, "image/png"))
        licences.check_usable(session, plan.reference_ids, datetime.now(UTC).date())
        character = libraries.find_character(session, plan.character, plan.brand)
        row, new = presets.save_preset(session, character, recipes.models_sha256(made), found, by)
        told = preset_as_json(row, plan.character, plan.brand) | {"new": new}
    return told, drawn


def preset_as_json(row: Preset, character: str, brand: str) -> dict[str, Any]:
    return {
        "character": character,
        "brand": brand,
        "version": row.version,
        "scale": row.scale,
        "window": [row.window_start, row.window_end],
        "target": row.target,
        "curve": row.curve,
        "picture_sha256": row.picture_sha256,
        "models_sha256": row.models_sha256,
        "made_by": row.made_by,
    }


def list_presets(name: str | None, brand: str | None) -> list[dict[str, Any]]:
    """`onmodel tune --list`: every version, the newest first; `in_use`: campaigns with the loaded models take it, which is
    the newest of those that met their target."""
    with open_store() as store, store.database.transaction() as session:
        ids = None if name is None else [libraries.find_character(session, name, brand).id]
        if not (rows := presets.presets(session, ids)):
            return []  # without the engine, which says only which of them are in use
        loaded, seen, out = recipes.models_sha256(engine(store.settings)), set(), []
        for row, character in rows:
            place, met = (character.id, row.models_sha256), row.target.get("met") is True
            used = met and place not in seen and row.models_sha256 == loaded
            seen |= {place} if met else set()
            out.append({**preset_as_json(row, character.name, character.brand.name), "met": met, "in_use": used})
    return out


def _markdown(told: dict[str, Any]) -> str:
    lines = [f"# {told['character']}: scale {told['scale']:g}, window {told['window']}", ""]
    lines += ["| scale | window | identity | prompt | follows |", "|---|---|---|---|---|"]
    for p in told["curve"]:
        window = "all" if tuple(p["window"]) == ALL_STEPS else f"{p['window'][0]:g}–{p['window'][1]:g}"
        follows = "yes" if p["follows_prompt"] else "no"
        lines.append(f"| {p['scale']:g} | {window} | {p['identity']:.3f} | {p['prompt']:.3f} | {follows} |")
    return "\n".join(lines)


def curve_png(sha256: str) -> bytes:
    """A preset's curve as it was drawn; BlobMissing."""
    with open_store() as store:
        return store.blobs.get(sha256)
