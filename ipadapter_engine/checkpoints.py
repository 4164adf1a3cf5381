"""Opening checkpoints: a diffusers folder, IP-Adapter files, an image encoder and ControlNets, checked against
each other."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ipadapter_engine import registry
from ipadapter_engine.adapter import Adapter, adapter_from_state
from ipadapter_engine.adapter_encoders import check_encoder
from ipadapter_engine.adapter_layouts import adapter_file, flat_state
from ipadapter_engine.controlnets import ControlNet, open_control_net
from ipadapter_engine.encoder import ImageEncoder
from ipadapter_engine.errors import CheckpointRefused
from ipadapter_engine.families import Family, family_of
from ipadapter_engine.hashing import ModelHash, sha256_of_file, sha256_of_weights
from ipadapter_engine.prompts import IDENTITY, NAMES, nearest_name
from ipadapter_engine.weights import first_line, load_model, read_config

FIRST_STAGES: dict[str, Any] = {kind.__name__: kind for kind in (AutoencoderKL, AutoencoderTiny)}
_SAVE_WHOLE = "check that the folder is complete and its weights are safetensors"
EMBEDDED = Path(__file__).parent / "models" / "studio"
STYLE = "style"  # the further adapter that is loaded where the base folder has its file


@dataclass(frozen=True)
class CheckpointPaths:
    """Where a checkpoint's parts lie. `encoder` and `adapter` None: text only, unless the folder has its own.

    adapter: the file of the adapter called identity; adapters: files of those beside it, by name.
    controls: diffusers folders of ControlNets by kind.
    """

    base: Path = EMBEDDED
    adapter: Path | None = None
    encoder: Path | None = None
    controls: Mapping[str, Path] = field(default_factory=dict)
    adapters: Mapping[str, Path] = field(default_factory=dict)

    def resolved(self) -> CheckpointPaths:
        """With the parts that a base folder carries itself, where they are not given: `image_encoder/`,
        `ip_adapter.safetensors`, `ip_adapter_style.safetensors` (which reads that very encoder) and `controlnet/<kind>/`.
        """
        own_adapter, own_style = (self.base / f"ip_adapter{name}.safetensors" for name in ("", f"_{STYLE}"))
        own_encoder = self.base / "image_encoder"
        hears_own = self.encoder is None or self.encoder.resolve() == own_encoder.resolve()
        own_controls = {f.parent.name: f.parent for f in sorted(self.base.glob("controlnet/*/config.json"))}
        return CheckpointPaths(
            self.base,
            self.adapter or (own_adapter if own_adapter.exists() else None),
            self.encoder or (own_encoder if own_encoder.exists() else None),
            own_controls | dict(self.controls),
            ({STYLE: own_style} if hears_own and own_style.exists() else {}) | dict(self.adapters),
        )


@dataclass
class TextEncoder:
    tokenizer: CLIPTokenizer
    model: CLIPTextModel | CLIPTextModelWithProjection


@dataclass
class Checkpoint:
    """Everything that makes pictures, open and checked.

    models: a hash of each part that every picture comes from, the identity adapter's among them.
    further: the adapters beside it, by name; controls: the ControlNets by kind.
    beside: the hashes of those, by role, as each has a part only in pictures that ask for it.
    """

    family: Family
    unet: UNet2DConditionModel
    vae: AutoencoderKL | AutoencoderTiny
    text: list[TextEncoder]
    scheduler_config: dict[str, Any]
    adapter: Adapter | None
    encoder: ImageEncoder | None
    models: tuple[ModelHash, ...]
    zero_empty_prompt: bool = False  # SDXL's base replaces an empty negative prompt by zeros
    further: dict[str, Adapter] = field(default_factory=dict)
    controls: dict[str, ControlNet] = field(default_factory=dict)
    beside: dict[str, ModelHash] = field(default_factory=dict)

    @property
    def adapters(self) -> dict[str, Adapter]:
        """All adapters by name, the identity adapter first."""
        return ({IDENTITY: self.adapter} if self.adapter is not None else {}) | self.further

    @property
    def multiple_px(self) -> int:
        """What a side must be a multiple of: whole latent positions, and pairs of them where the UNet has levels.

        A level below whose latents do not halve evenly rounds up, as in diffusers, whose UNet then resizes on the way up.
        """
        return self.stride * min(2, len(self.unet.config["block_out_channels"]))

    @property
    def stride(self) -> int:
        """Pixels a latent position stands for."""
        config = self.vae.config
        blocks = (
            config["block_out_channels"] if "block_out_channels" in config else config["encoder_block_out_channels"]
        )
        return int(2 ** (len(blocks) - 1))


def open_checkpoint(paths: CheckpointPaths, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Checkpoint:
    """Open and check a checkpoint; raises CheckpointRefused with what to load instead."""
    paths = paths.resolved()
    _check_names(paths)
    base = paths.base
    index_file = base / "model_index.json"
    if not index_file.exists():
        raise CheckpointRefused(
            f"{base} is not a diffusers folder: it has no model_index.json",
            "name a folder saved by save_pretrained, with unet, vae, text_encoder, tokenizer and scheduler",
        )
    index = read_config(index_file)
    unet = load_model(UNet2DConditionModel, base / "unet", dtype, next_step=_SAVE_WHOLE)
    family = family_of(dict(unet.config), index.get("_onmodel_family"))
    vae = _first_stage(base, family, unet, dtype)
    text = _text_encoders(base, family, dtype)
    _check_text(base, family, unet, text)
    own = sha256_of_weights(base / "unet")
    licence = str(index.get("_onmodel_licence") or registry.licence_of(base, own) or "as the checkpoint's own")
    models = [ModelHash("unet", _name(base, index), own, licence)]
    models.append(ModelHash("vae", _name(base, index), sha256_of_weights(base / "vae"), licence))
    models += [
        ModelHash(folder, _name(base, index), sha256_of_weights(base / folder), licence)
        for folder in ("text_encoder", "text_encoder_2")[: len(text)]
    ]

    encoder = None
    if paths.encoder is not None:
        name = _name(base, index) if paths.encoder.parent == base else paths.encoder.name
        encoder = ImageEncoder.open(
            paths.encoder, name=name, processor_folder=paths.encoder.parent / "feature_extractor", device=device
        )
        told = _licence(paths.encoder, base, licence, encoder.weights_sha256)
        models.append(ModelHash("image encoder", name, encoder.weights_sha256, told))
    for part in (unet, vae, *(t.model for t in text)):
        part.to(device).eval()
    scheduler_config = read_config(base / "scheduler" / "scheduler_config.json")
    zero_empty = bool(index.get("force_zeros_for_empty_prompt", False))
    made = Checkpoint(family, unet, vae, text, scheduler_config, None, encoder, tuple(models), zero_empty)
    if isinstance(unet.config["sample_size"], int):
        made.family = family.sized(unet.config["sample_size"] * made.stride)
    _add_adapters(made, paths, licence, device=device, dtype=dtype)
    _add_controls(made, paths, licence, device=device, dtype=dtype)
    return made


def _add_adapters(made: Checkpoint, paths: CheckpointPaths, licence: str, *, device: str, dtype: torch.dtype) -> None:
    if IDENTITY in paths.adapters:
        raise CheckpointRefused(
            "the identity adapter is given among those beside it", "set it as ONMODEL_ENGINE__ADAPTER alone"
        )
    files = ({IDENTITY: paths.adapter} if paths.adapter is not None else {}) | dict(paths.adapters)
    for name, path in files.items():
        file = adapter_file(path)
        told = file.name if file == path else f"{path.name}/{file.name}"
        state, sha256 = read_adapter_file(file), sha256_of_file(file)
        with registry.advising(file):
            adapter = adapter_from_state(state, made.unet, file=told, sha256=sha256)
            check_encoder(file, adapter, made.encoder)
        adapter = adapter.to(device, dtype).eval()
        role = "ip-adapter" if name == IDENTITY else f"ip-adapter {name}"
        model = ModelHash(role, told, sha256, _licence(file, paths.base, licence, sha256))
        if name == IDENTITY:
            made.adapter, made.models = adapter, (*made.models, model)
        else:
            made.further[name], made.beside[role] = adapter, model


def _add_controls(made: Checkpoint, paths: CheckpointPaths, licence: str, *, device: str, dtype: torch.dtype) -> None:
    for kind, folder in sorted(paths.controls.items()):
        made.controls[kind] = open_control_net(
            folder, kind, made.unet, stride=made.stride, base=made.family.title, device=device, dtype=dtype
        )
        role = f"controlnet {kind}"
        sha256 = sha256_of_weights(folder)
        told = _licence(folder, paths.base, licence, sha256)
        made.beside[role] = ModelHash(role, folder.name, sha256, told)


def _licence(part: Path, base: Path, licence: str, sha256: str) -> str:
    """The base's licence holds for what lies in its folder; for another part what its manifest or the registry says."""
    if part.resolve().is_relative_to(base.resolve()):
        return licence
    return registry.licence_of(part, sha256) or "as its own, not told here"


