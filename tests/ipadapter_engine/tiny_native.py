"""Tiny folders of the families that diffusers' own pipelines make, with seeded random weights and tokenizers of letters.

Each is written part by part as the real ones lie on disk: the classes that model_index.json names, a T5 in Unigram
pieces, Qwen's byte pairs, the chat template of a tokenizer, and the text encoders with as many layers as the pipelines
read from.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
)
from diffusers.models.embeddings import IPAdapterTimeImageProjection
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.ipadapter_engine import tiny_checkpoints as tiny

SPECIAL = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
)
SIGHT, SIGHT_PATCHES = 24, 4  # SD3's image encoder: width, patches
POOLED = tiny.WIDTH  # what FLUX and each of SD3's CLIPs pool a prompt to


def write_flux(folder: Path, *, guided: bool = True, kontext: bool = False) -> Path:
    """FLUX.1: stride 8, latents of 4 channels, two double blocks; without `guided` as schnell is."""
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=POOLED,
        guidance_embeds=guided,
        axes_dims_rope=(4, 4, 8),
    )
    _save(folder / "transformer", transformer, 1)
    _save(folder / "vae", _vae(shift=0.1), 4)
    _save(folder / "text_encoder", CLIPTextModel(tiny._text_config(pad=1)), 2)
    tiny._tokenizer(folder / "tokenizer", pad="<|endoftext|>")
    _t5(folder, "_2")
    _scheduler(folder, use_dynamic_shifting=True, shift=3.0)
    _index(
        folder,
        "FluxKontextPipeline" if kontext else "FluxPipeline",
        transformer=("diffusers", "FluxTransformer2DModel"),
        vae=("diffusers", "AutoencoderKL"),
        text_encoder=("transformers", "CLIPTextModel"),
        tokenizer=("transformers", "CLIPTokenizer"),
        text_encoder_2=("transformers", "T5EncoderModel"),
        tokenizer_2=("transformers", "T5TokenizerFast"),
    )
    return folder


def write_kontext(folder: Path) -> Path:
    return write_flux(folder, kontext=True)


def write_schnell(folder: Path) -> Path:
    return write_flux(folder, guided=False)


def write_sd3(folder: Path) -> Path:
    """Stable Diffusion 3: stride 8, two joint blocks, two CLIPs and a T5."""
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=2 * tiny.WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=2 * POOLED,
        out_channels=4,
        pos_embed_max_size=32,
    )
    _save(folder / "transformer", transformer, 1)
    _save(folder / "vae", _vae(shift=0.1), 4)
    for name, seed in (("", 2), ("_2", 3)):
        _save(folder / f"text_encoder{name}", CLIPTextModelWithProjection(tiny._text_config(pad=1)), seed)
        tiny._tokenizer(folder / f"tokenizer{name}", pad="<|endoftext|>")
    _t5(folder, "_3", width=2 * tiny.WIDTH)
    _scheduler(folder, shift=3.0)
    _index(
        folder,
        "StableDiffusion3Pipeline",
        transformer=("diffusers", "SD3Transformer2DModel"),
        vae=("diffusers", "AutoencoderKL"),
        text_encoder=("transformers", "CLIPTextModelWithProjection"),
        tokenizer=("transformers", "CLIPTokenizer"),
        text_encoder_2=("transformers", "CLIPTextModelWithProjection"),
        tokenizer_2=("transformers", "CLIPTokenizer"),
        text_encoder_3=("transformers", "T5EncoderModel"),
        tokenizer_3=("transformers", "T5TokenizerFast"),
    )
    return folder


def write_flux2(folder: Path) -> Path:
    """FLUX.2: a Mistral of 30 layers, of which three are read."""
    tokenizer = qwen_tokenizer(folder / "tokenizer")
    text = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=16, num_hidden_layers=30, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4, max_position_embeddings=600,
    )  # fmt: skip
    vision = PixtralVisionConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    config = Mistral3Config(text_config=text, vision_config=vision, image_token_index=1)
    _save(folder / "text_encoder", Mistral3ForConditionalGeneration(config), 2)
    _flux2_parts(folder, text_width=3 * 8, guided=True)
    _index(
        folder,
        "Flux2Pipeline",
        **_FLUX2_PARTS,
        text_encoder=("transformers", "Mistral3ForConditionalGeneration"),
        tokenizer=("transformers", "PixtralProcessor"),
    )
    return folder


def write_klein(folder: Path, *, distilled: bool = False) -> Path:
    """FLUX.2 [klein]: a Qwen3 of 27 layers, of which three are read."""
    tokenizer = qwen_tokenizer(folder / "tokenizer")
    text = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=16, num_hidden_layers=27, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4, max_position_embeddings=600,
    )  # fmt: skip
    _save(folder / "text_encoder", Qwen3ForCausalLM(text), 2)
    _flux2_parts(folder, text_width=3 * 8, guided=False)
    _index(
        folder,
        "Flux2KleinPipeline",
        **_FLUX2_PARTS,
        text_encoder=("transformers", "Qwen3ForCausalLM"),
        tokenizer=("transformers", "Qwen2TokenizerFast"),
    )
    tiny.change_json(folder / "model_index.json", is_distilled=distilled)
    return folder


def write_qwen_edit(folder: Path, *, plus: bool = False) -> Path:
    """Qwen-Image-Edit: its text encoder sees the references beside the prompt, its transformer the latents of them."""
    tokenizer = qwen_tokenizer(folder / "tokenizer")
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6},
        },
        vision_config={
            "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16,
            "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112,
            "fullatt_block_indexes": [0],
        },
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
    )  # fmt: skip
    _save(folder / "text_encoder", Qwen2_5_VLForConditionalGeneration(config), 2)
    qwen_tokenizer(folder / "processor")
    Qwen2VLImageProcessorPil(patch_size=14, merge_size=2, temporal_patch_size=2).save_pretrained(folder / "processor")
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.1, 0.2, 0.0],
        latents_std=[1.0, 1.1, 0.9, 1.2],
    )
    _save(folder / "vae", vae, 4)
    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    _save(folder / "transformer", transformer, 1)
    _scheduler(folder, use_dynamic_shifting=True)
    _index(
        folder,
        "QwenImageEditPlusPipeline" if plus else "QwenImageEditPipeline",
        transformer=("diffusers", "QwenImageTransformer2DModel"),
        vae=("diffusers", "AutoencoderKLQwenImage"),
        text_encoder=("transformers", "Qwen2_5_VLForConditionalGeneration"),
        tokenizer=("transformers", "Qwen2Tokenizer"),
        processor=("transformers", "Qwen2VLProcessor"),
    )
    return folder


def write_qwen_edit_plus(folder: Path) -> Path:
    return write_qwen_edit(folder, plus=True)


def write_klein_distilled(folder: Path) -> Path:
    return write_klein(folder, distilled=True)


WRITERS: dict[str, Callable[[Path], Path]] = {
    "flux": write_flux,
    "flux-schnell": write_schnell,
    "kontext": write_kontext,
    "flux2": write_flux2,
    "flux2-klein": write_klein,
    "flux2-klein-distilled": write_klein_distilled,
    "sd3": write_sd3,
    "qwen-edit": write_qwen_edit,
    "qwen-edit-plus": write_qwen_edit_plus,
}


# ---------------------------------------------------------------------------- adapters


def write_flux_adapter(file: Path, *, embed: int = tiny.EMBED, width: int = 32, blocks: int = 2) -> Path:
    """An IP-Adapter for FLUX.1 as XLabs names its keys: four tokens of a pooled embedding, two double blocks."""
    draw = tiny.Draw(13)
    state = {
        "ip_adapter_proj_model.proj.weight": draw(4 * width, embed),
        "ip_adapter_proj_model.proj.bias": draw(4 * width),
        "ip_adapter_proj_model.norm.weight": 1 + draw(width),
        "ip_adapter_proj_model.norm.bias": draw(width),
    }
    for i in range(blocks):
        for part in ("k", "v"):
            name = f"double_blocks.{i}.processor.ip_adapter_double_stream_{part}_proj"
            state |= {f"{name}.weight": draw(32, width), f"{name}.bias": draw(32)}
    return _written(file, state)


def write_sd3_adapter(file: Path) -> Path:
    """An IP-Adapter for SD3.5 as InstantX names its keys: a resampler that is told the time, and two blocks."""
    draw, time = tiny.Draw(14), 64
    projection = IPAdapterTimeImageProjection(
        embed_dim=SIGHT, output_dim=32, hidden_dim=64, heads=1, num_queries=4, timestep_in_dim=32
    )
    state = {}
    renamed = (("ln0", "0.norm1"), ("ln1", "0.norm2"), ("attn.to_q", "0.to_q"), ("attn.to_kv", "0.to_kv"),
               ("attn.to_out.0", "0.to_out"), ("adaln_norm", "1.0"), ("ff.net.0.proj", "1.1"), ("ff.net.2", "1.3"),
               ("adaln_proj", "2.1"))  # fmt: skip
    for key, value in projection.state_dict().items():
        for ours, theirs in renamed:
            if key.startswith("layers.") and key.split(".", 2)[2].startswith(f"{ours}."):
                start, number, rest = key.split(".", 2)
                key = f"{start}.{number}.{theirs}{rest.removeprefix(ours)}"
                break
        state[f"image_proj.{key}"] = draw(*value.shape)
    for i in range(2):
        state |= {
            f"ip_adapter.{i}.norm_ip.linear.weight": draw(2 * 32, time),
            f"ip_adapter.{i}.norm_ip.linear.bias": draw(2 * 32),
            f"ip_adapter.{i}.to_k_ip.weight": draw(32, 32),
            f"ip_adapter.{i}.to_v_ip.weight": draw(32, 32),
            f"ip_adapter.{i}.norm_q.weight": 1 + draw(16),
            f"ip_adapter.{i}.norm_k.weight": 1 + draw(16),
            f"ip_adapter.{i}.norm_ip_k.weight": 1 + draw(16),
        }
    return _written(file, state)


def write_siglip(folder: Path) -> Path:
    """The image encoder that SD3's adapters read, with its preprocessing."""
    config = SiglipVisionConfig(
        hidden_size=SIGHT, intermediate_size=32, num_hidden_layers=3, num_attention_heads=4, image_size=tiny.SIDE_PX,
        patch_size=tiny.SIDE_PX // 2,
    )  # fmt: skip
    _save(folder, SiglipVisionModel(config), 5)
    SiglipImageProcessorPil(size={"height": tiny.SIDE_PX, "width": tiny.SIDE_PX}).save_pretrained(folder)
    return folder


