"""Builders of what a test begins with, each a sentence: a campaign, a reference, an asset in review."""

from __future__ import annotations

import hashlib
import itertools
import uuid
from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from asset_store import releasing
from asset_store.canonical import sha256_of
from asset_store.lineage import record as lineage
from asset_store.reviewing import comments, decide
from asset_store.reviewing.policy import policy_of
from asset_store.tables import (
    Asset,
    AssetVersion,
    Brand,
    Campaign,
    Character,
    CheckOutcome,
    Embedding,
    Encoder,
    Evaluation,
    IdentityThreshold,
    Job,
    JobState,
    Library,
    ModelKind,
    ModelReference,
    Preset,
    Reference,
    Removal,
    Retake,
    TrainedModel,
    Verdict,
)

REQUESTER = "ada"
REVIEWER = "grace"
TODAY = date(2026, 6, 1)

_numbers = itertools.count(1)


def a_sha256(of: str) -> str:
    return hashlib.sha256(of.encode()).hexdigest()


def a_brand(session: Session, name: str = "bobo") -> Brand:
    found = session.scalar(select(Brand).where(Brand.name == name))
    if found is None:
        found = Brand(name=name, title=name.title())
        session.add(found)
        session.flush()
    return found


def a_reference(
    session: Session,
    key: str = "bobo/front.png",
    licence_until: date | None = None,
    content: str = "",
    brand: str = "bobo",
) -> Reference:
    """An active reference in a library of its brand; the same `content` is the same bytes."""
    url = f"s3://{brand}/library"
    library = session.scalar(select(Library).where(Library.url == url))
    if library is None:
        library = Library(
            url=url, brand_id=a_brand(session, brand).id, file_sha256=a_sha256(url), loaded_at=datetime.now(UTC)
        )
        session.add(library)
        session.flush()
    reference = Reference(
        library_id=library.id,
        key=key,
        sha256=a_sha256(content or key),
        pixel_sha256=a_sha256("pixels " + (content or key)),
        size_bytes=1000,
        etag="e",
        role="identity",
        weight=1.0,
        licence_name="house",
        licence_until=licence_until,
        format="png",
        width_px=64,
        height_px=64,
    )
    session.add(reference)
    session.flush()
    return reference


def an_embedding(session: Session, reference: Reference, encoder: str = "clip") -> Embedding:
    if session.get(Encoder, a_sha256(encoder)) is None:
        session.add(Encoder(sha256=a_sha256(encoder), name=encoder, dim=3, preprocessing={"size": 64}))
        session.flush()
    embedding = Embedding(reference_sha256=reference.sha256, encoder_sha256=a_sha256(encoder), pooled=[1.0, 0.5, -0.25])
    session.add(embedding)
    session.flush()
    return embedding


def a_character(session: Session, name: str = "Bobo", brand: str = "bobo") -> Character:
    character = Character(brand_id=a_brand(session, brand).id, name=name)
    session.add(character)
    session.flush()
    return character


def what_was_trained(session: Session, reference: Reference) -> TrainedModel:
    """A model of the character that the reference shows, and a row of everything else that is known of models."""
    character = Character(brand_id=a_brand(session).id, name=f"Bobo {next(_numbers)}")
    session.add(character)
    session.flush()
    embedding = an_embedding(session, reference)
    model = TrainedModel(
        kind=ModelKind.CHARACTER, name=f"bobo/{character.name}", version=1, character_id=character.id,
        sha256=a_sha256(character.name), size_bytes=1, base_name="base", base_sha256=a_sha256("base"), settings={},
        figures={}, made_by=REQUESTER,
    )  # fmt: skip
    session.add(model)
    session.flush()
    session.add_all(
        [
            ModelReference(model_id=model.id, reference_id=reference.id),
            Evaluation(protocol="own", settings={}, models=[], rows=[], made_by=REQUESTER),
            Preset(character_id=character.id, models_sha256=a_sha256("base"), version=1, scale=0.8, window_start=0.0,
                   window_end=1.0, target={}, curve=[], made_by=REQUESTER),
            IdentityThreshold(character_id=character.id, encoder_sha256=embedding.encoder_sha256, version=1,
                              threshold=0.5, evidence={}, made_by=REQUESTER),
        ]
    )  # fmt: skip
    session.flush()
    return model


def what_was_said(session: Session, asset: Asset) -> None:
    """A comment on the asset, a retake of it, and that its picture was removed."""
    assert asset.current is not None
    comments.comment(session, asset.current.id, REVIEWER, "three ears")
    job = a_job(session)
    session.add(
        Retake(asset_id=asset.id, number=1, parent_id=asset.current.id, job_key=job.key, changes=[], comments=[],
               by=REQUESTER)
    )  # fmt: skip
    session.add(
        Removal(
            version_id=asset.current.id, sha256=asset.current.sha256, policy="rejected for 30 days", by="flow:sweep"
        )
    )
    session.flush()


def a_campaign(
    session: Session, name: str = "spring", stages: Sequence[Any] = ("brand",), brand: str = "bobo", **fields: Any
) -> Campaign:
    brief = {"name": name, "number": next(_numbers)}
    campaign = Campaign(
        name=name,
        brand_id=a_brand(session, brand).id,
        brief=brief,
        brief_sha256=sha256_of(brief),
        stages=list(stages),
        requested_by=fields.get("requested_by", REQUESTER),
        trigger="test",
    )
    session.add(campaign)
    session.flush()
    return campaign


