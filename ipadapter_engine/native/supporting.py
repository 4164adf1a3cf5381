"""What a family cannot do is refused by name, before anything is made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from ipadapter_engine.batching import size_of
from ipadapter_engine.errors import RequestRefused
from ipadapter_engine.native.families import NativeFamily
from ipadapter_engine.prompts import IDENTITY, ReferencePrompt
from ipadapter_engine.requests import BatchKey, GenerationRequest

LONGEST_RATIO = 8  # of a reference: FLUX.2's pipeline takes no longer ones
WHOLE = (0.0, 1.0)
ANSWERED = frozenset({
    "prompt", "seed", "references", "negative_prompt", "scale", "window", "width_px", "height_px", "steps", "guidance",
    "scheduler", "controls", "character", "scales", "settings", "regions", "source", "guidance_window", "loras",
})  # fmt: skip
"""The fields of a request that this module decides on; one that it does not know is refused where it is used."""
_ADAPTER_BASE = "use a Stable Diffusion 1.5 or SDXL base for it"


def key_of(request: GenerationRequest, native: NativeFamily, multiple_px: int, *, adapter: bool) -> BatchKey:
    """The request's numbers with the family's in place of None.

    multiple_px: of both sides. adapter: whether an IP-Adapter is loaded.
    Raises RequestRefused for whatever the family does not have.
    """
    family = native.family
    for what, instead in _unsupported(request, native):
        raise RequestRefused(f"{family.title} has no {what}", instead)
    _check_references(heard(request), native, adapter=adapter)
    width, height = size_of(request, family, multiple_px)
    return BatchKey(width, height, request.steps or family.steps, request.scheduler or family.scheduler)


def heard(request: GenerationRequest) -> tuple[ReferencePrompt, ...]:
    """The references that have a part in its picture."""
    return tuple(r for r in request.heard_by(IDENTITY) if r.weight > 0)


def _unsupported(request: GenerationRequest, native: NativeFamily) -> Iterator[tuple[str, str]]:
    """What a request asks for that the family has not, and what to do instead."""
    family = native.family
    weights = {r.weight for r in heard(request)}
    asked: tuple[tuple[bool, str, str], ...] = (
        (any(c.heard for c in request.controls), "ControlNets here", f"leave its controls out, or {_ADAPTER_BASE}"),
        (request.character is not None and request.character.strength > 0, "model of a character here",
         f"write character_model: none and show it references, or {_ADAPTER_BASE}"),
        (any(m.strength > 0 for m in request.loras), "LoRAs here", f"leave them out, or {_ADAPTER_BASE}"),
        (bool(request.regions) or any(r.region for r in request.references), "regions",
         "say in the prompt who stands where"),
        (any(r.negative for r in request.references), "negative references", "say in the prompt what is wanted"),
        (bool(request.settings), "settings of an adapter by block, step or combination", "leave them out"),
        (request.source is not None, "picture to start from", "show it as a reference and say what to change"),
        (request.window != WHOLE and request.window[0] < request.window[1], "window of its references",
         "leave the window out"),
        (request.guidance_window != WHOLE, "window of its guidance", "leave it out"),
        (bool(request.scales) or any(a != IDENTITY for a in request.adapters), "adapter beside the identity one",
         "show it references of the character alone"),
        (request.scheduler not in (None, *family.schedulers), f"scheduler {request.scheduler!r}",
         f"leave it out: it is {family.scheduler}"),
        (bool(request.negative_prompt) and not native.negative_prompt, "negative prompt",
         "say in the prompt what is wanted instead"),
        (native.guidance == "none" and request.guidance not in (None, 1.0), "guidance: it was distilled without",
         "leave guidance out"),
        (bool(native.sees) and request.scale not in (0.0, 1.0), "scale of its references",
         "leave scale out, or say 0 for the words alone"),
        (len(weights) > 1, "weights of its references", "give all the same weight, or leave some out"),
        (any(r.face is not None for r in request.references), "FaceID", f"show it the picture, or {_ADAPTER_BASE}"),
    )  # fmt: skip
    yield from ((what, instead) for wanted, what, instead in asked if wanted)
    for field in fields(request):
        if field.name not in ANSWERED and not _is_default(request, field.name):
            yield f"{field.name.replace('_', ' ')}", "leave it out"


def _is_default(request: GenerationRequest, name: str) -> bool:
    """Whether a field that this module does not know is as in a request that says nothing of it."""
    plain = GenerationRequest(request.prompt, request.seed)
    return bool(getattr(request, name) == getattr(plain, name))


def _check_references(references: tuple[ReferencePrompt, ...], native: NativeFamily, *, adapter: bool) -> None:
    title, most = native.family.title, native.sees or native.adapter
    if native.needs_reference and not references:
        raise RequestRefused(
            f"{title} changes pictures and is shown none", "give the request a reference, or use another family"
        )
    if references and not native.sees and not adapter:
        raise RequestRefused(
            f"{title} hears references through an IP-Adapter, and none is loaded",
            "set its ADAPTER to a file made for it, or say scale: 0 for the words alone",
        )
    if len(references) > most:
        raise RequestRefused(
            f"{title} takes {most} reference{'s' * (most > 1)} at once, and the request has {len(references)}",
            "show it fewer",
        )
    if not native.sees:
        return
    for reference in references:
        if reference.picture is None:
            raise RequestRefused(
                f"{title} reads references as pictures, and one has an embedding alone",
                "give the reference its picture",
            )
        height, width = reference.picture.shape[:2]
        if min(height, width) < native.smallest_px or max(height, width) > LONGEST_RATIO * min(height, width):
            raise RequestRefused(
                f"a reference of {width} × {height} px is too small or too long for {title}",
                f"give one of {native.smallest_px} px or more a side, at most {LONGEST_RATIO} times as long as wide",
            )
