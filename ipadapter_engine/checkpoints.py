"""Opening checkpoints: a base, IP-Adapter files, an image encoder, ControlNets and taught words, checked against each
other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from torch import Tensor

from ipadapter_engine import registry
from ipadapter_engine.adapter import Adapter, adapter_from_state
from ipadapter_engine.adapter_encoders import check_encoder
from ipadapter_engine.adapter_layouts import adapter_file, flat_state
from ipadapter_engine.bases import open_base, open_texts
from ipadapter_engine.controlnets import ControlNet, open_control_net
from ipadapter_engine.encoder import ImageEncoder
from ipadapter_engine.errors import CheckpointRefused
from ipadapter_engine.families import Family
from ipadapter_engine.hashing import ModelHash, sha256_of_file, sha256_of_weights
from ipadapter_engine.prompts import IDENTITY, NAMES, CharacterModel, nearest_name
from ipadapter_engine.requests import GenerationRequest
from ipadapter_engine.text_encoders import TextEncoder
from ipadapter_engine.weights import read_state
from ipadapter_engine.words import Words, open_words

__all__ = ["EMBEDDED", "STYLE", "Checkpoint", "CheckpointPaths", "TextEncoder", "open_checkpoint", "open_texts", "read_adapter_file"]  # fmt: skip
EMBEDDED = Path(__file__).parent / "models" / "studio"
STYLE = "style"  # the further adapter that is loaded where the base folder has its file


@dataclass(frozen=True)
class CheckpointPaths:
    """Where a checkpoint's parts lie. `encoder` and `adapter` None: text only, unless the folder has its own.

    adapter: the file of the adapter called identity; adapters: files of those beside it, by name.
    controls: ControlNets by kind, as diffusers folders or single files; words: files of taught words, by name.
    tokenizer: a folder with CLIP's vocabulary, for a base that is one file. loras: files of LoRAs that requests may name.
    """

    base: Path = EMBEDDED
    adapter: Path | None = None
    encoder: Path | None = None
    controls: Mapping[str, Path] = field(default_factory=dict)
    adapters: Mapping[str, Path] = field(default_factory=dict)
    words: Mapping[str, Path] = field(default_factory=dict)
    tokenizer: Path | None = None
    loras: Mapping[str, Path] = field(default_factory=dict)

    def resolved(self) -> CheckpointPaths:
        """With the parts that a base folder carries itself, where they are not given: `image_encoder/`,
        `ip_adapter.safetensors`, `ip_adapter_style.safetensors` (which reads that very encoder) and `controlnet/<kind>/`.
        """
        own_adapter, own_style = (self.base / f"ip_adapter{name}.safetensors" for name in ("", f"_{STYLE}"))
        own_encoder = self.base / "image_encoder"
        hears_own = self.encoder is None or self.encoder.resolve() == own_encoder.resolve()
        own_controls = {f.parent.name: f.parent for f in sorted(self.base.glob("controlnet/*/config.json"))}
        return replace(
            self,
            adapter=self.adapter or (own_adapter if own_adapter.exists() else None),
            encoder=self.encoder or (own_encoder if own_encoder.exists() else None),
            controls=own_controls | dict(self.controls),
            adapters=({STYLE: own_style} if hears_own and own_style.exists() else {}) | dict(self.adapters),
        )


@dataclass
class Checkpoint:
    """Everything that makes pictures, open and checked.

    models: a hash of each part that every picture comes from, the identity adapter's among them.
    further: the adapters beside it, by name; controls: the ControlNets by kind; words: those that prompts may use; loras:
    those that requests may name, at full strength; they are read when one is played.
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
    words: Words = field(default_factory=Words)
    loras: dict[str, CharacterModel] = field(default_factory=dict)
    device: torch.device = field(
        default_factory=lambda: torch.device("cpu")
    )  # where it works; its parts lie there unless they are offloaded

    @property
    def base_model(self) -> ModelHash:
        """What stands for the base: the UNet of a folder, or the file that it came in."""
        return self.models[0]

    @property
    def latent_channels(self) -> int:
        return int(self.vae.config["latent_channels"])

    @property
    def latent_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and spread of the first stage's latents, (1, channels or 1, 1, 1); 0 and 1 unless its configuration says."""
        mean, spread = (
            torch.tensor(self.vae.config.get(name) or blank, device=self.device).view(1, -1, 1, 1)
            for name, blank in (("latents_mean", [0.0]), ("latents_std", [1.0]))
        )
        return mean, spread

    @property
    def inpaints(self) -> bool:
        """Whether the UNet reads, behind the noisy latents, a mask (1 where to paint) and the latents of the picture
        without what lies under it."""
        return int(self.unet.config["in_channels"]) != self.latent_channels

    @property
    def guidance_dim(self) -> int | None:
        """Numbers that the UNet is told guidance in, as `timestep_cond`, where it was distilled to need one pass (LCM);
        None where guidance is the difference of two passes."""
        dim = self.unet.config["time_cond_proj_dim"]
        return None if dim is None else int(dim)

    def roles_of(self, request: GenerationRequest) -> tuple[str, ...]:
        """The models beside those of every picture that a request needs, by role: `GenerationRequest.roles`, and the
        taught words in its prompts."""
        named = self.words.named_in(request.prompt, request.negative_prompt)
        return (*request.roles, *(f"word {name}" for name in named))

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


