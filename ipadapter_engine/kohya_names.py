"""How kohya's trainer (github kohya-ss/sd-scripts) calls the layers of a LoRA, LCM-LoRAs and LoCon as well.

A layer is its path with underscores for dots: `lora_unet_down_blocks_0_attentions_0_proj_in`, `lora_te_text_model_…` of
a text encoder, `lora_te1_` and `lora_te2_` of SDXL's two. For SDXL the UNet's layers are those of Stability's own code:
`input_blocks_4_1_…`, `middle_block_1_…`, `output_blocks_0_1_…`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn

PREFIXES = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}
_INPUT = re.compile(r"input_blocks_(\d+)_(\d+)_(.+)")
_OUTPUT = re.compile(r"output_blocks_(\d+)_(\d+)_(.+)")
_MIDDLE = re.compile(r"middle_block_(\d+)_(.+)")
_OUTSIDE = {
    "input_blocks_0_0": "conv_in", "out_2": "conv_out", "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2", "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
}  # fmt: skip
_INSIDE = {"in_layers_2": "conv1", "out_layers_3": "conv2", "emb_layers_1": "time_emb_proj", "skip_connection": "conv_shortcut"}  # fmt: skip


class LayerNames:
    """Finds a layer of the models that a base has by kohya's name of it."""

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        self._paths = {
            model: {path.replace(".", "_"): path for path, _ in module.named_modules() if path}
            for model, module in models.items()
        }
        config = getattr(models.get("unet"), "config", {})
        self._layers = config.get("layers_per_block", 2)

    def find(self, name: str) -> tuple[str, str]:
        """(model, path of the layer) of a name such as `lora_unet_…`; a path that is no layer's is given in its words."""
        prefix = next(p for p in PREFIXES if name.startswith(p))
        model, rest = PREFIXES[prefix], name.removeprefix(prefix)
        paths = self._paths.get(model, {})
        candidates = [rest, rest.removeprefix("text_model_"), f"text_model_{rest}"]  # transformers dropped the word
        if model == "unet":
            candidates = [rest, self._own(rest)]
        return model, next((paths[c] for c in candidates if c in paths), rest)

    def _own(self, rest: str) -> str:
        """diffusers' name, underscored, of a layer of Stability's UNet; as it is where it is none."""
        if rest in _OUTSIDE:
            return _OUTSIDE[rest]
        each = self._layers + 1 if isinstance(self._layers, int) else 3
        if match := _INPUT.fullmatch(rest):
            number, part, inner = int(match[1]) - 1, int(match[2]), match[3]
            block, layer = divmod(number, each)
            if inner == "op":
                return f"down_blocks_{block}_downsamplers_0_conv"
            return f"down_blocks_{block}_{('resnets', 'attentions')[min(part, 1)]}_{layer}_{_INSIDE.get(inner, inner)}"
        if match := _OUTPUT.fullmatch(rest):
            number, part, inner = int(match[1]), int(match[2]), match[3]
            block, layer = divmod(number, each)
            if inner == "conv":
                return f"up_blocks_{block}_upsamplers_0_conv"
            return f"up_blocks_{block}_{('resnets', 'attentions')[min(part, 1)]}_{layer}_{_INSIDE.get(inner, inner)}"
        if match := _MIDDLE.fullmatch(rest):
            place = {"0": "resnets_0", "1": "attentions_0", "2": "resnets_1"}.get(match[1], match[1])
            return f"mid_block_{place}_{_INSIDE.get(match[2], match[2])}"
        return rest
