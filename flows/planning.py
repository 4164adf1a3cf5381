"""From a brief to jobs: every shot becomes recipes, every recipe has a key that is the hash of all that determines it."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Text, any_, cast, func, select
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, JSONPATH, insert
from sqlalchemy.orm import Session

from asset_store import audit
from asset_store.canonical import sha256_of
from asset_store.errors import RunOver
from asset_store.repositories import jobs as job_table
from asset_store.repositories import libraries, presets, runs
from asset_store.repositories.jobs import NewJob
from asset_store.retention import name_blobs
from asset_store.tables import Asset, AssetVersion, Brand, Campaign, Character, Job, JobState, Preset
from flows import recipe_keys, recipes
from flows.brief import Brief, Making, NamedControl, Shot
from flows.candidates import check_comparable
from flows.choosing import find_references
from flows.conditions import ConditionFinder, Conditions, ControlReader
from flows.directions import Direction, DirectionFinder, names_of, read_pictures
from flows.shots import Picked, chosen, merged, named, seeds_of, together, voices
from flows.text_tower import text_tower
from flows.wiring import Store, engine
from ipadapter_engine.errors import RequestRefused

if TYPE_CHECKING:
    from ipadapter_engine.engines import PictureEngine

ROWS_A_STATEMENT = 1000  # PostgreSQL binds at most 65,535 values a statement


@dataclass(frozen=True)
class PlannedPicture:
    """One variant of one shot, and the job that makes it."""

    shot: str
    variant: int
    character: str
    job: NewJob


@dataclass(frozen=True)
class CampaignPlan:
    brief: Brief
    brief_sha256: str
    pictures: tuple[PlannedPicture, ...]
    chosen: dict[str, list[str]]  # shot -> the references it uses, with how they were chosen
    made_already: int
    seconds_a_picture: float | None  # measured on past jobs of the same kinds; None: never made yet
    to_draw: int = 0  # pictures that the engine makes: with best_of, several for each that is kept
    left_out: Mapping[str, list[str]] = field(default_factory=dict)  # shot -> references it does not use, and why
    conditions: Mapping[str, Conditions] = field(default_factory=dict)
    directions: Mapping[str, Direction] = field(default_factory=dict)

    @property
    def to_make(self) -> int:
        return len({p.job.key for p in self.pictures}) - self.made_already

    def as_json(self) -> dict[str, Any]:
        cost = None if self.seconds_a_picture is None else round(self.seconds_a_picture * self.to_draw, 2)
        return {
            "campaign": self.brief.campaign,
            "brand": self.brief.brand,
            "brief_sha256": self.brief_sha256,
            "pictures": len(self.pictures),
            "made_already": self.made_already,
            "to_make": self.to_make,
            "to_draw": self.to_draw,
            "engine_seconds_a_picture": self.seconds_a_picture,
            "engine_seconds": cost,
            "stages": list(self.brief.stages),
            "shots": [self._shot_as_json(shot) for shot in self.brief.shots],
        }

    def _shot_as_json(self, shot: Shot) -> dict[str, Any]:
        mine = [p.job.recipe for p in self.pictures if p.shot == shot.name]
        preset = mine[0].get("preset") if mine else None
        return {
            "shot": shot.name,
            "character": shot.character,
            "prompt": shot.prompt,
            "variants": len(mine),
            "references": self.chosen[shot.name],
            "left_out": list(self.left_out.get(shot.name, ())),
            "best_of": recipes.candidates(mine[0]) if mine else 1,
            "preset": None if preset is None else preset["version"],
            **({"engine": mine[0]["engine"]} if mine and "engine" in mine[0] else {}),
            **self.conditions.get(shot.name, Conditions()).as_json(),
            **self.directions.get(shot.name, Direction()).as_json(),
        }


def plan_campaign(store: Store, brief: Brief, *, folder: Path | None = None) -> CampaignPlan:
    """Resolve a brief against the library and the loaded checkpoint; reads only.

    folder: where the brief lies, for the pictures that it names by a path.
    Raises NotFound, Ambiguous, RightsRefused (a reference that may not be used today) or RequestRefused (the family
    cannot). Pictures are read and compared between two short transactions; rights are asked for again by whoever makes
    the jobs.
    """
    with store.database.transaction() as session:  # nobody waits for the engine to hear of a name that there is not
        _named_in(session, brief)
    encoder, tower = engine(store.settings).encoder.sha256, text_tower(store.settings)
    today = datetime.now(UTC).date()
    makings = {shot.name: merged(brief.defaults, shot) for shot in brief.shots}
    engines = {name: engine(store.settings, name) for name in sorted({m.engine or "" for m in makings.values()})}
    controls: dict[str, list[NamedControl]] = {name: [] for name in engines}
    for making in makings.values():
        controls[making.engine or ""] += making.controls or ()
    casts = {shot.name: voices(shot, makings[shot.name]) for shot in brief.shots}
    shown = [voice for cast in casts.values() for voice in cast]
    with store.database.transaction() as session:
        brand, characters = _named_in(session, brief)
        readers = {name: ControlReader(store, made, brand, today, folder) for name, made in engines.items()}
        reader = next(iter(readers.values()))
        sources = {k: v for name in engines for k, v in readers[name].sources(session, controls[name]).items()}
        named_pictures = reader.named(session, chain(*names_of(makings.values())))
        choosing = {v.character for v in shown if v.chooses}
        found = {name: find_references(session, store, characters[name], encoder, today) for name in sorted(choosing)}
    pictures = {k: v for name in engines for k, v in readers[name].read(controls[name], sources).items()}
    read = read_pictures(reader, list(makings.values()), named_pictures)
    prompts = list(dict.fromkeys(s.prompt for s in brief.shots if any(v.chooses for v in casts[s.name])))
    texts = dict(zip(prompts, tower.texts(prompts), strict=True)) if tower is not None and prompts else {}
    ranked = {
        (s.name, v): chosen(found[v.character], s.prompt, texts.get(s.prompt), makings[s.name])
        for s in brief.shots
        for v in casts[s.name]
        if v.chooses
    }
    planned: list[PlannedPicture] = []
    picked: dict[str, Picked] = {}
    conditions: dict[str, Conditions] = {}
    directions: dict[str, Direction] = {}
    with store.database.transaction() as session:
        for shot in brief.shots:
            character, making = characters[shot.character], makings[shot.name]
            made = engines[making.engine or ""]
            finder = ConditionFinder(session, made, brand, today, sources, pictures)
            conditions[shot.name] = found_here = finder.of(character, making)
            directions[shot.name] = directed = DirectionFinder(finder, read).of(shot.character, making)
            picked[shot.name] = together(
                (v, ranked[shot.name, v] if v.chooses else named(session, v, characters[v.character], today))
                for v in casts[shot.name]
            )
            preset = None if found_here.model is not None else _preset(session, made, character, making)
            if preset is not None:
                window = (preset.window_start, preset.window_end)
                making = making.model_copy(update={"scale": preset.scale, "window": window})
            for variant, seed in enumerate(seeds_of(brief, shot, making)):
                entries = picked[shot.name].entries
                recipe = recipes.recipe_of(made, found_here.prompt(shot.prompt), seed, making, entries)
                recipe = directed.into(found_here.into(recipe, made), made)
                recipe = _best_of(recipe, brief, shot, making)
                if making.engine is not None:
                    recipe["engine"] = making.engine
                if preset is not None and entries:
                    recipe["preset"] = {"id": str(preset.id), "version": preset.version}
                job = NewJob(recipe_keys.job_key(recipe), recipes.batch_key(made, recipe), recipe)
                planned.append(PlannedPicture(shot.name, variant, character.name, job))
        todo = {p.job.key: p.job for p in planned}
        check_comparable(session, (job.recipe for job in todo.values()), encoder)
        done = _made(session, sorted(todo))
        cost = cost_of(session, [job for key, job in todo.items() if key not in done] or list(todo.values()))
    to_draw = sum(recipes.candidates(job.recipe) for key, job in todo.items() if key not in done)
    sha256 = sha256_of(brief.model_dump(mode="json"))
    told, left_out = {n: p.told for n, p in picked.items()}, {n: p.left_out for n, p in picked.items()}
    return CampaignPlan(brief, sha256, tuple(planned), told, len(done), cost, to_draw, left_out, conditions, directions)


def _named_in(session: Session, brief: Brief) -> tuple[Brand, dict[str, Character]]:
    """The brand and the characters of a brief and of its regions, by their names."""
    brand = libraries.get_brand(session, brief.brand)
    cast = (voice for shot in brief.shots for voice in voices(shot, merged(brief.defaults, shot)))
    names = dict.fromkeys([*(shot.character for shot in brief.shots), *(voice.character for voice in cast)])
    return brand, {name: libraries.get_character(session, brand, name) for name in names}


def _preset(session: Session, made: PictureEngine, character: Character, making: Making) -> Preset | None:
    """What was found together is used together or not at all; and it was found without a character's own model, for one
    character that speaks in all blocks and steps alike."""
    if making.scale is not None or making.window is not None:
        return None
    if making.blocks is not None or making.scale_steps is not None or making.regions:
        return None
    return presets.find_preset(session, character.id, recipes.models_sha256(made), met=True)


def _best_of(recipe: dict[str, Any], brief: Brief, shot: Shot, making: Making) -> dict[str, Any]:
    """The recipe with its candidates; what they are chosen by is in it, as it determines the picture."""
    if (making.best_of or 1) == 1:
        return recipe
    if not recipes.of_identity(recipe):
        raise RequestRefused(
            f"best_of of shot {shot.name} has nothing to compare its candidates with",
            "give it references or a character model, or best_of: 1 for this shot",
        )
    judged = {"candidates": making.best_of, "blank_spread": brief.checks.blank_spread}
    return {**recipe, "recipe": max(recipe["recipe"], recipe_keys.WITH_CONDITIONS), "best_of": judged}


def submit_campaign(
    store: Store, plan: CampaignPlan, *, by: str, trigger: str, reason: str = "", run_id: uuid.UUID | None = None
) -> tuple[uuid.UUID, list[str]]:
    """Write campaign, assets and jobs in one transaction; the keys of all pictures that the campaign waits for.

    run_id: the run that makes it, which knows its campaign from then on. RunOver where it was ended meanwhile: nothing is queued.

    Safe to repeat: the same brief is the same campaign, and a variant that has its picture keeps it, also when the
    library has changed since and would be planned otherwise now.
    """
    brief = plan.brief
    parts: list[Conditions | Direction] = [*plan.conditions.values(), *plan.directions.values()]
    blobs = {sha256: data for part in parts for sha256, data in part.blobs.items()}
    for data in blobs.values():  # before the rows that name them
        store.blobs.put(data, "image/png")
    with store.database.transaction() as session:
        name_blobs(session, blobs, lambda sha256: store.blobs.put(blobs[sha256], "image/png"))
        if run_id is not None and not runs.beat(session, run_id, phase="making"):
            raise RunOver(runs.get(session, run_id).state)
        brand = libraries.get_brand(session, brief.brand)
        made = session.scalar(
            insert(Campaign)
            .values(
                id=uuid.uuid4(),
                name=brief.campaign,
                brand_id=brand.id,
                brief=brief.model_dump(mode="json"),
                brief_sha256=plan.brief_sha256,
                stages=list(brief.stages),
                requested_by=by,
                trigger=trigger,
                reason=reason,
            )
            .on_conflict_do_nothing()
            .returning(Campaign.id)
        )
        same = (Campaign.name == brief.campaign, Campaign.brief_sha256 == plan.brief_sha256)
        campaign_id = session.scalars(select(Campaign.id).where(*same).with_for_update(key_share=True)).one()
        if run_id is not None:
            runs.beat(session, run_id, campaign_id=campaign_id)
        made_pictures = select(Asset.shot, Asset.variant, Asset.job_key).join(AssetVersion)
        kept = {(r[0], r[1]): r[2] for r in session.execute(made_pictures.where(Asset.campaign_id == campaign_id))}
        todo = [p for p in plan.pictures if (p.shot, p.variant) not in kept]
        job_table.submit(session, list({p.job.key: p.job for p in todo}.values()))
        for start in range(0, len(todo), ROWS_A_STATEMENT):
            statement = insert(Asset).values(
                [
                    {
                        "id": uuid.uuid4(),
                        "campaign_id": campaign_id,
                        "shot": p.shot,
                        "variant": p.variant,
                        "job_key": p.job.key,
                    }
                    for p in todo[start : start + ROWS_A_STATEMENT]
                ]
            )
            session.execute(
                statement.on_conflict_do_update(
                    index_elements=["campaign_id", "shot", "variant"], set_={"job_key": statement.excluded.job_key}
                )
            )
        if made is not None:
            detail = {
                "name": brief.campaign,
                "brief_sha256": plan.brief_sha256,
                "pictures": len(plan.pictures),
                "trigger": trigger,
                **({"reason": reason} if reason else {}),
            }
            audit.record(session, by, "campaign requested", f"campaign/{campaign_id}", detail)
    return campaign_id, list(dict.fromkeys(kept.get((p.shot, p.variant), p.job.key) for p in plan.pictures))


def _made(session: Session, keys: Sequence[str]) -> set[str]:
    """Those of `keys` whose picture is there."""
    among = Job.key == any_(cast(list(keys), ARRAY(Text)))  # one array: a statement binds at most 65,535 values
    return set(
        session.scalars(select(Job.key).where(among, Job.state == JobState.SUCCEEDED, Job.picture_sha256.is_not(None)))
    )


def cost_of(session: Session, jobs: Sequence[NewJob]) -> float | None:
    """The mean seconds of the engine for a picture of these jobs, candidates counted, from the run records of past ones
    of the same kinds: the same batch key and the same controls, each of which is another model beside the UNet.

    None where pictures of one of the kinds were never made here.
    """
    drawn: Counter[tuple[str, tuple[str, ...]]] = Counter()
    for job in jobs:
        kinds = tuple(c["kind"] for c in job.recipe.get("controls", ()))
        drawn[job.batch_key, kinds] += recipes.candidates(job.recipe)
    means = [_seconds_a_picture(session, *kind) for kind in drawn]
    known = [mean for mean in means if mean is not None]
    if not known or len(known) < len(means):
        return None
    return round(sum(m * n for m, n in zip(known, drawn.values(), strict=True)) / drawn.total(), 4)


def _seconds_a_picture(session: Session, batch_key: str, controls: tuple[str, ...]) -> float | None:
    """The mean over the last pictures of a batch key that had controls of these kinds."""
    kinds = func.jsonb_path_query_array(Job.recipe, cast("$.controls[*].kind", JSONPATH))
    recent = (
        select(Job.picture["run"]["engine_s"].as_float().label("s"))
        .where(Job.batch_key == batch_key, Job.state == JobState.SUCCEEDED)
        .where(kinds == cast(list(controls), JSONB))
        .order_by(Job.finished_at.desc())
        .limit(200)
        .subquery()
    )
    mean = session.scalar(select(func.avg(recent.c.s)))
    return None if mean is None else float(mean)
