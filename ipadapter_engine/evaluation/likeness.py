"""How alike pictures and texts are to an encoder: CLIP-I, CLIP-T and DINO, all cosines of unit embeddings.

CLIP-I compares pictures with the subject's references, CLIP-T pictures with their prompt (Radford et al., 2021,
arXiv:2103.00020); DINO compares pictures by a ViT that was trained without labels or words and so tells two of a kind
apart (Caron et al., 2021, arXiv:2104.14294; as a measure, DreamBooth, Ruiz et al., 2022, sec. 4.1).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, ViTModel
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from ipadapter_engine.checkpoints import CheckpointPaths, TextEncoder, open_texts
from ipadapter_engine.encoder import ImageEncoder
from ipadapter_engine.errors import CheckpointRefused
from ipadapter_engine.hashing import ModelHash, sha256_of_file, sha256_of_weights
from ipadapter_engine.pipeline import Engine
from ipadapter_engine.weights import first_line, load_model, read_config

if TYPE_CHECKING:
    from ipadapter_engine.engines import PictureEngine

TEXT_PROJECTION = "text_projection.safetensors"  # beside an image encoder: (embed, hidden) for the base's text encoder
TEXT_PROJECTION_KEY = "text_projection.weight"
_BATCH = 32
_CLIP_WANTED = "name a CLIPModel's folder with safetensors weights, such as openai/clip-vit-large-patch14 saved locally"
_DINO_WANTED = "name a ViTModel's folder with safetensors weights, such as facebook/dino-vits16 saved locally"
_SIZES = {192: "Ti", 384: "S", 768: "B", 1024: "L", 1280: "H", 1408: "g", 1664: "bigG"}  # ViTs by their width
_USUAL_SIDE_PX = 224


@dataclass(frozen=True, eq=False)
class Likeness:
    """An encoder as a measure.

    pictures: RGB pictures -> float32 (n, dim), of length one. prompts: the same of texts; None where no text encoder
    shares its space. kind: which ViT it is, `ViT-L/14`, by its configuration.
    """

    name: str
    kind: str
    models: tuple[ModelHash, ...]
    pictures: Callable[[Sequence[Image.Image]], np.ndarray]
    prompts: Callable[[Sequence[str]], np.ndarray] | None = None

    @property
    def reads_texts(self) -> bool:
        return self.prompts is not None

    def texts(self, given: Sequence[str]) -> np.ndarray:
        """float32 (n, dim), of length one, in the space of `pictures`. ValueError where `reads_texts` is false."""
        if self.prompts is None:
            raise ValueError(f"{self.name} has no text encoder; ask `reads_texts` first")
        return self.prompts(given)


def kind_of(config: Any) -> str:
    """`ViT-L/14` of a ViT's configuration; the side is told where it is not the usual 224 px."""
    width, side = int(config.hidden_size), int(config.image_size)
    kind = f"ViT-{_SIZES.get(width, f'{width} wide')}/{int(config.patch_size)}"
    return kind if side == _USUAL_SIDE_PX else f"{kind} at {side} px"


def of_engine(engine: PictureEngine, encoder_folder: Path) -> Likeness:
    """The checkpoint's own image encoder, with a text encoder of the same space where there is one.

    Looked for in this order: the whole CLIP in the image encoder's folder; a text projection beside the encoder, for
    the base's text encoder; a text encoder of the base that projects to as many numbers (SDXL's second one, whose image
    half is the encoder of SDXL's base adapters). Raises CheckpointRefused for a projection that does not fit.
    """
    return _of_encoder(engine.encoder, lambda: _texts_of(engine), engine.models, encoder_folder)


def _texts_of(engine: PictureEngine) -> list[TextEncoder]:
    return engine.checkpoint.text if isinstance(engine, Engine) else []


def of_checkpoint(paths: CheckpointPaths) -> Likeness:
    """The same of a checkpoint that is not open: only what reads pictures and texts is loaded, on the CPU, and nothing that makes
    pictures. Raises CheckpointRefused."""
    paths = paths.resolved()
    if paths.encoder is None:
        raise CheckpointRefused(f"{paths.base} has no image encoder", "set ONMODEL_ENGINE__ENCODER to a CLIP's folder")
    features = paths.encoder.parent / "feature_extractor"
    encoder = ImageEncoder.open(paths.encoder, name=paths.encoder.name, processor_folder=features)
    roles = ("text_encoder", "text_encoder_2")
    hashes = [ModelHash(role, paths.base.name, "", "as the checkpoint's own") for role in roles]
    return _of_encoder(encoder, lambda: open_texts(paths.base, paths.tokenizer), hashes, paths.encoder)