# ---------------------------------------------------------------------------- parts


_FLUX2_PARTS = {
    "transformer": ("diffusers", "Flux2Transformer2DModel"),
    "vae": ("diffusers", "AutoencoderKLFlux2"),
}


def _flux2_parts(folder: Path, *, text_width: int, guided: bool) -> None:
    transformer = Flux2Transformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=text_width,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guided,
    )
    _save(folder / "transformer", transformer, 1)
    vae = AutoencoderKLFlux2(
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
    )
    random = torch.Generator().manual_seed(6)
    with torch.no_grad():
        vae.bn.running_mean.copy_(0.1 * torch.randn(16, generator=random))
        vae.bn.running_var.copy_(1 + 0.2 * torch.rand(16, generator=random))
    _save(folder / "vae", vae, 4)
    _scheduler(folder, use_dynamic_shifting=True, shift=3.0)


def qwen_tokenizer(folder: Path) -> Qwen2Tokenizer:
    """Bytes alone, Qwen's special tokens, and a chat template that writes a message a line."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(letters)} | {"<|endoftext|>": len(letters)}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], additional_special_tokens=list(SPECIAL))
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return tokenizer


def _t5(folder: Path, name: str, *, width: int = 32) -> None:
    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("▁", -2.0),
        *((c, -3.0) for c in "abcdefghijklmnopqrstuvwxyz"),
    ]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=2)
    tokenizer.save_pretrained(folder / f"tokenizer{name}")
    config = T5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    )  # fmt: skip
    _save(folder / f"text_encoder{name}", T5EncoderModel(config), 3)


def _vae(*, shift: float) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
        shift_factor=shift,
        scaling_factor=0.9,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _scheduler(folder: Path, **settings: Any) -> None:
    FlowMatchEulerDiscreteScheduler(**settings).save_pretrained(folder / "scheduler")


def _save(folder: Path, model: Any, seed: int) -> None:
    tiny._seeded(model, seed).save_pretrained(folder)


def _index(folder: Path, pipeline: str, **parts: tuple[str, str]) -> None:
    told = {"scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"), **parts}
    index = {"_class_name": pipeline, "_diffusers_version": "0.42.1", **{k: list(v) for k, v in told.items()}}
    (folder / "model_index.json").write_text(json.dumps(index))


def _written(file: Path, state: dict[str, Tensor]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, file)
    return file
