"""Which requests go together in one batch."""

from __future__ import annotations

from collections.abc import Sequence

from ipadapter_engine.errors import RequestRefused
from ipadapter_engine.families import Family
from ipadapter_engine.requests import MAX_SIDE_PX, BatchKey, GenerationRequest


def key_of(
    request: GenerationRequest, family: Family, multiple_px: int, with_lora: frozenset[str] = frozenset()
) -> BatchKey:
    """The request's numbers with the family's in place of None; raises RequestRefused for what it cannot do.

    multiple_px: what both sides must be a multiple of, see Checkpoint.multiple_px. with_lora: the adapters whose files
    bring a LoRA with them.
    """
    width, height = size_of(request, family, multiple_px)
    scheduler = request.scheduler or family.scheduler
    if scheduler not in family.schedulers:
        raise RequestRefused(
            f"{family.title} has no scheduler {scheduler!r}", f"choose one of {', '.join(family.schedulers)}"
        )
    loras = tuple((c.sha256, c.strength) for c in request.heard_loras)
    speaking = tuple(name for name in request.adapters if name in with_lora and request.heard_by(name))
    return BatchKey(width, height, request.steps or family.steps, scheduler, loras, speaking)


def size_of(request: GenerationRequest, family: Family, multiple_px: int) -> tuple[int, int]:
    """The width and height in px, the family's own where the request has none; raises RequestRefused."""
    width = family.size_px if request.width_px is None else request.width_px
    height = family.size_px if request.height_px is None else request.height_px
    for name, side in (("width", width), ("height", height)):
        if side % multiple_px or not multiple_px <= side <= MAX_SIDE_PX:
            raise RequestRefused(
                f"a {name} of {side} px cannot be made by {family.title}",
                f"ask for a multiple of {multiple_px} px up to {MAX_SIDE_PX}; its own size is {family.size_px} px",
            )
    return width, height


def grouped(
    requests: Sequence[GenerationRequest], family: Family, multiple_px: int, with_lora: frozenset[str] = frozenset()
) -> dict[BatchKey, list[int]]:
    """Positions in `requests` by what their batch must share (`key_of`); every position comes once."""
    groups: dict[BatchKey, list[int]] = {}
    for i, request in enumerate(requests):
        groups.setdefault(key_of(request, family, multiple_px, with_lora), []).append(i)
    return groups
