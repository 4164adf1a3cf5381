"""The lineage record of a picture: all that it came of, as it stood when the picture was made."""

from __future__ import annotations

import functools
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asset_store.tables import Asset, Job, Reference, Retake
from flows import recipe_keys
from flows.looking import Finished

if TYPE_CHECKING:
    from ipadapter_engine.engines import PictureEngine

_ELSEWHERE = ("models", "references", "encoder", "recipe")  # sections of their own, or of no meaning to a reader
NAMED = "named in the brief"


def record_of(
    asset: Asset, job: Job, done: Finished, references: Sequence[Reference], made: PictureEngine
) -> dict[str, Any]:
    """The record that `lineage.write` takes. references: those that the recipe names, each once, in its order."""
    recipe, campaign = job.recipe, asset.campaign
    run = dict((job.picture or {}).get("run", {}))
    settings = _settings(asset, recipe)
    if "seed" in run:  # of the candidate that was kept: with it the picture can be made again
        settings["seed"] = run.pop("seed")
    return {
        "output": {
            "sha256": done.sha256,
            "pixel_sha256": done.pixels,
            "perceptual_hash": done.perceptual,
            "width_px": done.image.width,
            "height_px": done.image.height,
        },
        "references": _references(asset, recipe, references),
        "encoder": {
            "sha256": made.encoder.sha256,
            "name": made.encoder.name,
            "preprocessing": made.encoder.preprocessing,
        },
        "models": [*recipe["models"], *_character_model(recipe)],
        "settings": settings,
        "code": code(),
        "run": {
            "campaign": campaign.name,
            "campaign_id": str(campaign.id),
            "brief_sha256": campaign.brief_sha256,
            "shot": asset.shot,
            "variant": asset.variant,
            "requested_by": campaign.requested_by,
            "trigger": campaign.trigger,
            **({"reason": campaign.reason} if campaign.reason else {}),
            "attempt": job.attempt,
            "job_key": job.key,
            **run,
        },
    }


def told_of(retake: Retake) -> dict[str, Any]:
    """What a picture that was made anew was changed in, why and by whom."""
    return {
        "number": retake.number,
        "parent": str(retake.parent_id),
        "changes": retake.changes,
        "comments": retake.comments,
        "by": retake.by,
    }


def _settings(asset: Asset, recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe's settings, told as this asset's campaign said them: a job is shared by all that want its picture, so
    the preset and the names of pictures and regions in its recipe may be another campaign's."""
    settings = {k: v for k, v in recipe.items() if k not in _ELSEWHERE}
    making = _making(asset)
    if "scale" in making or "window" in making or making.get("character_model", "none") != "none":
        settings.pop("preset", None)
    own = making.get("controls", ())
    if "controls" in settings and len(own) == len(settings["controls"]):  # they are in the brief's order in both
        told = zip(settings["controls"], own, strict=True)
        settings["controls"] = [
            {**c, "picture": mine["picture"], "extracted": mine.get("extract", False)} for c, mine in told
        ]
    if "source" in settings and "source" in making and "version" not in settings["source"]:
        names = {name: making["source"][name] for name in ("picture", "mask") if name in settings["source"]}
        settings["source"] = {**settings["source"], **names}
    if "regions" in settings:
        settings["regions"] = [
            {**region, **{name: mine[name] for name in ("name", "mask") if name in region}}
            for region, mine in _own_regions(making, recipe)
        ]
    return settings


def _own_regions(making: dict[str, Any], recipe: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The recipe's regions, each with what the asset's brief says of it: they are in the brief's order in both."""
    regions, own = recipe.get("regions", []), making.get("regions") or []
    return list(zip(regions, own if len(own) == len(regions) else regions, strict=True))


def _making(asset: Asset) -> dict[str, Any]:
    """What the asset's shot says in its campaign's brief, and the defaults where the shot says nothing."""
    brief = asset.campaign.brief
    shot: dict[str, Any] = next((s for s in brief.get("shots", ()) if s.get("name") == asset.shot), {})
    said = {k: v for k, v in shot.items() if v is not None}
    return {k: v for k, v in brief.get("defaults", {}).items() if v is not None} | said


def _references(asset: Asset, recipe: dict[str, Any], references: Sequence[Reference]) -> list[dict[str, Any]]:
    shot = _making(asset)
    regions = {region["name"]: mine for region, mine in _own_regions(shot, recipe)}
    parts: dict[str, list[dict[str, Any]]] = {}
    for entry in recipe["references"]:
        parts.setdefault(entry["id"], []).append(entry)
    return [
        {
            "id": str(r.id),
            "key": r.key,
            "sha256": r.sha256,
            "s3_version_id": r.version_id,
            "role": r.role,
            "weight": parts[str(r.id)][0]["weight"],
            "part": [_part(entry, regions) for entry in parts[str(r.id)]],
            "chosen": _how_chosen(parts[str(r.id)][0], shot, regions),
            "licence": {
                "name": r.licence_name,
                "holder": r.licence_holder,
                "until": None if r.licence_until is None else r.licence_until.isoformat(),
            },
        }
        for r in references
    ]


def _part(entry: dict[str, Any], regions: dict[str, dict[str, Any]]) -> str:
    """What a reference has to do with the picture: the adapter that heard it and where, or how else it came in."""
    if "part" in entry:
        return str(entry["part"])
    where = f" in region {regions[entry['region']]['name']}" if "region" in entry else ""
    where = ", to lead away from" if "negative" in entry else where
    return f"{entry.get('adapter', 'identity')} adapter{where}{', seen in tiles' if 'tiled' in entry else ''}"


def _how_chosen(entry: dict[str, Any], shot: dict[str, Any], regions: dict[str, dict[str, Any]]) -> str:
    """A job is shared by all that want its picture, so what its recipe tells may be another campaign's reason."""
    if entry.get("part") == recipe_keys.BY_MODEL:
        return "the character's model learnt from it"
    said = shot
    if "region" in entry and (mine := regions[entry["region"]])["name"] != shot.get("region"):
        said = mine
    if (
        any(name in entry for name in ("part", "adapter", "negative"))
        or (said.get("references") or "choose") != "choose"
    ):
        return NAMED
    return str(entry.get("chosen", "chosen by the library's ranking"))


def _character_model(recipe: dict[str, Any]) -> list[dict[str, Any]]:
    own = recipe.get("character_model")
    if own is None:
        return []
    named = f"{own['name']} version {own['version']}"
    return [{"role": recipe_keys.BY_MODEL, "name": named, "sha256": own["sha256"], "licence": "as its references"}]


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