def _of_encoder(
    encoder: ImageEncoder, own: Callable[[], Sequence[TextEncoder]], hashes: Sequence[ModelHash], folder: Path
) -> Likeness:
    models = [ModelHash("measure", encoder.name, encoder.sha256, "as the checkpoint's own")]
    prompts, beside = _text_half(encoder, own, hashes, folder)
    models += [] if beside is None else [replace(beside, role="measure of texts")]
    return Likeness(encoder.name, kind_of(encoder.model.config), tuple(models), _pictures(encoder), prompts)


def _text_half(
    encoder: ImageEncoder, texts: Callable[[], Sequence[TextEncoder]], hashes: Sequence[ModelHash], folder: Path
) -> tuple[Callable[[Sequence[str]], np.ndarray] | None, ModelHash | None]:
    """What reads texts, and the hash of what it is besides the image encoder's own file. texts: the base's, opened where they are
    needed."""
    if _is_whole_clip(folder):
        return _texts(_text_side(folder, str(encoder.model.device)), _projected), None
    own, file = texts(), folder / TEXT_PROJECTION
    if file.exists():
        weight = _read_projection(file, (encoder.dim, int(own[0].model.config.hidden_size))).to(own[0].model.device)
        told = ModelHash("", file.name, sha256_of_file(file), "as the checkpoint's own")
        return _texts(own[0], lambda out: out.pooler_output.float() @ weight.T), told
    for part, role in zip(own, ("text_encoder", "text_encoder_2"), strict=False):
        if isinstance(part.model, CLIPTextModelWithProjection) and part.model.config.projection_dim == encoder.dim:
            return _texts(part, _projected), _named(hashes, role)
    return None, None


def _named(hashes: Sequence[ModelHash], role: str) -> ModelHash:
    """The hash of a part of the base, which of a base in one file is the whole file's."""
    return next((m for m in hashes if m.role == role), hashes[0])


def _read_projection(file: Path, shape: tuple[int, int]) -> torch.Tensor:
    try:
        weight = load_file(file)[TEXT_PROJECTION_KEY].float()
    except (SafetensorError, KeyError, OSError) as error:
        raise CheckpointRefused(
            f"{file} holds no text projection: {first_line(error)}", "export the checkpoint again"
        ) from None
    if tuple(weight.shape) != shape:
        raise CheckpointRefused(
            f"{file} projects {tuple(weight.shape)}, the encoders need {shape}", "export the checkpoint again"
        )
    return weight


def _is_whole_clip(folder: Path) -> bool:
    vocabulary = any((folder / name).exists() for name in ("vocab.json", "tokenizer.json"))
    config = folder / "config.json"
    return vocabulary and config.exists() and read_config(config).get("model_type") == "clip"


def _text_side(folder: Path, device: str) -> TextEncoder:
    """The text half of a CLIPModel's folder."""
    model = load_model(CLIPTextModelWithProjection, folder, torch.float32, next_step=_CLIP_WANTED).to(device).eval()
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise CheckpointRefused(f"{folder} has no tokenizer that opens: {first_line(error)}", _CLIP_WANTED) from None
    return TextEncoder(tokenizer, model)


def _projected(out: Any) -> torch.Tensor:
    return out.text_embeds.float()


def check_clip(folder: Path) -> None:
    """Raises CheckpointRefused for a folder that cannot be a whole CLIP; opens no weights."""
    if not (folder / "config.json").exists():
        raise CheckpointRefused(f"{folder} holds no CLIP", _CLIP_WANTED)
    if read_config(folder / "config.json").get("model_type") != "clip":
        raise CheckpointRefused(f"{folder} holds no whole CLIP, with a text and an image side", _CLIP_WANTED)


