"""From a brief to jobs: every shot becomes recipes, every recipe has a key that is the hash of all that determines it."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from asset_store import audit
from asset_store.canonical import sha256_of
from asset_store.errors import NotFound, RightsRefused
from asset_store.repositories import jobs as job_table
from asset_store.repositories import libraries
from asset_store.repositories.jobs import NewJob
from asset_store.rights import licences
from asset_store.tables import Asset, AssetVersion, Campaign, Character, Encoder, Job, JobState, Reference
from flows.brief import Brief, Making, NamedReference, Shot
from flows.wiring import Store, engine
from ipadapter_engine.pipeline import Engine
from ipadapter_engine.requests import GenerationRequest

DEFAULT_VARIANTS = 1
DEFAULT_CHOICE = 1
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
    seconds_a_picture: float | None  # measured on past jobs of the same kind; None: never made yet

    @property
    def to_make(self) -> int:
        return len({p.job.key for p in self.pictures}) - self.made_already

    def as_json(self) -> dict[str, Any]:
        cost = None if self.seconds_a_picture is None else round(self.seconds_a_picture * self.to_make, 2)
        return {
            "campaign": self.brief.campaign,
            "brand": self.brief.brand,
            "brief_sha256": self.brief_sha256,
            "pictures": len(self.pictures),
            "made_already": self.made_already,
            "to_make": self.to_make,
            "engine_seconds_a_picture": self.seconds_a_picture,
            "engine_seconds": cost,
            "stages": list(self.brief.stages),
            "shots": [
                {
                    "shot": shot.name,
                    "character": shot.character,
                    "prompt": shot.prompt,
                    "variants": sum(p.shot == shot.name for p in self.pictures),
                    "references": self.chosen[shot.name],
                }
                for shot in self.brief.shots
            ],
        }


def plan_campaign(store: Store, brief: Brief) -> CampaignPlan:
    """Resolve a brief against the library and the loaded checkpoint; reads only.

    Raises NotFound, RightsRefused (a reference that may not be used today) or RequestRefused (the family cannot).
    """
    made = engine(store.settings)
    today = datetime.now(UTC).date()
    pictures: list[PlannedPicture] = []
    chosen: dict[str, list[str]] = {}
    with store.database.transaction() as session:
        brand = libraries.get_brand(session, brief.brand)
        for shot in brief.shots:
            character = libraries.get_character(session, brand, shot.character)
            making = _merged(brief.defaults, shot)
            references, why = _references(session, shot, making, character, made, today)
            chosen[shot.name] = why
            for variant, seed in enumerate(_seeds(brief, shot, making)):
                recipe = _recipe(made, shot, making, references, seed)
                job = NewJob(_job_key(recipe), _batch_key(made, recipe), recipe)
                pictures.append(PlannedPicture(shot.name, variant, character.name, job))
        keys = {p.job.key for p in pictures}
        finished = job_table.states(session, sorted(keys)).get(JobState.SUCCEEDED, 0)
        seconds = _seconds_a_picture(session, {p.job.batch_key for p in pictures})
    brief_json = brief.model_dump(mode="json")
    return CampaignPlan(brief, sha256_of(brief_json), tuple(pictures), chosen, finished, seconds)


def submit_campaign(store: Store, plan: CampaignPlan, *, by: str, trigger: str) -> tuple[uuid.UUID, list[str]]:
    """Write campaign, assets and jobs in one transaction; the keys of all pictures that the campaign waits for.

    Safe to repeat: the same brief is the same campaign, and a variant that has its picture keeps it, also when the
    library has changed since and would be planned otherwise now.
    """
    brief = plan.brief
    with store.database.transaction() as session:
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
            )
            .on_conflict_do_nothing()
            .returning(Campaign.id)
        )
        same = (Campaign.name == brief.campaign, Campaign.brief_sha256 == plan.brief_sha256)
        campaign_id = session.scalars(select(Campaign.id).where(*same).with_for_update()).one()
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
            }
            audit.record(session, by, "campaign requested", f"campaign/{campaign_id}", detail)
    return campaign_id, list(dict.fromkeys(kept.get((p.shot, p.variant), p.job.key) for p in plan.pictures))


# ---------------------------------------------------------------------------- one shot


def _merged(defaults: Making, shot: Shot) -> Making:
    given = {k: v for k, v in shot.model_dump().items() if k in Making.model_fields and v is not None}
    return Making.model_validate({**defaults.model_dump(exclude_none=True), **given})


def _seeds(brief: Brief, shot: Shot, making: Making) -> list[int]:
    if shot.seeds is not None:
        return list(shot.seeds)
    count = making.variants or DEFAULT_VARIANTS
    base = brief.seed if shot.seed is None else shot.seed
    names = [f"{brief.brand}/{brief.campaign}/{shot.name}/{base}/{variant}" for variant in range(count)]
    return [int.from_bytes(hashlib.sha256(n.encode()).digest()[:4], "big") for n in names]


def _references(
    session: Session, shot: Shot, making: Making, character: Character, made: Engine, today: date
) -> tuple[list[tuple[Reference, float]], list[str]]:
    """(reference, weight) pairs of a shot, and a line a reference that says how it was chosen."""
    if making.scale == 0:
        return [], []
    if shot.references != "choose":
        return _named_references(session, shot, character, today)
    usable = libraries.usable_references(session, character.id, today)
    vectors = libraries.embeddings_of(session, {r.sha256 for r in usable}, made.encoder.sha256)
    usable = list({r.sha256: r for r in reversed(usable) if r.sha256 in vectors}.values())[::-1]  # each picture once
    if not usable:
        raise NotFound(
            "usable identity reference of", character.name, "Ingest its library with the encoder of today's settings."
        )
    units = [np.asarray(vectors[r.sha256].pooled, dtype=np.float32) for r in usable]
    centre = np.mean([u / np.linalg.norm(u) for u in units], axis=0)
    encoder = session.get_one(Encoder, made.encoder.sha256)
    ranked = libraries.nearest(session, centre, encoder, vectors, making.choose or DEFAULT_CHOICE)
    first = {r.sha256: r for r in usable}
    pairs = [(first[sha], first[sha].weight) for sha, _ in ranked]
    why = [f"{first[sha].key} (chosen: {likeness:.2f} to the centre of {len(usable)})" for sha, likeness in ranked]
    return pairs, why


def _named_references(
    session: Session, shot: Shot, character: Character, today: date
) -> tuple[list[tuple[Reference, float]], list[str]]:
    pairs: list[tuple[Reference, float]] = []
    for named in shot.references:
        entry = named if isinstance(named, NamedReference) else NamedReference(file=named)
        row = session.scalars(
            select(Reference)
            .where(Reference.character_id == character.id, Reference.key == entry.file)
            .order_by((Reference.state == "active").desc(), Reference.made_at.desc())
        ).first()
        if row is None:
            raise NotFound(
                f"reference of {character.name} called", entry.file, "Name a file of its library, or ingest again."
            )
        pairs.append((row, entry.weight))
    problems = [p for row, _ in pairs if (p := licences.problem_of(row, today)) is not None]
    if problems:
        raise RightsRefused(problems)
    return pairs, [row.key for row, _ in pairs]


def _recipe(
    made: Engine, shot: Shot, making: Making, references: list[tuple[Reference, float]], seed: int
) -> dict[str, Any]:
    """All that determines the picture, as JSON."""
    family = made.family
    width, height = (int(s) for s in making.size.split("x")) if making.size else (family.size_px, family.size_px)
    request = GenerationRequest(
        shot.prompt, seed, width_px=width, height_px=height, steps=making.steps, scheduler=making.scheduler,
        scale=1.0 if making.scale is None else making.scale, window=making.window or (0.0, 1.0),
    )  # fmt: skip
    key = made.batch_key(request)
    return {
        "recipe": 1,
        "family": family.name,
        "models": [m.__dict__ for m in made.models],
        "encoder": made.encoder.sha256 if references else None,
        "prompt": shot.prompt,
        "negative_prompt": making.negative_prompt or "",
        "seed": seed,
        "steps": key.steps,
        "scheduler": key.scheduler,
        "guidance": family.guidance if making.guidance is None else making.guidance,
        "scale": request.scale,
        "window": list(request.window),
        "width_px": key.width_px,
        "height_px": key.height_px,
        "references": [{"id": str(r.id), "key": r.key, "sha256": r.sha256, "weight": w} for r, w in references],
    }


def _job_key(recipe: dict[str, Any]) -> str:
    """The sha256 of what determines the picture: contents by hash, not the names and ids they go by here."""
    return sha256_of(
        {
            **recipe,
            "models": [{"role": m["role"], "sha256": m["sha256"]} for m in recipe["models"]],
            "references": [{"sha256": r["sha256"], "weight": r["weight"]} for r in recipe["references"]],
        }
    )


def _batch_key(made: Engine, recipe: dict[str, Any]) -> str:
    """What jobs of one batch share, as a short text: models, size, steps, scheduler."""
    return f"{models_key(made)}{recipe['width_px']}x{recipe['height_px']}/{recipe['steps']}/{recipe['scheduler']}"


def models_key(made: Engine) -> str:
    """How the batch keys begin of all jobs that this engine can make."""
    return f"{made.family.name}/{sha256_of([m.sha256 for m in made.models])[:12]}/"


def _seconds_a_picture(session: Session, batch_keys: set[str]) -> float | None:
    """The mean engine time of the last pictures of the same kind, from their run records."""
    recent = (
        select(Job.picture["run"]["engine_s"].as_float().label("s"))
        .where(Job.batch_key.in_(batch_keys), Job.state == JobState.SUCCEEDED)
        .order_by(Job.finished_at.desc())
        .limit(200)
        .subquery()
    )
    mean = session.scalar(select(func.avg(recent.c.s)))
    return None if mean is None else round(float(mean), 4)
