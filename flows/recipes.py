"""A recipe is all that determines a picture, as JSON; the sha256 of its canonical form is its job's key.

What a brief does not use is not in its recipe, so that the keys of before stay the keys of today.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from asset_store.canonical import sha256_of
from asset_store.tables import Reference
from flows.brief import Making
from flows.recipe_keys import BY_MODEL, DIRECTED, PLAIN, WITH_CONDITIONS, heard
from ipadapter_engine.emphasis import AdapterSettings
from ipadapter_engine.errors import RequestRefused
from ipadapter_engine.hashing import ModelHash
from ipadapter_engine.prompts import IDENTITY, CharacterModel, ControlPrompt, ReferencePrompt
from ipadapter_engine.requests import GenerationRequest

if TYPE_CHECKING:
    from ipadapter_engine.engines import PictureEngine

STYLE = "style"  # the adapter, and the role of its references
BY_CONTROL = "control"  # the part of a reference that a control picture is from
BY_SOURCE, BY_MASK = "source picture", "mask"  # of one that the picture starts from, and of one that says where


def reference_entry(
    row: Reference, weight: float, *, chosen: str = "", part: str = "", adapter: str = "", negative: bool = False,
    tiled: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """One reference of a recipe. `part`: how it has part in the picture if no adapter hears it; `adapter`: which one
    does, if not the identity adapter; `chosen`: how it was chosen; `negative`: guidance leads away from it; `tiled`: it is
    seen whole, in squares along its long side."""
    entry = {"id": str(row.id), "key": row.key, "sha256": row.sha256, "weight": weight}
    optional = {"adapter": adapter, "part": part, "chosen": chosen, "negative": negative, "tiled": tiled}
    return {**entry, **{k: v for k, v in optional.items() if v}}


def recipe_of(
    made: PictureEngine, prompt: str, seed: int, making: Making, references: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The plain recipe of one picture: what the brief leaves out comes from the family. Raises RequestRefused."""
    _check_reads(made, references)
    family = made.family
    width, height = (int(s) for s in making.size.split("x")) if making.size else (family.size_px, family.size_px)
    request = GenerationRequest(
        prompt, seed, _blank(references), negative_prompt=making.negative_prompt or "", width_px=width, height_px=height,
        steps=making.steps, scheduler=making.scheduler, guidance=making.guidance,
        scale=1.0 if making.scale is None else making.scale, window=making.window or (0.0, 1.0),
    )  # fmt: skip
    key = made.batch_key(request)
    recipe = {
        "recipe": PLAIN,
        "family": family.name,
        "models": [],
        "encoder": made.encoder.sha256 if references else None,
        "prompt": prompt,
        "negative_prompt": making.negative_prompt or "",
        "seed": seed,
        "steps": key.steps,
        "scheduler": key.scheduler,
        "guidance": family.guidance if making.guidance is None else making.guidance,
        "scale": request.scale,
        "window": list(request.window),
        "width_px": key.width_px,
        "height_px": key.height_px,
        "references": list(references),
    }
    recipe["models"] = [m.__dict__ for m in models_of(made, recipe)]  # a prompt may use a taught word
    return recipe


def _check_reads(made: PictureEngine, references: Sequence[dict[str, Any]]) -> None:
    """RequestRefused where an adapter reads faces, of which libraries hold no embeddings."""
    for name in sorted({r.get("adapter", IDENTITY) for r in references}):
        reads = getattr(made.checkpoint.adapters.get(name), "reads", None)
        if reads is not None and reads.face:
            raise RequestRefused(
                f"the adapter {name!r} reads faces, and libraries hold no embeddings of faces",
                "load a base, plus or full-face adapter; FaceID is for the engine in Python (docs/adapters.md)",
            )


def of_identity(recipe: dict[str, Any]) -> list[dict[str, Any]]:
    """The references that say who is shown, in all regions: those of the identity adapter, else those its character
    model learnt from."""
    by_adapter = [r for r in heard(recipe) if "adapter" not in r and "negative" not in r]
    return by_adapter or [r for r in recipe["references"] if r.get("part") == BY_MODEL]


def shows_others(recipe: dict[str, Any], character: str) -> bool:
    """Whether a region shows somebody else than the character of its shot."""
    return any(region["character"] != character for region in recipe.get("regions", ()))


def settings_of(recipe: dict[str, Any]) -> dict[str, AdapterSettings]:
    """How its adapters speak, by name, where it says so. Raises RequestRefused."""
    return {
        name: AdapterSettings(
            said.get("blocks"), (said["window"][0], said["window"][1]) if "window" in said else None,
            tuple(said.get("scale_steps", ())), said.get("combine", "concat"),
        )
        for name, said in recipe.get("adapters", {}).items()
    }  # fmt: skip


