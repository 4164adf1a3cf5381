"""A database of many assets, as a team's would be after years: brands, characters, campaigns, checks, decisions, comments, embeddings.

Rows are copied in, and the tables' own triggers run. The newest assets have real pictures, the others name blobs that are not there,
and lineage records are not chained: nothing that is measured here reads either.
"""

from __future__ import annotations

import functools
import io
import json
import random
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import psycopg
from PIL import Image

from asset_store.canonical import sha256_of
from asset_store.database import Database
from asset_store.repositories import libraries
from asset_store.tables import Brand, Character
from flows.wiring import Store
from ipadapter_engine.encoder import ImageEncoder
from ipadapter_engine.training.drawing import render
from ipadapter_engine.training.mascots import held_out_identities, random_staging

BRANDS, CHARACTERS_A_BRAND, CAMPAIGN = 5, 4, 200  # assets a campaign
STATES = (
    ("in review", 30),
    ("approved", 40),
    ("rejected", 10),
    ("changes requested", 10),
    ("check failed", 6),
    ("draft", 4),
)
CHECKS = ("decodes", "blank", "palette", "duplicate", "identity")
WORDS = [
    "beach",
    "forest",
    "market",
    "snow",
    "night",
    "city",
    "kitchen",
    "garden",
    "harbour",
    "desert",
    "studio",
    "train",
    "meadow",
    "castle",
    "library",
]
SECOND_VERSION = 0.1  # share of assets that were made anew
PICTURES, SIDE_PX = 120, 512  # the newest assets have real pictures of this size
EVERY = timedelta(minutes=9)  # between one asset and the next
DRAWN, JITTER = 200, 0.3  # drawn pictures a character; others differ from one by a share of what two others differ


@dataclass(frozen=True)
class Asset:
    id: uuid.UUID
    version_id: uuid.UUID
    sha256: str
    number: int
    character: int