def a_job(session: Session, references: Sequence[Reference] = (), state: JobState = JobState.SUCCEEDED) -> Job:
    recipe = {
        "recipe": 1,
        "family": "studio",
        "width_px": 64,
        "height_px": 64,
        "prompt": "bobo on the beach",
        "seed": next(_numbers),
        "steps": 20,
        "models": [],
        "references": [{"id": str(reference.id), "sha256": reference.sha256} for reference in references],
    }
    job = Job(key=sha256_of(recipe), batch_key="studio/0123/64x64/20/ddim", recipe=recipe, state=state)
    session.add(job)
    session.flush()
    return job


def a_record(version: AssetVersion, asset: Asset, references: Sequence[Reference]) -> dict[str, Any]:
    """A complete lineage record."""
    campaign = asset.campaign
    return {
        "output": {
            "sha256": version.sha256,
            "pixel_sha256": version.pixel_sha256,
            "width_px": version.width_px,
            "height_px": version.height_px,
        },
        "references": [
            {"id": str(r.id), "key": r.key, "sha256": r.sha256, "licence": r.licence_name, "weight": 1.0}
            for r in references
        ],
        "models": [{"role": "unet", "name": "studio", "sha256": a_sha256("unet")}],
        "settings": {
            "prompt": "bobo on the beach",
            "seed": 7,
            "steps": 20,
            "scheduler": "ddim",
            "guidance": 4.0,
            "scale": 0.85,
            "width_px": 64,
            "height_px": 64,
        },
        "code": {"versions": {"onmodel": "0.1"}},
        "run": {
            "campaign": campaign.name,
            "brief_sha256": campaign.brief_sha256,
            "shot": asset.shot,
            "variant": asset.variant,
            "requested_by": campaign.requested_by,
            "trigger": campaign.trigger,
            "attempt": 1,
        },
    }


def an_asset(
    session: Session, campaign: Campaign | None = None, references: Sequence[Reference] = (), record: bool = True,
    picture: str | None = None, with_version: bool = True,
) -> Asset:  # fmt: skip
    """A draft with one version, or none, and its lineage record; picture: the sha256 of a blob that is there."""
    number = next(_numbers)
    campaign = campaign or a_campaign(session, f"campaign {number}")
    job = a_job(session, references)
    asset = Asset(campaign=campaign, shot=f"shot {number}", variant=1, job_key=job.key)
    session.add(asset)
    session.flush()
    if with_version:
        a_version(session, asset, references, record, picture)
    return asset


def a_version(
    session: Session,
    asset: Asset,
    references: Sequence[Reference] = (),
    record: bool = True,
    picture: str | None = None,
) -> AssetVersion:
    """One more version of an asset."""
    number, parent = next(_numbers), asset.current
    version = AssetVersion(
        id=uuid.uuid4(),
        asset_id=asset.id,
        number=parent.number + 1 if parent else 1,
        parent_id=parent.id if parent else None,
        job_key=a_job(session, references).key if parent else asset.job_key,
        sha256=picture or a_sha256(f"picture {number}"),
        pixel_sha256=a_sha256(f"pixels {number}"),
        perceptual_hash=f"{number:016x}",
        width_px=64,
        height_px=64,
    )
    session.add(version)
    session.flush()
    session.expire(asset, ["versions"])
    if record:
        lineage.write(session, version.id, a_record(version, asset, references), [r.id for r in references])
    return version


def a_check(outcome: CheckOutcome = CheckOutcome.PASS, name: str = "not blank") -> decide.CheckResult:
    return decide.CheckResult(name, outcome, f"{name}: {outcome}", "1", value=0.5, threshold=0.2)


def an_asset_in_review(
    session: Session,
    campaign: Campaign | None = None,
    references: Sequence[Reference] = (),
    outcome: CheckOutcome = CheckOutcome.PASS,
    picture: str | None = None,
) -> Asset:
    """In review at the first stage; where `outcome` is no pass, by a waiver."""
    asset = an_asset(session, campaign, references, picture=picture)
    decide.submit(session, asset.id, "flow:campaign", blob_known=lambda sha256: True)
    decide.finish_checks(session, asset.id, [a_check(outcome)])
    if outcome in (CheckOutcome.FAIL, CheckOutcome.NOT_RUN):
        decide.waive(session, asset.id, "lead", "looks right to me")
    return asset


def picture_of(asset: Asset) -> str:
    """The sha256 of the picture that a reviewer of the asset sees."""
    assert asset.current is not None
    return asset.current.sha256


def approve(session: Session, asset: Asset, by: str = REVIEWER) -> Asset:
    return decide.decide(session, asset.id, Verdict.APPROVE, by, "", picture_of(asset))


def an_approved_asset(
    session: Session, campaign: Campaign | None = None, references: Sequence[Reference] = (), picture: str | None = None
) -> Asset:
    asset = an_asset_in_review(session, campaign, references, picture=picture)
    for stage in policy_of(asset.campaign).stages:
        for number in range(stage.quorum):
            by = f"{REVIEWER} of {stage.name} {number}"
            decide.decide(session, asset.id, Verdict.APPROVE, by, "", picture_of(asset), stage=stage.name)
    return asset


def a_delivery(asset: Asset, address: str = "") -> releasing.NewDelivery:
    return releasing.NewDelivery(
        "web", address or f"s3://shop/{asset.id}.png", "full size", a_sha256(f"rendition of {asset.id}")
    )


def a_released_asset(session: Session, references: Sequence[Reference] = ()) -> Asset:
    asset = an_approved_asset(session, references=references)
    releasing.finish(session, asset.id, [a_delivery(asset)], "releaser", on=TODAY)
    return asset
