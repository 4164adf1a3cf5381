"""What each of these families is, needs and supports: one entry a family, numbers and names alone.

Steps and guidance are what diffusers 0.42 defaults to, Kontext's guidance what its documentation shows, and the steps
of distilled models what they were distilled to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ipadapter_engine.families import Family

FLOW = "flow_euler"  # the scheduler of all of them: Euler's method along the flow, with the folder's own shift
Guidance = Literal["embedded", "two passes", "none"]

_NOT_COMMERCIAL = "non-commercial, as {} is, unless its folder tells otherwise"


@dataclass(frozen=True)
class NativeFamily:
    """family: its name and numbers, as of every other one.

    pipeline: the class that model_index.json names.
    parts: the folders that hold weights, and the classes that they may be of.
    sees: how many references it reads as pictures by itself; 0 hears them through an IP-Adapter or not at all.
    adapter: how many references a loaded IP-Adapter hears at once; 0 where diffusers has none for the family.
    needs_reference: whether it makes nothing without one.
    guidance: `embedded` is an input of the model, `two passes` compares with an empty or a negative prompt.
    negative_prompt: whether it can be told what to lead away from.
    text_tokens: how many tokens of a prompt are read. smallest_px: the shorter side that a reference must have.
    licence: told where the folder tells none.
    """

    family: Family
    pipeline: str
    parts: Mapping[str, str]
    sees: int = 0
    adapter: int = 0
    needs_reference: bool = False
    guidance: Guidance = "embedded"
    negative_prompt: bool = False
    text_tokens: int = 512
    smallest_px: int = 1
    licence: str = "as its own, not told here"


def _family(name: str, title: str, steps: int, guidance: float) -> Family:
    return Family(name, title, 1024, steps, guidance, FLOW, (FLOW,), max_batch=1)


_FLUX_PARTS = {
    "transformer": "FluxTransformer2DModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "text_encoder_2": "T5EncoderModel",
}
_FLUX2_PARTS = {"transformer": "Flux2Transformer2DModel", "vae": "AutoencoderKLFlux2"}
_QWEN_PARTS = {
    "transformer": "QwenImageTransformer2DModel",
    "vae": "AutoencoderKLQwenImage",
    "text_encoder": "Qwen2_5_VLForConditionalGeneration",
}

FLUX = NativeFamily(
    _family("flux", "FLUX.1", 28, 3.5), "FluxPipeline", _FLUX_PARTS, adapter=4,
    licence=_NOT_COMMERCIAL.format("FLUX.1 [dev]"),
)  # fmt: skip
SCHNELL = NativeFamily(
    _family("flux-schnell", "FLUX.1 [schnell]", 4, 1.0), "FluxPipeline", _FLUX_PARTS, adapter=4, guidance="none",
    text_tokens=256,
)  # fmt: skip
KONTEXT = NativeFamily(
    _family("kontext", "FLUX.1 Kontext", 28, 2.5), "FluxKontextPipeline", _FLUX_PARTS, sees=1,
    licence=_NOT_COMMERCIAL.format("FLUX.1 Kontext [dev]"),
)  # fmt: skip
FLUX2 = NativeFamily(
    _family("flux2", "FLUX.2", 50, 4.0), "Flux2Pipeline",
    {**_FLUX2_PARTS, "text_encoder": "Mistral3ForConditionalGeneration"}, sees=10, smallest_px=64,
    licence=_NOT_COMMERCIAL.format("FLUX.2 [dev]"),
)  # fmt: skip
KLEIN = NativeFamily(
    _family("flux2-klein", "FLUX.2 [klein] base", 50, 4.0), "Flux2KleinPipeline",
    {**_FLUX2_PARTS, "text_encoder": "Qwen3ForCausalLM"}, sees=10, guidance="two passes", smallest_px=64,
)  # fmt: skip
KLEIN_DISTILLED = NativeFamily(
    _family("flux2-klein-distilled", "FLUX.2 [klein]", 4, 1.0), "Flux2KleinPipeline",
    {**_FLUX2_PARTS, "text_encoder": "Qwen3ForCausalLM"}, sees=10, guidance="none", smallest_px=64,
)  # fmt: skip
SD3 = NativeFamily(
    _family("sd3", "Stable Diffusion 3", 28, 7.0), "StableDiffusion3Pipeline",
    {
        "transformer": "SD3Transformer2DModel", "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModelWithProjection", "text_encoder_2": "CLIPTextModelWithProjection",
        "text_encoder_3": "T5EncoderModel",
    },
    adapter=1, guidance="two passes", negative_prompt=True, text_tokens=256,
)  # fmt: skip
QWEN_EDIT = NativeFamily(
    _family("qwen-edit", "Qwen-Image-Edit", 50, 4.0), "QwenImageEditPipeline", _QWEN_PARTS, sees=1,
    needs_reference=True, guidance="two passes", negative_prompt=True,
)  # fmt: skip
QWEN_EDIT_PLUS = NativeFamily(
    _family("qwen-edit-plus", "Qwen-Image-Edit Plus", 50, 4.0), "QwenImageEditPlusPipeline", _QWEN_PARTS, sees=3,
    needs_reference=True, guidance="two passes", negative_prompt=True,
)  # fmt: skip

FAMILIES = (FLUX, SCHNELL, KONTEXT, FLUX2, KLEIN, KLEIN_DISTILLED, SD3, QWEN_EDIT, QWEN_EDIT_PLUS)
PIPELINES = frozenset(f.pipeline for f in FAMILIES)


def native_family(index: Mapping[str, Any], transformer: Mapping[str, Any]) -> NativeFamily:
    """The family of a folder: of its model_index.json, and where two share a pipeline of what its transformer is told.

    index["_class_name"] must be one of PIPELINES.
    """
    distilled = index.get("is_distilled", False) or (
        index["_class_name"] == FLUX.pipeline and not transformer.get("guidance_embeds", False)
    )
    own = [f for f in FAMILIES if f.pipeline == index["_class_name"]]
    return own[-1] if distilled else own[0]
