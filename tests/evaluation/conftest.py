"""Tiny checkpoints to evaluate on, and folders in the layouts that users and datasets have."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, ViTConfig, ViTModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from ipadapter_engine.checkpoints import CheckpointPaths
from ipadapter_engine.pipeline import Engine
from tests.ipadapter_engine import tiny_checkpoints as tiny

SIDE_PX = 32
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base folder with an encoder, an identity and a plus adapter of its own."""
    folder = tiny.write_sd15(tmp_path_factory.mktemp("evaluation") / "base")
    tiny.write_encoder(folder)
    unet = tiny.open_unet(folder)
    tiny.write_safetensors(folder / "ip_adapter.safetensors", tiny.base_adapter_state(unet))
    tiny.write_safetensors(folder / "ip_adapter_plus.safetensors", tiny.plus_adapter_state(unet))
    tiny.change_json(folder / "unet" / "config.json", sample_size=8)
    return folder


@pytest.fixture(scope="session")
def engine(base: Path) -> Engine:
    torch.set_num_threads(1)
    return Engine.open(CheckpointPaths(base, adapters={"plus": base / "ip_adapter_plus.safetensors"}))


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """A whole CLIP with its tokenizer and preprocessing, as transformers saves it."""
    folder = tmp_path_factory.mktemp("clip") / "tiny-clip"
    text = CLIPTextConfig(
        vocab_size=600, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=16, projection_dim=24, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=40, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=SIDE_PX,
        patch_size=8, projection_dim=24,
    )  # fmt: skip
    torch.manual_seed(4)
    CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=24)
    ).save_pretrained(folder)
    size = {"height": SIDE_PX, "width": SIDE_PX}
    CLIPImageProcessorPil(size={"shortest_edge": SIDE_PX}, crop_size=size).save_pretrained(folder)
    for file in (base / "tokenizer").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture(scope="session")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT without a pooling layer, with DINO's preprocessing beside it, as DINO's are saved."""
    folder = tmp_path_factory.mktemp("dino") / "tiny-dino"
    config = ViTConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=SIDE_PX,
        patch_size=8,
    )
    torch.manual_seed(5)
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    size = {"height": SIDE_PX, "width": SIDE_PX}
    ViTImageProcessorPil(size=size, resample=Image.Resampling.BICUBIC, **IMAGENET).save_pretrained(folder)
    return folder


def a_picture(seed: int, file: Path) -> Path:
    """Coarse random colours of an odd size, so that cropping and resizing matter."""
    colours = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(colours).resize((48, 60), Image.Resampling.NEAREST).save(file)
    return file


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Three pictures and seven captions in COCO's own format, out of order as COCO's are."""
    root = tmp_path / "coco"
    ids = (139, 285, 632)
    for i in ids:
        a_picture(i, root / "val2017" / f"{i:012d}.jpg")
    captions = [
        (9, 285, "a second one of the fox"), (3, 285, "red fox\n on the grass "), (4, 139, "blue cat"), (8, 632, "red"),
        (5, 632, "a blue fox"), (7, 139, "cat"), (6, 999, "of a picture that is not listed"),
    ]  # fmt: skip
    told = {
        "info": {"year": 2017},
        "images": [{"id": i, "file_name": f"{i:012d}.jpg", "height": 60, "width": 48} for i in reversed(ids)],
        "annotations": [{"id": a, "image_id": i, "caption": c} for a, i, c in captions],
    }
    (root / "annotations").mkdir()
    (root / "annotations" / "captions_val2017.json").write_text(json.dumps(told))
    return root


PROMPTS = """\
Classes

subject_name,class
backpack,backpack
cat2,cat

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a red {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} wearing a red hat'.format(unique_token, class_token),
'a wet {0} {1}'.format(unique_token, class_token),
'a {0} {1} in the snow'.format(unique_token, class_token)
]
"""


@pytest.fixture
def dreambench(tmp_path: Path) -> Path:
    """Two subjects with 3 and 2 pictures, laid out as the authors' repository is."""
    root = tmp_path / "dreambooth" / "dataset"
    for n in range(3):
        a_picture(n, root / "backpack" / f"0{n}.jpg")
    for n in range(2):
        a_picture(10 + n, root / "cat2" / f"0{n}.jpg")
    (root / "prompts_and_classes.txt").write_text(PROMPTS)
    return root.parent
