"""What happens to a picture that the engine made: blob, checks, then one transaction that finishes its job, gives every
asset that waits for it a version with lineage and checks, and puts it into review."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import ColumnElement, exists, not_, select
from sqlalchemy.orm import Session

from asset_store.checks import (
    POLICY_VERSION,
    CheckPolicy,
    check_blank,
    check_decodes,
    check_duplicate,
    check_identity,
    check_palette,
)
from asset_store.errors import BlobCorrupt, BlobMissing, PictureRefused, RightsRefused
from asset_store.lineage import record as lineage
from asset_store.pictures import open_picture
from asset_store.repositories import jobs as job_table
from asset_store.repositories import libraries
from asset_store.repositories.jobs import ClaimedJob, MadePicture
from asset_store.reviewing import decide, similar
from asset_store.reviewing.decide import CheckResult
from asset_store.reviewing.retaking import retake_of
from asset_store.rights import licences
from asset_store.tables import (
    Asset,
    AssetVersion,
    Campaign,
    Character,
    CheckOutcome,
    Job,
    JobState,
    Reference,
)
from flows import recipes
from flows.calibration import FALLBACK_IDENTITY, Threshold, find_evidence, threshold_from
from flows.candidates import choose_candidate
from flows.conditions import reference_ids
from flows.looking import Finished, look_at
from flows.recording import record_of, told_of
from flows.wiring import Store

if TYPE_CHECKING:
    from ipadapter_engine.engines import PictureEngine


@dataclass(frozen=True)
class Attached:
    """How many jobs gave their assets a version, and why others may not: a sentence each."""

    jobs: int
    refused: tuple[str, ...] = ()


def finish_job(
    session: Session, job: ClaimedJob, candidates: Sequence[Finished], run: dict[str, Any], made: PictureEngine,
    thresholds: Mapping[uuid.UUID, Threshold],
) -> bool:  # fmt: skip
    """Complete a job and all assets that wait for it. False when the job was taken from this worker meanwhile.

    candidates: the job's picture, or with best_of all of them, of which one is kept.
    Rights are checked once more: RightsRefused when a reference was withdrawn while the engine worked, also one that a
    character's model learnt from.
    """
    licences.check_usable(session, reference_ids(job.recipe), datetime.now(UTC).date())
    done = candidates[0]
    if len(candidates) > 1:
        done, chosen = choose_candidate(session, job.key, job.recipe, candidates, made.encoder.sha256)
        run = {**run, **chosen}
    picture = MadePicture(done.sha256, done.pixels, done.perceptual, done.image.width, done.image.height, run)
    if not job_table.complete(session, job, picture):
        return False
    attach(session, job.key, done, made, thresholds)
    return True


def waits_for_its_job() -> ColumnElement[bool]:
    """Whether an asset has no version of its job yet: it is new, or made anew."""
    made = exists().where(AssetVersion.asset_id == Asset.id, AssetVersion.job_key == Asset.job_key)
    return not_(made)


def attach_waiting(store: Store, keys: Sequence[str], made: PictureEngine) -> Attached:
    """Give assets whose job was done before (by another campaign, or just before a crash) their version, unless a
    reference of the picture may not be used today."""
    with store.database.transaction() as session:
        waiting = session.execute(
            select(Job.key, Job.picture_sha256)
            .join(Asset, Asset.job_key == Job.key)
            .where(
                Job.key.in_(keys), Job.state == JobState.SUCCEEDED, Job.picture_sha256.is_not(None), waits_for_its_job()
            )
            .distinct()
        ).all()
    thresholds = thresholds_for(store, [key for key, _ in waiting], made)
    refused = []
    for key, sha256 in waiting:
        assert sha256 is not None  # a job that succeeded names its picture
        data = store.blobs.get(sha256)
        done = look_at(data, open_picture(data).image, sha256, made.encoder, finite=True)
        try:
            with store.database.transaction() as session:
                recipe = session.get_one(Job, key).recipe
                licences.check_usable(session, reference_ids(recipe), datetime.now(UTC).date())
                attach(session, key, done, made, thresholds)
        except RightsRefused as error:
            refused.append(f"made before, and not used: {error.message}")
    return Attached(len(waiting) - len(refused), tuple(refused))


def thresholds_for(store: Store, keys: Sequence[str], made: PictureEngine) -> dict[uuid.UUID, Threshold]:
    """The thresholds, by character, that assets of these jobs are checked with; before the transaction that finishes
    them, as calibrating takes time and reads pictures."""
    today, encoder = datetime.now(UTC).date(), made.encoder.sha256
    with store.database.transaction() as session:
        waiting = session.execute(select(Asset, Job).join(Job, Job.key == Asset.job_key).where(Job.key.in_(keys))).all()
        shown = (_character(session, asset) for asset, job in waiting if _is_calibrated(asset, job))
        characters = {c.id: c for c in shown}
        evidence = {i: find_evidence(session, store, c, encoder, today) for i, c in characters.items()}
    return {i: threshold_from(e) for i, e in evidence.items()}


def attach(
    session: Session, key: str, done: Finished, made: PictureEngine, thresholds: Mapping[uuid.UUID, Threshold]
) -> None:
    """Insert version, lineage and checks of every asset that waits for this job, and put it into review.

    One that came after `thresholds` was made and shows another character is left to `attach_waiting`, which its
    campaign ends with.
    """
    job = session.get_one(Job, key)
    remember_encoder(session, made)
    similar.remember(session, made.encoder.sha256, [(done.sha256, done.embedding)])
    waiting = select(Asset).where(Asset.job_key == key).order_by(Asset.id).with_for_update(of=Asset)
    assets = [
        a
        for a in session.scalars(waiting)  # asked under the lock: another may have been first
        if (a.current is None or a.current.job_key != key)
        and (not _is_calibrated(a, job) or _character(session, a).id in thresholds)
    ]
    references = _references(session, job.recipe)
    for asset in assets:
        parent = asset.current
        picture = AssetVersion(
            id=uuid.uuid4(), asset_id=asset.id, number=1 if parent is None else parent.number + 1,
            parent_id=None if parent is None else parent.id, job_key=key, sha256=done.sha256, pixel_sha256=done.pixels,
            perceptual_hash=done.perceptual, width_px=done.image.width, height_px=done.image.height,
        )  # fmt: skip
        results = _checks(session, asset, job, done, made, thresholds)
        session.add(picture)
        session.flush()
        session.expire(asset, ["versions"])
        record = record_of(asset, job, done, references, made)
        if (retake := retake_of(session, asset.id, key)) is not None:
            record["retake"] = told_of(retake)
        lineage.write(session, picture.id, record, [r.id for r in references])
        decide.submit(session, asset.id, by=f"flow:{asset.campaign.name}", blob_known=lambda sha: sha == done.sha256)
        decide.finish_checks(session, asset.id, results)


def embed_pictures(store: Store, made: PictureEngine, most: int) -> int:
    """Embed pictures that the engine's encoder has not seen, such as those of before it came; returns how many. One that is lost or
    cannot be opened is not tried again."""
    with store.database.transaction() as session:
        remember_encoder(session, made)
        unseen = similar.unseen(session, made.encoder.sha256, most)
    embedded = 0
    for sha256 in unseen:
        try:
            vector = made.encoder.encode([open_picture(store.blobs.get(sha256)).image])[0].pooled
            embedded += 1
        except (BlobMissing, BlobCorrupt, PictureRefused):
            vector = None
        with store.database.transaction() as session:
            similar.remember(session, made.encoder.sha256, [(sha256, vector)])
    return embedded


def remember_encoder(session: Session, made: PictureEngine) -> None:
    encoder = made.encoder
    libraries.save_encoder(session, encoder.sha256, encoder.name, encoder.dim, encoder.preprocessing)


# ---------------------------------------------------------------------------- checks


def _checks(
    session: Session,
    asset: Asset,
    job: Job,
    done: Finished,
    made: PictureEngine,
    thresholds: Mapping[uuid.UUID, Threshold],
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
    threshold = thresholds.get(character.id) if _is_calibrated(asset, job) else None
    identity = _identity(session, job, done, threshold, policy, made.encoder.sha256)
    return results if identity is None else [*results, identity]


def _is_calibrated(asset: Asset, job: Job) -> bool:
    """Whether the asset's identity is checked by its character's own threshold: a brief may set one instead, and a
    threshold of one character says nothing of a picture of several."""
    policy = CheckPolicy.model_validate(asset.campaign.brief.get("checks", {}))
    several = recipes.shows_others(job.recipe, _name_of_character(asset))
    return policy.identity_min is None and not several and bool(recipes.of_identity(job.recipe))


def _identity(
    session: Session, job: Job, done: Finished, threshold: Threshold | None, policy: CheckPolicy, encoder: str
) -> CheckResult | None:
    """The likeness to the references that say who is shown; None where a picture was made from the text alone.

    A calibrated threshold is of the mean likeness to all own references, so that is what it is compared with; the
    brief's and the fallback are of the likeness to the references that made the picture.
    """
    shown = recipes.of_identity(job.recipe)
    if not shown:
        return None
    if policy.identity_min is None and threshold is not None and threshold.references is not None:
        result = check_identity(done.embedding, list(threshold.references), threshold.value)
        to = f"all {len(threshold.references)} references of its character"
        return replace(result, message=f"CLIP-I {result.value:.2f} to {to}; {threshold.told}")
    vectors = libraries.embeddings_of(session, {r["sha256"] for r in shown}, encoder)
    if not vectors:
        told = "its references have no embedding of the encoder that is loaded"
        return CheckResult("identity", CheckOutcome.NOT_RUN, told, POLICY_VERSION)
    value, told = FALLBACK_IDENTITY, "the usual threshold, as it shows several characters"
    if policy.identity_min is not None:
        value, told = policy.identity_min, "threshold of the brief"
    elif threshold is not None:
        value, told = threshold.value, threshold.told
    result = check_identity(done.embedding, [np.asarray(v.pooled, dtype=np.float32) for v in vectors.values()], value)
    return replace(result, message=f"CLIP-I {result.value:.2f} to the references it was made from; {told}")


def _character(session: Session, asset: Asset) -> Character:
    named = Character.name == _name_of_character(asset)
    return session.scalars(select(Character).where(Character.brand_id == asset.campaign.brand_id, named)).one()


def _name_of_character(asset: Asset) -> str:
    return next(str(s["character"]) for s in asset.campaign.brief["shots"] if s["name"] == asset.shot)


def _references(session: Session, recipe: dict[str, Any]) -> list[Reference]:
    ids = reference_ids(recipe)
    rows = {r.id: r for r in session.scalars(select(Reference).where(Reference.id.in_(ids)))}
    return [rows[i] for i in ids]