def _check_names(paths: CheckpointPaths) -> None:
    """An adapter or a kind of another name could not be set: settings are read from variables of the environment."""
    for what, named in (("ControlNet", paths.controls), ("adapter", paths.adapters)):
        for name, place in named.items():
            if not NAMES.fullmatch(name):
                thing = f"the folder {place}" if place.name == name else "it"
                raise CheckpointRefused(
                    f"the {what} {place} is called {name!r}: names are of lower case letters, digits and underscores",
                    f"rename {thing} to {nearest_name(name)}",
                )


def read_adapter_file(path: Path) -> dict[str, Tensor]:
    """An adapter file as flat keys. A .bin is read with weights_only: a pickle that runs code is refused."""
    if not path.exists():
        raise CheckpointRefused(f"there is no adapter file at {path}", "check the path in ONMODEL_ENGINE__ADAPTER")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        nested = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointRefused(
            f"{path.name} is damaged: {first_line(error)}", "download the adapter file again"
        ) from None
    except pickle.UnpicklingError as error:  # what torch raises for a pickle that would run code
        raise CheckpointRefused(
            f"{path.name} is not a plain file of weights: {type(error).__name__}",
            "use the safetensors version of this adapter",
        ) from None
    if not isinstance(nested, dict):
        raise CheckpointRefused(f"{path.name} holds no dictionary of weights", "use an unmodified adapter file")
    return flat_state(nested)


