"""The measures are the models' own embeddings, and nothing opens by half."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPModel, CLIPTokenizer, CLIPVisionConfig, ViTModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ipadapter_engine.checkpoints import CheckpointPaths
from ipadapter_engine.errors import CheckpointRefused
from ipadapter_engine.evaluation import likeness
from ipadapter_engine.pipeline import Engine
from tests.evaluation.conftest import IMAGENET, SIDE_PX, a_picture
from tests.ipadapter_engine import tiny_checkpoints as tiny

TEXTS = ["red fox", "a blue cat at sea, with many more words than fit into so short a context"]


@pytest.fixture
def pictures(tmp_path: Path) -> list[Image.Image]:
    return [Image.open(a_picture(n, tmp_path / f"{n}.png")) for n in range(3)]


def test_clip_measures_as_transformers_own_clip_does(clip: Path, pictures: list[Image.Image]) -> None:
    model, tokenizer = CLIPModel.from_pretrained(clip).eval(), CLIPTokenizer.from_pretrained(clip)
    seen = CLIPImageProcessorPil.from_pretrained(clip)(images=pictures, return_tensors="pt")
    told = tokenizer(TEXTS, padding="max_length", max_length=16, truncation=True, return_tensors="pt")
    with torch.no_grad():
        out = model(input_ids=told["input_ids"], pixel_values=seen["pixel_values"])
    measure = likeness.open_clip(clip)
    cosines = measure.pictures(pictures) @ measure.texts(TEXTS).T
    expected = (out.logits_per_image / model.logit_scale.exp()).detach().numpy()
    assert cosines == pytest.approx(expected, abs=1e-5)


def test_dino_is_the_class_token_of_pictures_prepared_as_its_folder_says(
    dino: Path, pictures: list[Image.Image]
) -> None:
    model = ViTModel.from_pretrained(dino, add_pooling_layer=False).eval()
    mean, spread = (np.array(IMAGENET[k], np.float32) for k in ("image_mean", "image_std"))
    small = [p.convert("RGB").resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC) for p in pictures]
    seen = np.stack([(np.asarray(p, np.float32) / 255 - mean) / spread for p in small]).transpose(0, 3, 1, 2)
    with torch.no_grad():
        tokens = model(torch.from_numpy(seen)).last_hidden_state[:, 0].numpy()
    tokens = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
    assert likeness.open_dino(dino).pictures(pictures) == pytest.approx(tokens, abs=1e-5)


def test_a_dino_without_its_preprocessing_is_refused_and_with_another_it_is_another_measure(
    dino: Path, tmp_path: Path
) -> None:
    other = tiny.copy_of(dino, tmp_path / "dino")
    assert likeness.open_dino(other).models[0].sha256 == likeness.open_dino(dino).models[0].sha256
    tiny.change_json(other / "preprocessor_config.json", image_mean=[0.5, 0.5, 0.5])
    assert likeness.open_dino(other).models[0].sha256 != likeness.open_dino(dino).models[0].sha256
    (other / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointRefused, match="does not say how") as refused:
        likeness.open_dino(other)
    assert "preprocessor_config.json" in refused.value.next_step


@pytest.mark.parametrize(
    ("width", "patch", "side", "kind"),
    [(1024, 14, 224, "ViT-L/14"), (1024, 14, 336, "ViT-L/14 at 336 px"), (768, 32, 224, "ViT-B/32"),
     (384, 16, 224, "ViT-S/16"), (1280, 14, 224, "ViT-H/14"), (40, 8, 32, "ViT-40 wide/8 at 32 px")],
)  # fmt: skip
def test_a_vit_is_called_by_its_configuration(width: int, patch: int, side: int, kind: str) -> None:
    config = CLIPVisionConfig(hidden_size=width, patch_size=patch, image_size=side, num_attention_heads=8)
    assert likeness.kind_of(config) == kind


def test_the_whole_clip_in_an_encoders_folder_reads_texts(clip: Path, base: Path, pictures: list[Image.Image]) -> None:
    adapter = base / "ip_adapter.safetensors"
    own = Engine.open(CheckpointPaths(base, adapter, clip))
    measure, whole = likeness.of_engine(own, clip), likeness.open_clip(clip)
    assert measure.texts(TEXTS) == pytest.approx(whole.texts(TEXTS), abs=1e-6)
    assert measure.pictures(pictures).shape[1] == measure.texts(TEXTS).shape[1]


def test_a_checkpoint_that_is_not_open_measures_the_same(tmp_path: Path, pictures: list[Image.Image]) -> None:
    sdxl = tiny.write_sdxl(tmp_path / "base")
    wide, narrow = (
        CheckpointPaths(sdxl, encoder=tiny.write_encoder(tmp_path / name, embed=embed))
        for name, embed in (("wide", tiny.WIDTH), ("narrow", tiny.EMBED))
    )
    for paths in (CheckpointPaths(), wide, narrow):
        folder = paths.resolved().encoder
        assert folder is not None
        engine = Engine.open(paths)
        alone, whole = likeness.of_checkpoint(paths), likeness.of_engine(engine, folder)
        assert alone.models[0].sha256 == engine.encoder.sha256
        assert alone.pictures(pictures) == pytest.approx(whole.pictures(pictures), abs=1e-6)
        assert alone.reads_texts == whole.reads_texts
        if whole.reads_texts:
            assert alone.texts(TEXTS) == pytest.approx(whole.texts(TEXTS), abs=1e-6)
    with pytest.raises(CheckpointRefused, match="no image encoder"):
        likeness.of_checkpoint(CheckpointPaths(sdxl))


def test_a_text_encoder_of_the_base_that_projects_as_wide_reads_texts(tmp_path: Path) -> None:
    base = tiny.write_sdxl(tmp_path / "base")
    own = Engine.open(CheckpointPaths(base, encoder=tiny.write_encoder(tmp_path / "wide", embed=tiny.WIDTH)))
    measure, part = likeness.of_engine(own, tmp_path / "wide" / "image_encoder"), own.checkpoint.text[1]
    ids = part.tokenizer(TEXTS, padding="max_length", max_length=16, truncation=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = torch.nn.functional.normalize(part.model(ids).text_embeds, dim=1).numpy()
    assert measure.texts(TEXTS) == pytest.approx(expected, abs=1e-5)
    assert [m.role for m in measure.models] == ["measure", "measure of texts"]
    narrow = Engine.open(CheckpointPaths(base, encoder=tiny.write_encoder(tmp_path / "narrow", embed=tiny.EMBED)))
    assert not likeness.of_engine(narrow, tmp_path / "narrow" / "image_encoder").reads_texts


def test_a_checkpoint_measures_texts_only_where_it_says_how(
    engine: Engine, base: Path, tmp_path: Path, pictures: list[Image.Image]
) -> None:
    without = likeness.of_engine(engine, base / "image_encoder")
    assert not without.reads_texts
    with pytest.raises(ValueError, match="no text encoder"):
        without.texts(TEXTS)
    width = int(engine.checkpoint.text[0].model.config.hidden_size)
    weight = torch.randn(engine.encoder.dim, width)
    save_file({likeness.TEXT_PROJECTION_KEY: weight}, tmp_path / likeness.TEXT_PROJECTION)
    measure = likeness.of_engine(engine, tmp_path)
    told, seen = measure.texts(TEXTS), measure.pictures(pictures)
    assert told.shape == (2, seen.shape[1])
    assert np.linalg.norm(told, axis=1) == pytest.approx([1, 1], abs=1e-5)
    part = engine.checkpoint.text[0]
    ids = part.tokenizer(TEXTS, padding="max_length", max_length=16, truncation=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        pooled = part.model(ids).pooler_output @ weight.T
    assert told == pytest.approx(torch.nn.functional.normalize(pooled, dim=1).numpy(), abs=1e-5)


def test_a_projection_of_another_size_is_refused(engine: Engine, tmp_path: Path) -> None:
    save_file({likeness.TEXT_PROJECTION_KEY: torch.zeros(3, 5)}, tmp_path / likeness.TEXT_PROJECTION)
    with pytest.raises(CheckpointRefused, match=r"projects \(3, 5\)"):
        likeness.of_engine(engine, tmp_path)


def test_a_folder_that_is_no_measure_is_refused_with_what_to_name(base: Path, tmp_path: Path) -> None:
    for opened in (likeness.open_clip, likeness.open_dino):
        with pytest.raises(CheckpointRefused) as refused:
            opened(tmp_path)
        assert "safetensors" in refused.value.next_step
    with pytest.raises(CheckpointRefused, match="no whole CLIP"):
        likeness.open_clip(base / "image_encoder")
    no_dino = tiny.copy_of(base / "image_encoder", tmp_path / "no_dino")
    (no_dino / "preprocessor_config.json").write_text("{}")
    with pytest.raises(CheckpointRefused, match="lacks [0-9]+ weights of a ViT"):
        likeness.open_dino(no_dino)


def test_diversity_is_of_pictures_of_one_prompt() -> None:
    embedded = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [0.0, 1.0]])
    assert likeness.diversity(embedded, [0, 0, 1, 1]) == pytest.approx([0.4, 0.0])
    assert likeness.diversity(embedded, [0, 1, 2, 3]).size == 0
