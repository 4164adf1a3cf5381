"""What happens to a picture that the engine made: blob, checks, then one transaction that finishes its job, gives every
asset that waits for it a version with lineage and checks, and puts it into review."""

from __future__ import annotations

import functools
import platform
import subprocess
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sqlalchemy import select
from sqlalchemy.orm import Session

from asset_store.checks import (
    POLICY_VERSION,
    CheckPolicy,
    check_blank,
    check_decodes,
    check_duplicate,
    check_identity,
    check_palette,
    perceptual_hash,
)
from asset_store.lineage import record as lineage
from asset_store.pictures import open_picture, pixel_sha256, to_png
from asset_store.repositories import jobs as job_table
from asset_store.repositories import libraries
from asset_store.repositories.jobs import ClaimedJob, MadePicture
from asset_store.reviewing import decide
from asset_store.reviewing.decide import CheckResult
from asset_store.rights import licences
from asset_store.tables import (
    Asset,
    AssetVersion,
    Campaign,
    Character,
    CheckOutcome,
    Embedding,
    Job,
    JobState,
    Reference,
)
from flows.wiring import Store
from ipadapter_engine.encoder import ImageEncoder
from ipadapter_engine.pipeline import Engine

FALLBACK_IDENTITY = 0.5  # CLIP-I below which one cannot speak of the same character, where nothing can be calibrated

OWN_SHARE = 0.1  # how far the calibrated threshold lies from the nearest other character towards the own references


@dataclass(frozen=True)
class Finished:
    """A picture whose blob is stored, with what its checks need."""

    data: bytes
    image: Image.Image
    sha256: str
    pixels: str
    perceptual: str
    embedding: np.ndarray
    finite: bool


def look_at(data: bytes, image: Image.Image, sha256: str, encoder: ImageEncoder, *, finite: bool) -> Finished:
    """Hashes and embedding of a picture: all that needs the engine, before any transaction is open."""
    vector = encoder.encode([image])[0].pooled
    return Finished(data, image, sha256, pixel_sha256(image), perceptual_hash(image), vector, finite)


def store_picture(store: Store, image: Image.Image, made: Engine, *, finite: bool) -> Finished:
    data = to_png(image)
    return look_at(data, image, store.blobs.put(data, "image/png"), made.encoder, finite=finite)


def finish_job(session: Session, job: ClaimedJob, done: Finished, run: dict[str, Any], made: Engine) -> bool:
    """Complete a job and all assets that wait for it. False when the job was taken from this worker meanwhile.

    Rights are checked once more: RightsRefused when a reference was withdrawn while the engine worked.
    """
    licences.check_usable(session, _reference_ids(job.recipe), datetime.now(UTC).date())
    picture = MadePicture(done.sha256, done.pixels, done.perceptual, done.image.width, done.image.height, run)
    if not job_table.complete(session, job, picture):
        return False
    attach(session, job.key, done, made)
    return True


def attach_finished(store: Store, keys: Sequence[str], made: Engine) -> int:
    """Give assets whose job was done before (by another campaign, or just before a crash) their version."""
    with store.database.transaction() as session:
        waiting = session.execute(
            select(Job.key, Job.picture_sha256)
            .join(Asset, Asset.job_key == Job.key)
            .outerjoin(AssetVersion, AssetVersion.asset_id == Asset.id)
            .where(Job.key.in_(keys), Job.state == JobState.SUCCEEDED, AssetVersion.id.is_(None))
            .distinct()
        ).all()
    for key, sha256 in waiting:
        assert sha256 is not None  # a job that succeeded names its picture
        data = store.blobs.get(sha256)
        done = look_at(data, open_picture(data).image, sha256, made.encoder, finite=True)
        with store.database.transaction() as session:
            attach(session, key, done, made)
    return len(waiting)


def attach(session: Session, key: str, done: Finished, made: Engine) -> None:
    """Insert version, lineage and checks of every asset that waits for this job, and put it into review."""
    job = session.get_one(Job, key)
    waiting = select(Asset).where(Asset.job_key == key).order_by(Asset.id).with_for_update(of=Asset)
    assets = [
        a for a in session.scalars(waiting) if a.current is None
    ]  # asked under the lock: another may have been first
    references = _references(session, job.recipe)
    for asset in assets:
        picture = AssetVersion(
            id=uuid.uuid4(), asset_id=asset.id, number=1, job_key=key, sha256=done.sha256, pixel_sha256=done.pixels,
            perceptual_hash=done.perceptual, width_px=done.image.width, height_px=done.image.height,
        )  # fmt: skip
        results = _checks(session, asset, job, done, references, made)
        session.add(picture)
        session.flush()
        session.expire(asset, ["versions"])
        record = _lineage(asset, job, done, references, made)
        lineage.write(session, picture.id, record, [r.id for r in references])
        decide.submit(session, asset.id, by=f"flow:{asset.campaign.name}", blob_known=lambda sha: sha == done.sha256)
        decide.finish_checks(session, asset.id, results)


# ---------------------------------------------------------------------------- checks


