"""Tiny checkpoints with seeded random weights, written in the layouts that real ones come in.

They make noise, but the same noise as diffusers makes of them, and that is what is tested: Stable Diffusion 1.5
and SDXL folders as save_pretrained writes them, tokenizers in CLIP's own vocab.json and merges.txt, an image
encoder beside its preprocessing, IP-Adapter files with the keys of github tencent-ailab/IP-Adapter, a folder with
everything in it as the embedded studio model's, ControlNets, and LoRAs as save_lora_weights writes them.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    ControlNetModel,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

MERGES = ["r e", "re d</w>", "b l", "bl u", "blu e</w>", "f o", "fo x</w>", "c a", "ca t</w>"]
LENGTH = 16  # tokens of a prompt; 77 in the real ones
WIDTH = 32  # of a text encoder
EMBED, HIDDEN, PATCHES = 24, 40, 4  # the image encoder: pooled, hidden states, patches of a picture
SIDE_PX = 32  # the image encoder's pictures
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def write_sd15(
    folder: Path, *, prediction_type: str = "epsilon", as_original: bool = False, unet_changes: Any = None
) -> Path:
    """A Stable Diffusion 1.5 folder: stride 8, four cross-attention layers (numbers 1, 3, 5, 7).

    as_original: with the real one's heads, groups and schedule, as one file does not tell them.
    """
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=8 if as_original else 4,
        norm_num_groups=32 if as_original else 8,
        **(unet_changes or {}),
    )
    scheduler = PNDMScheduler(**BETAS, set_alpha_to_one=False, skip_prk_steps=True, prediction_type=prediction_type)
    pipe = StableDiffusionPipeline(
        vae=_vae(levels=4, as_original=as_original),
        text_encoder=_seeded(CLIPTextModel(_text_config(pad=1, as_original=as_original)), 2),
        tokenizer=_tokenizer(folder / "tokenizer", pad="<|endoftext|>"),
        unet=_seeded(unet, 1),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    _tokenizer(folder / "tokenizer", pad="<|endoftext|>")
    schedule = folder / "scheduler" / "scheduler_config.json"
    change_json(schedule, clip_sample=False)  # as in the real one, for DDIM
    if as_original:
        told = {k: v for k, v in json.loads(schedule.read_text()).items() if k != "timestep_spacing"}
        schedule.write_text(json.dumps(told))  # the real one leaves it to each scheduler
    return folder


def write_sdxl(folder: Path, *, as_original: bool = False, unet_changes: Any = None, **schedule: Any) -> Path:
    """An SDXL folder: stride 4, two text encoders, deeper transformers in the second block, zeros for no negative.

    as_original: with the real one's heads, groups and activations, as one file does not tell them, and stride 8.
    schedule: of the scheduler, in place of SDXL's own.
    """
    levels = 4 if as_original else 3
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        cross_attention_dim=2 * WIDTH,
        attention_head_dim=(1, 1) if as_original else (4, 8),
        norm_num_groups=32 if as_original else 8,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
        **(unet_changes or {}),
    )
    second = _text_config(pad=2, as_original=as_original, act="gelu" if as_original else "quick_gelu")
    pipe = StableDiffusionXLPipeline(
        vae=_vae(levels=levels, as_original=as_original, scaling_factor=0.13025),
        text_encoder=_seeded(CLIPTextModel(_text_config(pad=1, as_original=as_original)), 2),
        text_encoder_2=_seeded(CLIPTextModelWithProjection(second), 3),
        tokenizer=_tokenizer(folder / "tokenizer", pad="<|endoftext|>"),
        tokenizer_2=_tokenizer(folder / "tokenizer_2", pad="!"),
        unet=_seeded(unet, 1),
        scheduler=EulerDiscreteScheduler(**{**BETAS, "timestep_spacing": "leading", **schedule}),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    pipe.save_pretrained(folder)
    _tokenizer(folder / "tokenizer", pad="<|endoftext|>")
    _tokenizer(folder / "tokenizer_2", pad="!")
    own = {"set_alpha_to_one": False} if as_original else {}
    change_json(folder / "scheduler" / "scheduler_config.json", clip_sample=False, **own)
    return folder


def write_studio(folder: Path, *, channels: tuple[int, ...] = (32, 64), stride: int = 8) -> Path:
    """A folder like the embedded model's: an AutoencoderTiny, `channels` of a UNet of any number of resolutions, its
    own image encoder, a base adapter for identity and a plus one for style."""
    unet = UNet2DConditionModel(
        sample_size=4,
        block_out_channels=channels,
        down_block_types=("CrossAttnDownBlock2D",) * len(channels),
        up_block_types=("CrossAttnUpBlock2D",) * len(channels),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    levels = stride.bit_length()
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8,) * levels,
        decoder_block_out_channels=(8,) * levels,
        num_encoder_blocks=(1,) * levels,
        num_decoder_blocks=(1,) * levels,
        scaling_factor=0.7,
    )
    clip = write_encoder(folder)
    pipe = StableDiffusionPipeline(
        vae=_seeded(vae, 4),
        text_encoder=_seeded(CLIPTextModel(_text_config(pad=1)), 2),
        tokenizer=_tokenizer(folder / "tokenizer", pad="<|endoftext|>"),
        unet=_seeded(unet, 1),
        scheduler=DDIMScheduler(**BETAS, prediction_type="sample", timestep_spacing="trailing", clip_sample=False),
        safety_checker=None,
        feature_extractor=CLIPImageProcessorPil.from_pretrained(folder / "feature_extractor"),
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(clip),
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    _tokenizer(folder / "tokenizer", pad="<|endoftext|>")
    change_json(folder / "model_index.json", _onmodel_family="studio", _onmodel_name="tiny", _onmodel_licence="test")
    write_safetensors(folder / "ip_adapter.safetensors", base_adapter_state(unet))
    write_safetensors(folder / "ip_adapter_style.safetensors", plus_adapter_state(unet))
    return folder


def write_control_net(folder: Path, base: Path, *, stride: int, seed: int = 21, **changes: Any) -> Path:
    """A ControlNet of a base's UNet; `changes` to its configuration make one that fits less well."""
    unet = open_unet(base)
    channels = tuple(8 + 4 * i for i in range(stride.bit_length()))
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=channels, load_weights_from_unet=False)
    if changes:
        shape = {k: v for k, v in net.config.items() if not k.startswith("_")}  # "_use_default_values" undoes changes
        net = ControlNetModel.from_config({**shape, **changes})
    _seeded(net, seed)
    with torch.no_grad():
        for weight in net.controlnet_cond_embedding.parameters():
            if weight.ndim > 1:
                weight *= 3.0  # else its many layers shrink every picture to the same nothing
    net.save_pretrained(folder)
    return folder


