"""What a recipe says beyond prompt, numbers and references, in a line each for people. Loads no engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def told_of_adapter(name: str, said: Mapping[str, Any]) -> str:
    """How an adapter speaks, as a recipe says it, in a line."""
    blocks = said.get("blocks")
    by_block = blocks if isinstance(blocks, str) else ", ".join(f"{b} {f:g}" for b, f in (blocks or {}).items())
    parts = {
        "scale": f"{said['scale']:g}" if "scale" in said else "",
        "window": _numbers(said["window"]) if "window" in said else "",
        "blocks": by_block,
        "factors of steps": ", ".join(f"{f:g}" for f in said.get("scale_steps", ())),
        "references combined by": said.get("combine", ""),
    }
    return f"{name} adapter: {'; '.join(f'{what} {told}' for what, told in parts.items() if told)}"


def told_of_source(source: Mapping[str, Any]) -> str:
    mask = f", repainted within {source['mask']}" if "mask" in source else ""
    return f"{source['picture']}, strength {source['strength']:g}{mask}"


def told_of_lora(lora: Mapping[str, Any]) -> str:
    return f"{lora['name']}, strength {lora['strength']:g}"


def told_of_region(region: Mapping[str, Any]) -> str:
    where = f"mask {region['mask']}" if "mask" in region else f"box {_numbers(region['box'])}"
    return f"{region['name']}: {region['character']}, {where}"


def _numbers(values: Sequence[float]) -> str:
    """The same before and after they were stored, where 1.0 becomes 1."""
    return f"[{', '.join(f'{value:g}' for value in values)}]"