def seed(
    store: Store, count: int, encoder: ImageEncoder, *, campaign: int | None = None, drawn: int | None = None
) -> None:
    """`count` assets with all that hangs on them; the same seed makes the same. campaign: assets each, CAMPAIGN unless given; drawn:
    pictures a character that embeddings are of, DRAWN unless given."""
    campaign, drawn = campaign or CAMPAIGN, drawn or DRAWN
    rng, noise = random.Random(count), np.random.default_rng(count)
    brands = _brands(store.database)
    pictures = [_picture(store, noise) for _ in range(min(PICTURES, count))]
    now = datetime.now(UTC)
    with store.database.direct() as connection, connection.transaction():
        campaigns = _campaigns(connection, rng, brands, -(-count // campaign), EVERY * campaign, now)
        assets = _assets(connection, rng, campaigns, campaign, brands, pictures, count, now)
        _versions(connection, rng, assets)
        _said(connection, rng)
    _embeddings(store.database, noise, assets, encoder, drawn)
    with store.database.direct() as connection:
        connection.execute(
            "VACUUM (FULL) assets"
        )  # written all at once they leave room that years would have used again
        connection.execute("VACUUM (ANALYZE)")


def _brands(database: Database) -> list[tuple[uuid.UUID, list[str]]]:
    made = []
    with database.transaction() as session:
        for b in range(BRANDS):
            brand = Brand(name=f"brand-{b}", title=f"Brand {b}")
            session.add(brand)
            session.flush()
            names = [f"hero-{b}-{c}" for c in range(CHARACTERS_A_BRAND)]
            session.add_all(Character(brand_id=brand.id, name=n) for n in names)
            made.append((brand.id, names))
    return made


def _picture(store: Store, noise: np.random.Generator) -> str:
    """A picture of soft shapes, as large in bytes as a drawn one of its size."""
    coarse = noise.integers(0, 256, (12, 12, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC).save(out, "PNG")
    return store.blobs.put(out.getvalue(), "image/png")


def _campaigns(
    connection: psycopg.Connection, rng: random.Random, brands: Sequence[tuple[uuid.UUID, list[str]]], count: int,
    every: timedelta, now: datetime,
) -> list[tuple[uuid.UUID, int]]:  # fmt: skip
    """Campaigns, the newest first, each with its brand's index."""
    made, rows = [], []
    for i in range(count):
        id_, b = uuid.UUID(int=rng.getrandbits(128)), i % BRANDS
        shots = [{"name": f"{w}-{n}", "character": n} for n in brands[b][1] for w in WORDS]
        brief = {"campaign": f"campaign-{i:04d}", "shots": shots}
        rows.append(
            (
                id_,
                brief["campaign"],
                brands[b][0],
                json.dumps(brief),
                sha256_of(brief),
                '["brand"]',
                "someone",
                "seed",
                now - every * (i + 1),
            )
        )
        made.append((id_, b))
    columns = "id, name, brand_id, brief, brief_sha256, stages, requested_by, trigger, made_at"
    _copy(connection, f"campaigns ({columns})", rows)
    return made


def _assets(
    connection: psycopg.Connection, rng: random.Random, campaigns: Sequence[tuple[uuid.UUID, int]], each: int,
    brands: Sequence[tuple[uuid.UUID, list[str]]], pictures: Sequence[str], count: int, now: datetime,
) -> list[Asset]:  # fmt: skip
    made, jobs, rows = [], [], []
    states = [s for s, weight in STATES for _ in range(weight)]
    for i in range(count):
        campaign, b = campaigns[i // each]
        c = rng.randrange(CHARACTERS_A_BRAND)
        name, word = brands[b][1][c], rng.choice(WORDS)
        prompt = f"{name} at the {word}, {rng.choice(WORDS)} {rng.choice(WORDS)}"
        key = sha256_of({"asset": i, "of": count})
        at = now - EVERY * (i + 1)
        jobs.append((key, "studio", json.dumps({"prompt": prompt, "seed": i}), "succeeded", at, at))
        state = "in review" if i < len(pictures) else rng.choice(states)
        waits = "{brand}" if state == "in review" else "{}"
        due = at + timedelta(days=rng.randrange(1, 9)) if state == "in review" and rng.random() < 0.5 else None
        released = "released" if state == "approved" and rng.random() < 0.5 else "unreleased"
        asset = Asset(
            uuid.UUID(int=rng.getrandbits(128)), uuid.UUID(int=rng.getrandbits(128)),
            pictures[i] if i < len(pictures) else sha256_of({"picture": i}), 1 + (rng.random() < SECOND_VERSION),
            b * CHARACTERS_A_BRAND + c,
        )  # fmt: skip
        rows.append((asset.id, campaign, f"{word}-{name}", i % each, key, state, 0, waits, due, released, 1, at))
        made.append(asset)
    _copy(
        connection,
        "jobs (key, batch_key, recipe, state, not_before, made_at, attempt, evidence)",
        [(*j, 1, "[]") for j in jobs],
    )
    columns = (
        "id, campaign_id, shot, variant, job_key, review, stage, waits_at, due_at, availability, row_version, made_at"
    )
    _copy(connection, f"assets ({columns})", rows)
    return made


def _versions(connection: psycopg.Connection, rng: random.Random, assets: Sequence[Asset]) -> None:
    keys: dict[uuid.UUID, str] = dict(connection.execute("SELECT id, job_key FROM assets").fetchall())
    versions: list[tuple[Any, ...]] = []
    checks, records = [], []
    for asset in assets:
        first = uuid.UUID(int=rng.getrandbits(128)) if asset.number > 1 else None
        if first is not None:
            old = sha256_of({"before": str(asset.id)})
            versions.append((first, asset.id, 1, None, old, old, old, old[:16], SIDE_PX, SIDE_PX))
        of = asset.version_id, asset.id, asset.number, first
        versions.append((*of, keys[asset.id], asset.sha256, asset.sha256, asset.sha256[:16], SIDE_PX, SIDE_PX))
        for name in CHECKS:
            outcome = rng.choices(("pass", "warn", "fail"), (90, 7, 3))[0]
            checks.append((asset.version_id, name, outcome, 0.8, 0.5, f"{name} was looked at", "1"))
        record = {
            "settings": {"prompt": "a hero", "seed": 7, "steps": 20, "guidance": 4.0},
            "references": [],
            "models": [],
        }
        sha = sha256_of({"record": str(asset.version_id)})
        records.append((asset.version_id, json.dumps(record), sha, sha))
    old_jobs = {v[4] for v in versions if v[3] is None and v[2] == 1 and v[4] == v[5]}
    _copy(
        connection,
        "jobs (key, batch_key, recipe, state, attempt, evidence)",
        [(k, "studio", "{}", "succeeded", 1, "[]") for k in old_jobs],
    )
    columns = "id, asset_id, number, parent_id, job_key, sha256, pixel_sha256, perceptual_hash, width_px, height_px"
    _copy(connection, f"asset_versions ({columns})", versions)
    _copy(connection, "checks (version_id, name, outcome, value, threshold, message, policy_version)", checks)
    _copy(connection, "lineage_records (version_id, record, previous_sha256, sha256)", records)


def _said(connection: psycopg.Connection, rng: random.Random) -> None:
    """What people said and whom they asked: an approval of what is approved, a comment on one in ten, somebody asked of one in twenty."""
    versions = connection.execute(
        "SELECT DISTINCT ON (assets.id) assets.id, asset_versions.id, asset_versions.sha256, assets.review FROM assets "
        "JOIN asset_versions ON asset_versions.asset_id = assets.id ORDER BY assets.id, asset_versions.number DESC"
    ).fetchall()
    decisions = [(v, "brand", "approve", "grace", "", sha) for _, v, sha, review in versions if review == "approved"]
    _copy(connection, "decisions (version_id, stage, verdict, by, reason, seen_sha256)", decisions)
    said = [(uuid.uuid4(), v, "grace", "three ears", False) for _, v, _, _ in versions if rng.random() < 0.1]
    _copy(connection, "comments (id, version_id, by, text, retracted)", said)
    asked = [(uuid.uuid4(), asset, "brand", "rhea", "grace") for asset, *_ in versions if rng.random() < 0.05]
    _copy(connection, "assignments (id, asset_id, stage, person, by)", asked)


def _embeddings(
    database: Database, noise: np.random.Generator, assets: Sequence[Asset], encoder: ImageEncoder, each: int
) -> None:
    """Of drawn pictures of as many characters, as the studio's own encoder sees them, and of others near to those; the index is
    built once they are in, as pgvector advises."""
    drawn = _drawn(encoder, each)
    places = noise.integers(0, each, (3, len(assets)))
    near, this, that = (drawn[[a.character for a in assets], place] for place in places)
    vectors = near + JITTER * (this - that)
    with database.direct() as connection, connection.transaction():
        connection.execute(
            "INSERT INTO encoders (sha256, name, dim, preprocessing) VALUES (%s, %s, %s, '{}')",
            [encoder.sha256, encoder.name, encoder.dim],
        )
        rows = ((a.sha256, encoder.sha256, str(v.tolist())) for a, v in zip(assets, vectors, strict=True))
        _copy(connection, "picture_embeddings (picture_sha256, encoder_sha256, pooled)", rows)
    with database.transaction() as session:
        libraries.index_embeddings(session, encoder.sha256, encoder.dim)


@functools.cache
def _drawn(encoder: ImageEncoder, each: int) -> np.ndarray:
    """Unit vectors (characters, each, dim), float32."""
    rng, told = random.Random(7), []
    for who in held_out_identities()[: BRANDS * CHARACTERS_A_BRAND]:
        pictures = [render(who, random_staging(rng), seed=n) for n in range(each)]
        vectors = np.stack([e.pooled for e in encoder.encode(pictures)])
        told.append(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    return np.stack(told).astype(np.float32)


def _copy(connection: psycopg.Connection, into: str, rows: Iterable[Sequence[Any]]) -> None:
    with connection.cursor().copy(f"COPY {into} FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)