def _name(base: Path, index: dict[str, Any]) -> str:
    return str(index.get("_onmodel_name") or index.get("_name_or_path") or base.name)


def _first_stage(
    base: Path, family: Family, unet: UNet2DConditionModel, dtype: torch.dtype
) -> AutoencoderKL | AutoencoderTiny:
    """The model between pixels and latents, checked against the UNet."""
    config = read_config(base / "vae" / "config.json")
    kind = FIRST_STAGES.get(config.get("_class_name", "AutoencoderKL"))
    if kind is None:
        raise CheckpointRefused(
            f"the first stage in {base} is a {config['_class_name']}", f"use one of {', '.join(FIRST_STAGES)}"
        )
    if family.size_conditioned and dtype == torch.float16 and config.get("force_upcast", kind is AutoencoderKL):
        dtype = torch.float32  # SDXL's own VAE overflows in half precision and gives black pictures
    vae: AutoencoderKL | AutoencoderTiny = load_model(kind, base / "vae", dtype, next_step=_SAVE_WHOLE)
    if unet.config["time_cond_proj_dim"] is not None:
        raise CheckpointRefused(
            f"the UNet in {base} takes guidance as an input (a distilled, LCM kind), which is not supported",
            f"use a {family.title} base that is guided by two passes",
        )
    if unet.config["in_channels"] != vae.config["latent_channels"]:
        raise CheckpointRefused(
            f"the UNet in {base} reads {unet.config['in_channels']} channels, its VAE gives {vae.config['latent_channels']}",
            "use a text-to-image base; inpainting and depth bases have more channels",
        )
    return vae


def open_texts(base: Path) -> list[TextEncoder]:
    """A base folder's text encoders alone, on the CPU. Raises CheckpointRefused."""
    if not (base / "model_index.json").exists():
        raise CheckpointRefused(f"{base} is not a diffusers folder: it has no model_index.json", _SAVE_WHOLE)
    named = read_config(base / "model_index.json").get("_onmodel_family")
    family = family_of(read_config(base / "unet" / "config.json"), named)
    texts = _text_encoders(base, family, torch.float32)
    for part in texts:
        part.model.eval()
    return texts


def _text_encoders(base: Path, family: Family, dtype: torch.dtype) -> list[TextEncoder]:
    folders = [("tokenizer", "text_encoder")] + ([("tokenizer_2", "text_encoder_2")] if family.size_conditioned else [])
    out = []
    for tokenizer_folder, model_folder in folders:
        kind = CLIPTextModelWithProjection if model_folder.endswith("_2") else CLIPTextModel
        next_step = f"{family.title} needs {model_folder} and {tokenizer_folder}; save the whole pipeline"
        model = load_model(kind, base / model_folder, dtype, next_step=next_step)
        if not any((base / tokenizer_folder / name).exists() for name in ("vocab.json", "tokenizer.json")):
            raise CheckpointRefused(f"{base / tokenizer_folder} holds no vocabulary", next_step)
        try:
            tokenizer = CLIPTokenizer.from_pretrained(base / tokenizer_folder, local_files_only=True)
        except Exception as error:  # the tokenizers library raises bare Exceptions
            raise CheckpointRefused(
                f"{base / tokenizer_folder} does not open: {first_line(error)}", next_step
            ) from None
        out.append(TextEncoder(tokenizer, model))
    return out


def _check_text(base: Path, family: Family, unet: UNet2DConditionModel, text: list[TextEncoder]) -> None:
    width = sum(int(t.model.config.hidden_size) for t in text)
    if width != unet.config["cross_attention_dim"]:
        raise CheckpointRefused(
            f"the UNet in {base} attends to text of width {unet.config['cross_attention_dim']}, its text encoders give {width}",
            f"use the text encoders that {family.title} was trained with",
        )
