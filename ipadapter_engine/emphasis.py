"""Where, when and how one adapter speaks: per block of the UNet, per step, and what several references become together.

The blocks that carry style and composition were found for SDXL by InstantStyle (Wang et al., 2024, arXiv:2404.02733);
the presets' numbers are those of ComfyUI_IPAdapter_plus, whose layers are counted in the order down, mid, up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from ipadapter_engine.errors import RequestRefused

Combine = Literal["concat", "add", "subtract", "average", "norm_average"]
OTHERS = "others"  # in `blocks`: all layers that no other name stands for

_STYLE = {
    "down_blocks.0": 1.0,
    "down_blocks.1": 1.0,
    "up_blocks.1.attentions.2": 1.0,
    "up_blocks.2": 1.0,
    "up_blocks.3": 1.0,
}
_COMPOSITION = {"down_blocks.2.attentions.0": 0.25, "down_blocks.2.attentions.1": 1.0}
SD15_PRESETS: dict[str, Mapping[str, float]] = {
    "style": _STYLE,
    "composition": _COMPOSITION,
    "strong_style": {OTHERS: 1.0, "down_blocks.2": 0.0},
    "style_and_composition": _STYLE | _COMPOSITION,
    "precise_style": _STYLE | {name: -factor for name, factor in _COMPOSITION.items()},
    "precise_composition": _COMPOSITION | dict.fromkeys(_STYLE, -1.0) | {"mid_block": -0.1, "up_blocks.1": -0.1,
                                                                        "up_blocks.1.attentions.2": -1.0},
}  # fmt: skip
_SDXL_STYLE, _SDXL_COMPOSITION = {"up_blocks.0.attentions.1": 1.0}, {"down_blocks.2.attentions.1": 1.0}
SDXL_PRESETS: dict[str, Mapping[str, float]] = {
    "style": _SDXL_STYLE,
    "composition": _SDXL_COMPOSITION,
    "strong_style": {OTHERS: 1.0, "down_blocks.2.attentions.1": 0.0},
    "style_and_composition": _SDXL_STYLE | _SDXL_COMPOSITION,
    "precise_style": _SDXL_STYLE | {"down_blocks.2.attentions.1": -1.0},
    "precise_composition": {OTHERS: -0.1, "up_blocks.0.attentions.1": -1.0} | _SDXL_COMPOSITION,
}


@dataclass(frozen=True)
class AdapterSettings:
    """How one adapter speaks in one request, beside its scale.

    blocks: a preset's name (style, composition, strong_style, style_and_composition, precise_style,
        precise_composition), or factors of the scale by the UNet's blocks, such as
        {"up_blocks.0.attentions.1": 1.0}. The longest name that a layer's path begins with holds; layers without one
        have the factor of "others", else 0. A factor below 0 shows the references to the unconditional half there and
        not to the conditional one: guidance leads away from them. None is 1 everywhere.
    window: the share of the steps, from start to end, in which it speaks; None is the request's.
    steps: factors of the scale over the steps, the first for the first; as many as steps, or stretched over them.
    combine: concat shows the references side by side; the others make one embedding of them, as ComfyUI's nodes do:
        add sums them, subtract takes the mean of the others from the first, average is their mean, norm_average the
        mean after each number was divided by its norm over the references.
    """

    blocks: str | Mapping[str, float] | None = None
    window: tuple[float, float] | None = None
    steps: tuple[float, ...] = field(default=())
    combine: Combine = "concat"

    def __post_init__(self) -> None:
        if self.combine not in get_args(Combine):
            raise RequestRefused(
                f"references cannot be combined by {self.combine!r}", f"choose one of {', '.join(get_args(Combine))}"
            )
        if isinstance(self.blocks, str) and self.blocks not in SDXL_PRESETS:
            raise RequestRefused(
                f"there is no preset {self.blocks!r} of blocks",
                f"choose one of {', '.join(SDXL_PRESETS)}, or give factors by block",
            )
        named = self.blocks.values() if isinstance(self.blocks, Mapping) else ()
        if not all(np.isfinite(factor) for factor in named):
            raise RequestRefused("a factor of a block is no number", "give a number; 1 is the adapter's scale")
        if not all(np.isfinite(factor) and factor >= 0 for factor in self.steps):
            raise RequestRefused("a factor of a step is not a number of 0 or more", "give numbers of 0 or more")
        if self.window is not None and not 0 <= self.window[0] <= self.window[1] <= 1:
            raise RequestRefused(
                f"the window {self.window} is not within 0 to 1", "give start and end, 0 ≤ start ≤ end ≤ 1"
            )

    def factor_at(self, progress: float) -> float:
        """The step's factor at `progress`, 0 to below 1: the number of the step divided by all steps."""
        return self.steps[int(progress * len(self.steps) + 1e-9)] if self.steps else 1.0


def factors(
    blocks: str | Mapping[str, float] | None, paths: tuple[str, ...], presets: Mapping[str, Mapping[str, float]]
) -> list[float]:
    """The factor of every cross-attention layer; `paths` are their names in the UNet.

    Raises RequestRefused for a preset that this family does not have and for a name that no layer's path begins with.
    """
    if blocks is None:
        return [1.0] * len(paths)
    if isinstance(blocks, str):
        if blocks not in presets:
            raise RequestRefused(
                f"this family has no preset {blocks!r} of blocks",
                f"choose one of {', '.join(presets)}, or give factors by block" if presets else "give factors by block",
            )
        blocks = presets[blocks]
    else:
        for name in blocks:
            if name != OTHERS and not any(_under(path, name) for path in paths):
                tops = sorted({".".join(p.split(".")[: 4 if "attentions" in p.split(".")[2:3] else 2]) for p in paths})
                raise RequestRefused(
                    f"no attention layer lies under the block {name!r}", f"name one of {', '.join(tops)}"
                )
    return [
        blocks[max(own, key=len)] if (own := [n for n in blocks if _under(path, n)]) else blocks.get(OTHERS, 0.0)
        for path in paths
    ]


def _under(path: str, name: str) -> bool:
    return path == name or path.startswith(f"{name}.")