def _checks(
    session: Session, asset: Asset, job: Job, done: Finished, references: Sequence[Reference], made: Engine
) -> list[CheckResult]:
    policy = CheckPolicy.model_validate(asset.campaign.brief.get("checks", {}))
    results = [
        check_decodes(done.data, job.recipe["width_px"], job.recipe["height_px"]),
        check_blank(done.image, policy, finite=done.finite),
    ]
    character = _character(session, asset)
    if character.palette:
        results.append(check_palette(done.image, character.palette, policy))
    others = session.execute(
        select(AssetVersion.perceptual_hash, AssetVersion.pixel_sha256, Asset.shot, Asset.variant, Campaign.name)
        .join(Asset, Asset.id == AssetVersion.asset_id)
        .join(Campaign, Campaign.id == Asset.campaign_id)
        .where(Campaign.brand_id == asset.campaign.brand_id, AssetVersion.job_key != job.key)
    ).all()
    named = ((r[0], r[1], f"{r[4]}/{r[2]} variant {r[3] + 1}") for r in others)
    results.append(check_duplicate(done.perceptual, done.pixels, named, policy))
    vectors = libraries.embeddings_of(session, {r.sha256 for r in references}, made.encoder.sha256)
    if vectors:
        minimum = policy.identity_min
        if minimum is None:
            minimum = calibrated_identity(session, character, made.encoder.sha256)
        pooled = [np.asarray(v.pooled, dtype=np.float32) for v in vectors.values()]
        results.append(check_identity(done.embedding, pooled, minimum))
    elif references:
        told = "its references have no embedding of the encoder that is loaded"
        results.append(CheckResult("identity", CheckOutcome.NOT_RUN, told, POLICY_VERSION))
    return results


def _character(session: Session, asset: Asset) -> Character:
    name = next(s["character"] for s in asset.campaign.brief["shots"] if s["name"] == asset.shot)
    return session.scalars(
        select(Character).where(Character.brand_id == asset.campaign.brand_id, Character.name == name)
    ).one()


def calibrated_identity(session: Session, character: Character, encoder: str) -> float:
    """The lowest CLIP-I that still speaks for this character: a little over how alike the nearest other character of
    the brand is. References share a setting, so they are more alike than pictures in new scenes will be: half-way
    to their own likeness would refuse right pictures."""
    rows = session.execute(
        select(Reference.character_id, Embedding.pooled)
        .join(Character, Character.id == Reference.character_id)
        .join(Embedding, Embedding.reference_sha256 == Reference.sha256)
        .where(Character.brand_id == character.brand_id, Embedding.encoder_sha256 == encoder)
        .where(Reference.state == "active", Reference.role == "identity")
        .order_by(Reference.id)
    ).all()
    groups: dict[uuid.UUID, list[np.ndarray]] = {}
    for owner, pooled in rows:
        vector = np.asarray(pooled, dtype=np.float32)
        groups.setdefault(owner, []).append(vector / np.linalg.norm(vector))
    own = groups.pop(character.id, [])
    if len(own) < 2 or not groups:
        return FALLBACK_IDENTITY
    likeness = np.stack(own) @ np.stack(own).T
    inside = float((likeness.sum() - len(own)) / (len(own) * (len(own) - 1)))
    outside = max(float((np.stack(own) @ np.stack(g).T).mean()) for g in groups.values())
    return round(max(0.0, outside + OWN_SHARE * (inside - outside)), 4) if inside > outside else FALLBACK_IDENTITY


# ---------------------------------------------------------------------------- lineage


def _reference_ids(recipe: dict[str, Any]) -> list[uuid.UUID]:
    return [uuid.UUID(r["id"]) for r in recipe["references"]]


def _references(session: Session, recipe: dict[str, Any]) -> list[Reference]:
    rows = {r.id: r for r in session.scalars(select(Reference).where(Reference.id.in_(_reference_ids(recipe))))}
    return [rows[i] for i in _reference_ids(recipe)]


def _lineage(asset: Asset, job: Job, done: Finished, references: Sequence[Reference], made: Engine) -> dict[str, Any]:
    recipe, campaign = job.recipe, asset.campaign
    weights = {r["id"]: r["weight"] for r in recipe["references"]}
    run = dict((job.picture or {}).get("run", {}))
    return {
        "output": {
            "sha256": done.sha256,
            "pixel_sha256": done.pixels,
            "perceptual_hash": done.perceptual,
            "width_px": done.image.width,
            "height_px": done.image.height,
        },
        "references": [
            {
                "id": str(r.id),
                "key": r.key,
                "sha256": r.sha256,
                "s3_version_id": r.version_id,
                "role": r.role,
                "weight": weights[str(r.id)],
                "licence": {
                    "name": r.licence_name,
                    "holder": r.licence_holder,
                    "until": None if r.licence_until is None else r.licence_until.isoformat(),
                },
            }
            for r in references
        ],
        "encoder": {
            "sha256": made.encoder.sha256,
            "name": made.encoder.name,
            "preprocessing": made.encoder.preprocessing,
        },
        "models": recipe["models"],
        "settings": {k: v for k, v in recipe.items() if k not in ("models", "references", "encoder", "recipe")},
        "code": code(),
        "run": {
            "campaign": campaign.name,
            "campaign_id": str(campaign.id),
            "brief_sha256": campaign.brief_sha256,
            "shot": asset.shot,
            "variant": asset.variant,
            "requested_by": campaign.requested_by,
            "trigger": campaign.trigger,
            "attempt": job.attempt,
            "job_key": job.key,
            **run,
        },
    }


@functools.cache
def code() -> dict[str, Any]:
    """The software that made a picture: versions, and the commit where it runs from a checkout."""
    versions = {"python": platform.python_version()}
    for package in ("onmodel", "torch", "diffusers", "transformers", "pillow", "prefect"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    here = Path(__file__).resolve().parent.parent
    commit = None
    if (here / ".git").exists():
        asked = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
        commit = asked.stdout.strip() or None
    return {"versions": versions, "commit": commit}