def open_checkpoint(
    paths: CheckpointPaths, *, device: str = "cpu", dtype: torch.dtype = torch.float32, offload: bool = False
) -> Checkpoint:
    """Open and check a checkpoint; raises CheckpointRefused with what to load instead.

    offload: its parts lie on the CPU, each to be moved to the device for its work (`acceleration.Residence`).
    """
    works_on, device = torch.device(device), "cpu" if offload else device
    paths = paths.resolved()
    _check_names(paths)
    base = open_base(paths.base, tokenizer=paths.tokenizer, dtype=dtype)
    models, encoder = base.models, None
    if paths.encoder is not None:
        name = base.name if paths.encoder.parent == paths.base else paths.encoder.name
        encoder = ImageEncoder.open(
            paths.encoder, name=name, processor_folder=paths.encoder.parent / "feature_extractor", device=device
        )
        told = _licence(paths.encoder, paths.base, base.licence, encoder.weights_sha256)
        models = (*models, ModelHash("image encoder", name, encoder.weights_sha256, told))
    for part in (base.unet, base.vae, *(t.model for t in base.text)):
        part.to(device).eval()
    made = Checkpoint(
        base.family, base.unet, base.vae, base.text, base.scheduler_config, None, encoder, models,
        base.zero_empty_prompt, device=works_on,
    )  # fmt: skip
    if isinstance(base.unet.config["sample_size"], int):
        made.family = made.family.sized(base.unet.config["sample_size"] * made.stride)
    _add_adapters(made, paths, base.licence, device=device, dtype=dtype)
    _add_controls(made, paths, base.licence, device=device, dtype=dtype)
    _add_words(made, paths, base.licence)
    made.loras = {name: _lora(name, file) for name, file in sorted(paths.loras.items())}
    return made


def _lora(name: str, file: Path) -> CharacterModel:
    if not file.is_file():
        raise CheckpointRefused(
            f"there is no LoRA at {file}", f"check the path in ONMODEL_ENGINE__LORAS__{name.upper()}: it names a file"
        )
    return CharacterModel(file, sha256_of_file(file))


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
        sha256 = sha256_of_file(folder) if folder.is_file() else sha256_of_weights(folder)
        told = _licence(folder, paths.base, licence, sha256)
        made.beside[role] = ModelHash(role, folder.name, sha256, told)


def _add_words(made: Checkpoint, paths: CheckpointPaths, licence: str) -> None:
    made.words = open_words(paths.words, made.text, made.family.title)
    made.words.inject()
    for name, file in sorted(paths.words.items()):
        sha256 = sha256_of_file(file)
        told = _licence(file, paths.base, licence, sha256)
        made.beside[f"word {name}"] = ModelHash(f"word {name}", file.name, sha256, told)


def _licence(part: Path, base: Path, licence: str, sha256: str) -> str:
    """The base's licence holds for what lies in its folder; for another part what its manifest or the registry says."""
    if part.resolve().is_relative_to(base.resolve()):
        return licence
    return registry.licence_of(part, sha256) or "as its own, not told here"


def _check_names(paths: CheckpointPaths) -> None:
    """An adapter or a kind of another name could not be set: settings are read from variables of the environment."""
    for what, named in (
        ("ControlNet", paths.controls),
        ("adapter", paths.adapters),
        ("word", paths.words),
        ("LoRA", paths.loras),
    ):
        for name, place in named.items():
            if not NAMES.fullmatch(name):
                thing = f"the folder {place}" if place.name == name else "it"
                raise CheckpointRefused(
                    f"the {what} {place} is called {name!r}: names are of lower case letters, digits and underscores",
                    f"rename {thing} to {nearest_name(name)}",
                )


def read_adapter_file(path: Path) -> dict[str, Tensor]:
    """An adapter file as flat keys. A .bin is read with weights_only: a pickle that runs code is refused."""
    nested = read_state(path, what="adapter", setting="ONMODEL_ENGINE__ADAPTER")
    if not isinstance(nested, dict):
        raise CheckpointRefused(f"{path.name} holds no dictionary of weights", "use an unmodified adapter file")
    return flat_state(nested)
