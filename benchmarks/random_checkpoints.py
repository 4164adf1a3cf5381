"""Checkpoints of the real sizes with seeded random weights: what a speed needs of Stable Diffusion where nothing can be
downloaded. They make noise, and the same noise in diffusers.

Written in half precision, once; opened in any. References are embeddings, so the image encoder is a small one that only
says how wide they are.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from ipadapter_engine.adapter import new_base_adapter
from ipadapter_engine.checkpoints import EMBEDDED, CheckpointPaths

ADAPTER = "ip_adapter.safetensors"
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
SD15_UNET: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}  # 860 M parameters
SDXL_UNET: dict[str, Any] = {  # 2.6 billion
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
CLIP_L: dict[str, Any] = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "projection_dim": 768, "hidden_act": "quick_gelu",
}  # fmt: skip
BIG_G: dict[str, Any] = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
    "projection_dim": 1280, "hidden_act": "gelu",
}  # fmt: skip
VIT_B: dict[str, Any] = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "image_size": 224, "patch_size": 32, "projection_dim": 512,
}  # fmt: skip


def write_sd15_shaped(
    folder: Path, *, unet: dict[str, Any] = SD15_UNET, vae: dict[str, Any] = VAE, text: dict[str, Any] = CLIP_L,
    embed: int = 1024,
) -> CheckpointPaths:  # fmt: skip
    """A Stable Diffusion 1.5 folder with a base adapter for embeddings of `embed` numbers; other numbers make it a toy."""
    torch.manual_seed(15)
    model = UNet2DConditionModel(**unet)
    StableDiffusionPipeline(
        vae=AutoencoderKL(**vae, scaling_factor=0.18215).half(),
        text_encoder=CLIPTextModel(_text_config(text)).half(),
        tokenizer=CLIPTokenizer.from_pretrained(EMBEDDED / "tokenizer", local_files_only=True),
        unet=model.half(),
        scheduler=DDIMScheduler(**BETAS, set_alpha_to_one=False, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return _completed(folder, model, embed)


def write_sdxl_shaped(
    folder: Path, *, unet: dict[str, Any] = SDXL_UNET, vae: dict[str, Any] = VAE, text: dict[str, Any] = CLIP_L,
    text_2: dict[str, Any] = BIG_G, embed: int = 1280,
) -> CheckpointPaths:  # fmt: skip
    """An SDXL folder with a base adapter."""
    torch.manual_seed(16)
    model = UNet2DConditionModel(**unet)
    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED / "tokenizer", local_files_only=True)
    StableDiffusionXLPipeline(
        vae=AutoencoderKL(**vae, scaling_factor=0.13025, force_upcast=False).half(),
        text_encoder=CLIPTextModel(_text_config(text)).half(),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(text_2)).half(),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=model.half(),
        scheduler=EulerDiscreteScheduler(**BETAS, timestep_spacing="leading"),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    ).save_pretrained(folder)
    return _completed(folder, model, embed)


def write_encoder(folder: Path, config: dict[str, Any]) -> Path:
    """An image encoder alone, without a file of its preprocessing: CLIP's own."""
    torch.manual_seed(17)
    CLIPVisionModelWithProjection(CLIPVisionConfig(**config)).save_pretrained(folder)
    return folder


def _completed(folder: Path, unet: UNet2DConditionModel, embed: int) -> CheckpointPaths:
    for place in folder.glob("tokenizer*"):
        shutil.copytree(EMBEDDED / "tokenizer", place, dirs_exist_ok=True)
        file = place / "tokenizer_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "model_max_length": 77}))
    adapter = new_base_adapter(unet, embed)
    save_file({k: v.half().contiguous() for k, v in adapter.official_state().items()}, folder / ADAPTER)
    side = {"image_size": 32, "patch_size": 16, "num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64}
    encoder = write_encoder(folder / "image_encoder", {**side, "num_attention_heads": 2, "projection_dim": embed})
    return CheckpointPaths(folder, folder / ADAPTER, encoder)


def _text_config(sizes: dict[str, Any]) -> CLIPTextConfig:
    """The real vocabulary's size; the embedded model's words are its first."""
    return CLIPTextConfig(
        vocab_size=49408, max_position_embeddings=77, bos_token_id=0, eos_token_id=1, pad_token_id=1, **sizes
    )