def write_character(
    folder: Path, base: Path, *, rank: int = 2, alpha: int = 4, seed: int = 31, text: bool = True, **settings: Any
) -> Path:
    """A LoRA of the UNet, and of all text encoders with `text`, as diffusers' training scripts save it; `settings` are
    further ones of peft's LoraConfig."""
    parts: dict[str, Any] = {}
    models: dict[str, Any] = {"unet": open_unet(base)}
    if text:
        models["text_encoder"] = CLIPTextModel.from_pretrained(base / "text_encoder")
    if text and (base / "text_encoder_2").exists():
        models["text_encoder_2"] = CLIPTextModelWithProjection.from_pretrained(base / "text_encoder_2")
    for name, model in models.items():
        targets = ["to_q", "to_k", "to_v", "to_out.0"] if name == "unet" else ["q_proj", "v_proj"]
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, **settings)
        inject_adapter_in_model(config, model)
        draw = Draw(seed)
        weights = {k: draw(*v.shape) for k, v in sorted(get_peft_model_state_dict(model).items())}
        parts[f"{name}_lora_layers"] = convert_state_dict_to_diffusers(weights)
        parts[f"{name}_lora_adapter_metadata"] = config.to_dict()
    kind = StableDiffusionXLPipeline if "text_encoder_2" in models else StableDiffusionPipeline
    kind.save_lora_weights(folder, **parts)
    return folder / "pytorch_lora_weights.safetensors"


def write_encoder(parent: Path, *, embed: int = EMBED, hidden: int = HIDDEN) -> Path:
    """`image_encoder/`, and `feature_extractor/` beside it; returns the former."""
    config = CLIPVisionConfig(
        hidden_size=hidden,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIDE_PX,
        patch_size=SIDE_PX // 2,
        projection_dim=embed,
    )
    _seeded(CLIPVisionModelWithProjection(config), 5).save_pretrained(parent / "image_encoder")
    side = {"height": SIDE_PX, "width": SIDE_PX}
    CLIPImageProcessorPil(size={"shortest_edge": SIDE_PX}, crop_size=side).save_pretrained(parent / "feature_extractor")
    return parent / "image_encoder"


def base_adapter_state(
    unet: UNet2DConditionModel, *, embed: int = EMBED, seed: int = 11
) -> dict[str, dict[str, Tensor]]:
    """A base adapter: the pooled embedding becomes four tokens."""
    dim, draw = unet.config["cross_attention_dim"], Draw(seed)
    proj = {"proj.weight": draw(4 * dim, embed), "proj.bias": draw(4 * dim), **norm("norm", dim, draw)}
    return {"image_proj": proj, "ip_adapter": key_values(unet, draw)}


