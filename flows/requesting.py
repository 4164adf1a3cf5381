"""From a job's recipe to what the engine is asked for: embeddings, pictures, masks and a character's model, verified."""

from __future__ import annotations

import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asset_store.repositories import libraries
from asset_store.rights import licences
from asset_store.tables import Embedding
from flows import recipe_keys, recipes
from flows.candidates import check_comparable
from flows.conditions import pixels_of, reference_ids
from flows.directions import box_mask, mask_of
from flows.loading import picture_of
from flows.wiring import Store
from ipadapter_engine.errors import RequestRefused
from ipadapter_engine.hashing import sha256_of_file
from ipadapter_engine.prompts import IDENTITY, CharacterModel, ControlPrompt, ReferencePrompt, SourcePicture
from ipadapter_engine.requests import GenerationRequest

if TYPE_CHECKING:
    from ipadapter_engine.engines import PictureEngine


def requests_of(store: Store, engine: PictureEngine, recipe: dict[str, Any]) -> list[GenerationRequest]:
    """One request a candidate, in the order of their seeds.

    Every reference that the picture descends from must be usable today: RightsRefused. RequestRefused where this engine
    cannot make it (`recipes.obstacle` asks before), or where a reference has no embedding.
    """
    from ipadapter_engine.engines import reads_pictures  # it loads torch, which those who plan alone go without

    if (obstacle := recipes.obstacle(engine, recipe)) is not None:
        raise RequestRefused(obstacle, "start a worker with the models of the campaign, or plan it again")
    with store.database.transaction() as session:  # one: no reference can be withdrawn before its embedding is read
        licences.check_usable(session, reference_ids(recipe), datetime.now(UTC).date())
        check_comparable(session, [recipe], engine.encoder.sha256)
        seen = reads_pictures(engine)
        sha256s = set() if seen else {r["sha256"] for r in recipe_keys.heard(recipe)}
        found = libraries.embeddings_of(session, sha256s, engine.encoder.sha256) if sha256s else {}
    request = GenerationRequest(
        recipe["prompt"], recipe["seed"], _pictures(store, recipe) if seen else _references(store, engine, recipe, found),
        recipe["negative_prompt"],
        recipe["scale"], (recipe["window"][0], recipe["window"][1]), recipe["width_px"], recipe["height_px"],
        recipe["steps"], recipe["guidance"], recipe["scheduler"], _controls(store, recipe), _character(store, recipe),
        scales=recipes.scales_of(recipe), settings=recipes.settings_of(recipe), regions=_regions(store, recipe),
        source=_source(store, recipe), guidance_window=_guidance_window(recipe), loras=recipes.loras_of(engine, recipe),
    )  # fmt: skip
    return [replace(request, seed=seed) for seed in recipes.seeds_of(recipe)]


def _references(
    store: Store, engine: PictureEngine, recipe: dict[str, Any], found: Mapping[str, Embedding]
) -> tuple[ReferencePrompt, ...]:
    references: list[ReferencePrompt] = []
    for r in recipe_keys.heard(recipe):
        adapter, row = r.get("adapter", IDENTITY), found.get(r["sha256"])
        if row is None:
            raise RequestRefused(f"{r['key']} has no embedding of this encoder", "ingest its library again")
        hidden, tiled = engine.reads_hidden(adapter), r.get("tiled", False)
        if tiled or (hidden and row.hidden_sha256 is None):
            seen = _seen_now(store, engine, r["sha256"], hidden=hidden, tiled=tiled)
        elif hidden:
            raw = np.frombuffer(store.blobs.get(row.hidden_sha256 or ""), dtype=np.float16)
            seen = (raw.reshape(-1, engine.encoder.hidden_dim).astype(np.float32),)
        else:
            seen = (np.asarray(row.pooled, dtype=np.float32),)
        negative, region, weight = r.get("negative", False), r.get("region"), r["weight"] / len(seen)
        references += [ReferencePrompt(v, weight, adapter, negative=negative, region=region) for v in seen]
    return tuple(references)


def _pictures(store: Store, recipe: dict[str, Any]) -> tuple[ReferencePrompt, ...]:
    """The references as a family sees them that reads pictures itself."""
    return tuple(
        ReferencePrompt(None, r["weight"], r.get("adapter", IDENTITY), picture=pixels_of(store.blobs.get(r["sha256"])))
        for r in recipe_keys.heard(recipe)
    )


_seen: OrderedDict[tuple[str, str, bool, bool], tuple[np.ndarray, ...]] = OrderedDict()  # a campaign names few
_SEEN_MOST = 32
_seen_lock = threading.Lock()


def _seen_now(store: Store, engine: PictureEngine, sha256: str, *, hidden: bool, tiled: bool) -> tuple[np.ndarray, ...]:
    """What ingest has not stored of a reference: what the encoder says of its tiles, or hidden states (patches + 1, hidden)
    of one that was ingested for adapters that read none, such as one that only the style adapter hears. Hidden states are
    rounded as ingest stores them, so that the picture is the same either way."""
    encoder = engine.encoder
    key = (encoder.sha256, sha256, hidden, tiled)
    with _seen_lock:
        if key in _seen:
            return _seen[key]
    picture = picture_of(store, sha256)
    encoded = encoder.encode_tiled(picture, hidden=hidden) if tiled else encoder.encode([picture], hidden=hidden)
    said = tuple(e.pooled if e.hidden is None else e.hidden.astype(np.float16).astype(np.float32) for e in encoded)
    with _seen_lock:
        _seen[key] = said
        while len(_seen) > _SEEN_MOST:
            _seen.popitem(last=False)
    return said


def _controls(store: Store, recipe: dict[str, Any]) -> tuple[ControlPrompt, ...]:
    return tuple(
        ControlPrompt(
            pixels_of(store.blobs.get(c["sha256"])), c["kind"], c["strength"], (c["window"][0], c["window"][1])
        )
        for c in recipe.get("controls", ())
    )


def _regions(store: Store, recipe: dict[str, Any]) -> dict[str, np.ndarray]:
    return {
        r["name"]: mask_of(store.blobs.get(r["sha256"]))
        if "sha256" in r
        else box_mask(r["box"], recipe["width_px"], recipe["height_px"])
        for r in recipe.get("regions", ())
    }


def _source(store: Store, recipe: dict[str, Any]) -> SourcePicture | None:
    source = recipe.get("source")
    if source is None:
        return None
    mask = mask_of(store.blobs.get(source["mask_sha256"])) if "mask_sha256" in source else None
    return SourcePicture(pixels_of(store.blobs.get(source["sha256"])), source["strength"], mask)


def _guidance_window(recipe: dict[str, Any]) -> tuple[float, float]:
    start, end = recipe.get("guidance_window", (0.0, 1.0))
    return start, end


def _character(store: Store, recipe: dict[str, Any]) -> CharacterModel | None:
    own = recipe.get("character_model")
    if own is None:
        return None
    return CharacterModel(model_file(store, own["sha256"]), own["sha256"], own["strength"])


def model_file(store: Store, sha256: str) -> Path:
    """A trained model's blob as a file below ONMODEL_HOME/models/.characters, verified; a damaged or half-written one is replaced."""
    target = store.settings.home / "models" / ".characters" / f"{sha256}.safetensors"
    if target.exists() and sha256_of_file(target) == sha256:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    data = store.blobs.get(sha256)  # verified by the store
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{sha256[:16]}.", delete=False) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, target)  # whole or not at all: another worker may open it now
    return target