def open_clip(folder: Path, *, device: str = "cpu") -> Likeness:
    """A CLIPModel's folder as transformers saves it, with tokenizer and preprocessing; raises CheckpointRefused."""
    check_clip(folder)
    encoder = ImageEncoder.open(folder, name=folder.name, processor_folder=folder, device=device)
    told = ModelHash("measure", folder.name, encoder.sha256, "as the checkpoint's own")
    prompts = _texts(_text_side(folder, device), _projected)
    return Likeness(folder.name, kind_of(encoder.model.config), (told,), _pictures(encoder), prompts)


def check_dino(folder: Path) -> None:
    """Raises CheckpointRefused for a folder that cannot be a DINO with its preprocessing; opens no weights."""
    if not (folder / "config.json").exists():
        raise CheckpointRefused(f"{folder} holds no ViT", _DINO_WANTED)
    if not (folder / "preprocessor_config.json").exists():
        raise CheckpointRefused(
            f"{folder} does not say how DINO's pictures are resized and normalised",
            "put its own preprocessor_config.json beside the weights: size, resample, ImageNet's image_mean and image_std",
        )
    read_config(folder / "preprocessor_config.json")


def open_dino(folder: Path, *, device: str = "cpu") -> Likeness:
    """A ViTModel's folder; a picture is its class token after the last layer. Raises CheckpointRefused."""
    check_dino(folder)
    try:  # without the pooling layer, which DINO never had
        model, found = ViTModel.from_pretrained(
            folder, add_pooling_layer=False, use_safetensors=True, local_files_only=True, output_loading_info=True,
            dtype=torch.float32,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointRefused(f"{folder} does not open: {first_line(error)}", _DINO_WANTED) from None
    if missing := sorted(found["missing_keys"]):
        raise CheckpointRefused(f"{folder} lacks {len(missing)} weights of a ViT, {missing[0]} first", _DINO_WANTED)
    model = model.to(device).eval()
    processor = ViTImageProcessorPil.from_pretrained(folder, local_files_only=True)

    @torch.inference_mode()
    def pictures(given: Sequence[Image.Image]) -> np.ndarray:
        rows = []
        for i in range(0, len(given), _BATCH):
            seen = processor(images=[p.convert("RGB") for p in given[i : i + _BATCH]], return_tensors="pt")
            rows.append(model(pixel_values=seen["pixel_values"].to(device)).last_hidden_state[:, 0].float().cpu())
        return _unit(torch.cat(rows).numpy())

    identity = json.dumps([sha256_of_weights(folder), json.loads(processor.to_json_string())], sort_keys=True)
    sha256 = hashlib.sha256(identity.encode()).hexdigest()  # weights and preprocessing, as an image encoder's
    told = ModelHash("measure", folder.name, sha256, "as the checkpoint's own")
    return Likeness(folder.name, kind_of(model.config), (told,), pictures)


def _pictures(encoder: ImageEncoder) -> Callable[[Sequence[Image.Image]], np.ndarray]:
    def embed(given: Sequence[Image.Image]) -> np.ndarray:
        rows = [e.pooled for i in range(0, len(given), _BATCH) for e in encoder.encode(given[i : i + _BATCH])]
        return _unit(np.stack(rows))

    return embed


def _texts(part: TextEncoder, embeds: Callable[[Any], torch.Tensor]) -> Callable[[Sequence[str]], np.ndarray]:
    length = min(part.tokenizer.model_max_length, part.model.config.max_position_embeddings)

    @torch.inference_mode()
    def embed(given: Sequence[str]) -> np.ndarray:
        rows = []
        for i in range(0, len(given), _BATCH):
            told = part.tokenizer(
                list(given[i : i + _BATCH]),
                padding="max_length",
                max_length=length,
                truncation=True,
                return_tensors="pt",
            )
            rows.append(embeds(part.model(told["input_ids"].to(part.model.device))).cpu())
        return _unit(torch.cat(rows).numpy())

    return embed


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length one, float32."""
    rows = np.asarray(rows, dtype=np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def diversity(embedded: np.ndarray, groups: Sequence[int]) -> np.ndarray:
    """One minus the cosine of every pair of pictures of one group (prompt); float (pairs,), empty without pairs."""
    group = np.asarray(groups)
    a, b = np.triu_indices(len(group), 1)
    same = group[a] == group[b]
    return 1.0 - np.einsum("nd,nd->n", embedded[a[same]], embedded[b[same]])
