"""What can be said of a recipe without the engine: its key, who its references are, where its job is queued."""

from __future__ import annotations

from typing import Any

from asset_store.canonical import sha256_of

# What `recipe` says: the keys that a plain recipe has, those of conditions, and those of flows.directions. A worker of a
# release that does not know a kind leaves it to others, where it would make the picture without what it does not know.
PLAIN, WITH_CONDITIONS, DIRECTED = 1, 2, 3
BY_MODEL = "character model"  # the part of references that a character's model learnt from
UNDETERMINING = (
    "preset",
    "engine",
)  # told in lineage; the numbers and models that it gave are in the recipe themselves


def heard(recipe: dict[str, Any]) -> list[dict[str, Any]]:
    """The references that an adapter hears, identity first as they were given."""
    return [r for r in recipe["references"] if "part" not in r]


def job_key(recipe: dict[str, Any]) -> str:
    """The sha256 of what determines the picture and whose rights it needs: contents by hash, not the names and ids they
    go by here. A control from a library and the same pixels from elsewhere are two jobs: only one can be recalled. What
    a character's model learnt from is said by the model's own hash."""
    said = {k: v for k, v in recipe.items() if k not in UNDETERMINING}
    said["models"] = [{"role": m["role"], "sha256": m["sha256"]} for m in recipe["models"]]
    determining = [r for r in recipe["references"] if r.get("part") != BY_MODEL]
    places = {region["name"]: place for place, region in enumerate(recipe.get("regions", ()))}
    said["references"] = [
        _only(r, "sha256", "weight", "adapter", "part", "negative", "tiled")
        | ({"region": places[r["region"]]} if "region" in r else {})
        for r in determining
    ]
    if "controls" in recipe:
        said["controls"] = [_only(c, "kind", "sha256", "strength", "window") for c in recipe["controls"]]
    if "regions" in recipe:
        said["regions"] = [_only(r, "sha256", "box") for r in recipe["regions"]]
    if "source" in recipe:
        said["source"] = _only(recipe["source"], "sha256", "strength", "mask_sha256")
    if "loras" in recipe:
        said["loras"] = [_only(lora, "sha256", "strength") for lora in recipe["loras"]]
    if "character_model" in recipe:
        said["character_model"] = _only(recipe["character_model"], "sha256", "strength")
    return sha256_of(said)


def _only(entry: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: entry[name] for name in names if name in entry}


def requeued(batch_key: str, recipe: dict[str, Any]) -> str:
    """The batch key of a recipe that differs from that of `batch_key` in what a retake may change: of what jobs of a batch
    share, that is the steps alone."""
    family, models, size, _, *rest = batch_key.split("/")
    return "/".join([family, models, size, str(recipe["steps"]), *rest])