def plus_adapter_state(
    unet: UNet2DConditionModel, *, hidden: int = HIDDEN, seed: int = 12
) -> dict[str, dict[str, Tensor]]:
    """A plus adapter: a resampler of four layers, two heads of 64 and eight tokens, as diffusers can read it."""
    dim, draw, width = unet.config["cross_attention_dim"], Draw(seed), 48
    proj = {"latents": draw(1, 8, width), **resampler(draw, hidden, width, dim)}
    return {"image_proj": proj, "ip_adapter": key_values(unet, draw)}


def resampler(draw: Draw, hidden: int, width: int, dim: int) -> dict[str, Tensor]:
    """A resampler's weights by the authors' names, without its latents."""
    proj = {
        "proj_in.weight": draw(width, hidden),
        "proj_in.bias": draw(width),
        "proj_out.weight": draw(dim, width),
        "proj_out.bias": draw(dim),
        **norm("norm_out", dim, draw),
    }
    for i in range(4):
        proj |= {**norm(f"layers.{i}.0.norm1", width, draw), **norm(f"layers.{i}.0.norm2", width, draw)}
        proj[f"layers.{i}.0.to_q.weight"] = draw(128, width)
        proj[f"layers.{i}.0.to_kv.weight"] = draw(256, width)
        proj[f"layers.{i}.0.to_out.weight"] = draw(width, 128)
        proj |= norm(f"layers.{i}.1.0", width, draw)
        proj[f"layers.{i}.1.1.weight"] = draw(4 * width, width)
        proj[f"layers.{i}.1.3.weight"] = draw(width, 4 * width)
    return proj


def key_values(unet: UNet2DConditionModel, draw: Draw) -> dict[str, Tensor]:
    """The authors' numbering: every attention layer counts, down, up, mid; the odd ones attend to text."""
    state, number = {}, 1
    for part in ("down_blocks", "up_blocks", "mid_block"):
        for name, module in unet.get_submodule(part).named_modules():
            if name.endswith("attn2"):
                attn: Any = module
                hidden, dim = attn.to_k.weight.shape
                state[f"{number}.to_k_ip.weight"] = draw(hidden, dim)
                state[f"{number}.to_v_ip.weight"] = draw(hidden, dim)
                number += 2
    return state


def flat(state: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{part}.{k}": v for part, values in state.items() for k, v in values.items()}


def write_safetensors(path: Path, state: dict[str, dict[str, Tensor]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(flat(state), path)
    return path


def write_bin(path: Path, state: dict[str, dict[str, Tensor]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return path


def open_unet(folder: Path) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(folder / "unet", local_files_only=True)


def copy_of(folder: Path, to: Path) -> Path:
    """A checkpoint to be damaged."""
    shutil.copytree(folder, to)
    return to


def change_json(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


class Draw:
    """Normal weights with the spread that keeps signals near one through a layer; the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        fan_in = shape[-1] if len(shape) > 1 else 100
        return torch.randn(shape, generator=self._random) * (1.0 / math.sqrt(fan_in))


def norm(name: str, width: int, draw: Draw) -> dict[str, Tensor]:
    return {f"{name}.weight": 1 + draw(width), f"{name}.bias": draw(width)}


def _seeded(module: Any, seed: int) -> Any:
    """Every weight drawn anew, so that no layer is left at zero or at one and could be forgotten unseen."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(module.named_parameters()):
            noise = torch.randn(weight.shape, generator=random)
            if weight.ndim > 1:
                weight.copy_(noise / (3 * weight[0].numel()) ** 0.5)  # the spread of a new torch layer
            else:
                weight.copy_(0.1 * noise + (1.0 if name.endswith("weight") else 0.0))
    return module.eval()


def _vae(levels: int, *, as_original: bool = False, scaling_factor: float = 0.18215) -> AutoencoderKL:
    model = AutoencoderKL(
        block_out_channels=(32 if as_original else 8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=4,
        norm_num_groups=32 if as_original else 4,
        sample_size=64,
        scaling_factor=scaling_factor,
    )
    return _seeded(model, 4)


def _vocabulary() -> dict[str, int]:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["!"] + [a for a in letters if a != "!"] + [f"{a}</w>" for a in letters]
    words += ["".join(m.split()) for m in MERGES if "".join(m.split()) not in words]
    return {w: i for i, w in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}


def _text_config(*, pad: int, as_original: bool = False, act: str = "quick_gelu") -> CLIPTextConfig:
    vocabulary = _vocabulary()
    return CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=1 if as_original else 4,
        max_position_embeddings=LENGTH,
        projection_dim=WIDTH,
        hidden_act=act,
        bos_token_id=vocabulary["<|startoftext|>"],
        eos_token_id=vocabulary["<|endoftext|>"],
        pad_token_id=pad,
    )


def _tokenizer(folder: Path, *, pad: str) -> CLIPTokenizer:
    """Written file by file as OpenAI's was, not as transformers of today would save it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(_vocabulary()))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": pad,
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    config = {**special, "model_max_length": LENGTH, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