def scales_of(recipe: dict[str, Any]) -> dict[str, float]:
    """How strongly the adapters beside the identity adapter speak, where it says so."""
    return {name: said["scale"] for name, said in recipe.get("adapters", {}).items() if "scale" in said}


def candidates(recipe: dict[str, Any]) -> int:
    """How many pictures are made for the one that is kept."""
    return int(recipe.get("best_of", {}).get("candidates", 1))


def seeds_of(recipe: dict[str, Any]) -> list[int]:
    """One seed a candidate: the recipe's own, then others derived from it. More candidates begin with those of fewer."""
    more = [f"{recipe['seed']}/candidate {i}" for i in range(1, candidates(recipe))]
    return [recipe["seed"], *(int.from_bytes(hashlib.sha256(m.encode()).digest()[:4], "big") for m in more)]


# ---------------------------------------------------------------------------- models


def models_of(made: PictureEngine, recipe: dict[str, Any]) -> list[ModelHash]:
    """The loaded models that have a part in a recipe's picture: those of every picture, then the ControlNets, the
    style adapter and the taught words if its request needs them. One that is not loaded is left out, so that `obstacle`
    names it."""
    return list(made.models_of(replace(_without_pictures(recipe), loras=loras_of(made, recipe))))


def _without_pictures(recipe: dict[str, Any]) -> GenerationRequest:
    """The recipe's request as far as it says which models it needs; blank pictures and embeddings stand for its own."""
    blank = np.zeros((1, 1, 3), np.uint8)
    return GenerationRequest(
        recipe["prompt"], recipe["seed"], negative_prompt=recipe["negative_prompt"], scale=recipe["scale"],
        window=(recipe["window"][0], recipe["window"][1]), references=_blank(heard(recipe)),
        controls=tuple(
            ControlPrompt(blank, c["kind"], c["strength"], (c["window"][0], c["window"][1]))
            for c in recipe.get("controls", ())
        ),
        scales=scales_of(recipe), settings=settings_of(recipe),
    )  # fmt: skip


def _blank(references: Sequence[dict[str, Any]]) -> tuple[ReferencePrompt, ...]:
    """References of a recipe without what they show, of a size that every family takes."""
    nothing = np.zeros((64, 64, 3), np.uint8)
    return tuple(ReferencePrompt(None, r["weight"], r.get("adapter", IDENTITY), picture=nothing) for r in references)


def obstacle(made: PictureEngine, recipe: dict[str, Any]) -> str | None:
    """Why a worker with this engine cannot make a recipe that another one may, without a full stop; None if it can."""
    if recipe["recipe"] not in (PLAIN, WITH_CONDITIONS, DIRECTED):
        return f"its recipe is of kind {recipe['recipe']}, which the worker's release does not know"
    loaded = [m.sha256 for m in models_of(made, recipe)]
    if loaded == [m["sha256"] for m in recipe["models"]]:
        return None
    lacking = [
        f"{m['role']} {m['name']} (sha256 {m['sha256'][:12]}…)" for m in recipe["models"] if m["sha256"] not in loaded
    ]
    return f"the worker has not loaded {', '.join(lacking) or 'these models in these roles'}"


def models_sha256(made: PictureEngine) -> str:
    """What presets and batches go by: the base with its identity adapter, whatever else is loaded beside them."""
    return sha256_of([m.sha256 for m in made.models])


def models_key(made: PictureEngine) -> str:
    """How the batch keys begin of all jobs that this engine can make."""
    return f"{made.family.name}/{models_sha256(made)[:12]}/"


def batch_key(made: PictureEngine, recipe: dict[str, Any]) -> str:
    """What jobs of one batch share, as a short text: models, size, steps, scheduler, the character's own model."""
    shared = f"{models_key(made)}{recipe['width_px']}x{recipe['height_px']}/{recipe['steps']}/{recipe['scheduler']}"
    own = recipe.get("character_model")
    shared = shared if own is None else f"{shared}/character {own['sha256'][:12]}"
    return "/".join([shared, *(f"lora {lora['sha256'][:12]} {lora['strength']:g}" for lora in recipe.get("loras", ()))])


def loras_of(made: PictureEngine, recipe: dict[str, Any]) -> tuple[CharacterModel, ...]:
    """The LoRAs of a recipe that this engine has, by their bytes whatever it calls them."""
    loaded = {lora.sha256: lora for lora in getattr(made.checkpoint, "loras", {}).values()}
    return tuple(
        replace(loaded[lora["sha256"]], strength=lora["strength"])
        for lora in recipe.get("loras", ())
        if lora["sha256"] in loaded
    )
