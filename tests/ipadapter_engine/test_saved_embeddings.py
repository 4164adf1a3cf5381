"""Embeddings are saved with their encoder, those of other tools are read with the right half, long pictures in tiles."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.numpy import save_file
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ipadapter_engine.encoder import EncodedPicture, ImageEncoder, tiles
from ipadapter_engine.errors import CheckpointRefused
from ipadapter_engine.faces import Face, FaceFinder
from ipadapter_engine.foreign_embeddings import read_ipadpt
from ipadapter_engine.projections import Reads
from tests.ipadapter_engine import tiny_checkpoints as tiny
from tests.ipadapter_engine.conftest import Checkpoints

POOLED, HIDDEN = Reads("pooled", tiny.EMBED), Reads("hidden", tiny.HIDDEN)


def opened(folder: Path) -> ImageEncoder:
    return ImageEncoder.open(folder, name="tiny", processor_folder=folder.parent / "feature_extractor")


@pytest.fixture(scope="module")
def encoder(checkpoints: Checkpoints) -> ImageEncoder:
    return opened(checkpoints.encoder)


# ---------------------------------------------------------------------- our own


@pytest.mark.parametrize("hidden", [True, False])
def test_what_is_saved_is_loaded_bit_for_bit(
    encoder: ImageEncoder, pictures: list[Image.Image], tmp_path: Path, hidden: bool
) -> None:
    (encoded,) = encoder.encode(pictures[:1], hidden=hidden)
    encoded.save(tmp_path / "a.safetensors", encoder)
    again = EncodedPicture.load(tmp_path / "a.safetensors", encoder)
    assert np.array_equal(again.pooled, encoded.pooled)
    assert (again.hidden is None) != hidden
    if encoded.hidden is not None:
        assert again.hidden is not None
        assert np.array_equal(again.hidden, encoded.hidden)


def test_an_embedding_of_another_encoder_or_preprocessing_is_refused(
    checkpoints: Checkpoints, encoder: ImageEncoder, pictures: list[Image.Image], tmp_path: Path
) -> None:
    file = tmp_path / "a.safetensors"
    encoder.encode(pictures[:1])[0].save(file, encoder)
    other = tiny.copy_of(checkpoints.encoder.parent, tmp_path / "clip")
    tiny.change_json(other / "feature_extractor" / "preprocessor_config.json", do_center_crop=False)
    for different in (opened(other / "image_encoder"), opened(tiny.write_encoder(tmp_path / "new", embed=32))):
        with pytest.raises(CheckpointRefused, match=encoder.sha256[:12]) as refusal:
            EncodedPicture.load(file, different)
        assert different.sha256[:12] in refusal.value.message


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, None])
def test_what_is_no_saved_embedding_is_refused(encoder: ImageEncoder, tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "a.safetensors"
    if content is None:
        save_file({"pooled": np.zeros(3, dtype=np.float32)}, file)
    else:
        file.write_bytes(content)
    with pytest.raises(CheckpointRefused, match=r"a\.safetensors"):
        EncodedPicture.load(file, encoder)
    with pytest.raises(CheckpointRefused, match="does not open"):
        EncodedPicture.load(tmp_path / "none.safetensors", encoder)


# ---------------------------------------------------------------------- of other tools


@pytest.mark.parametrize("variant", ["base", "plus"])
@pytest.mark.parametrize("guided", [True, False])
def test_what_diffusers_saves_is_read_with_its_halves_told_apart(
    checkpoints: Checkpoints,
    encoder: ImageEncoder,
    pictures: list[Image.Image],
    tmp_path: Path,
    variant: str,
    guided: bool,
) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(checkpoints.folders["sd15"], local_files_only=True)
    clip, file = checkpoints.encoder.parent, checkpoints.adapters["sd15", variant]
    pipe.register_modules(feature_extractor=CLIPImageProcessorPil.from_pretrained(clip / "feature_extractor"))
    pipe.load_ip_adapter(
        str(file.parent), subfolder="", weight_name=file.name, image_encoder_folder=str(checkpoints.encoder)
    )
    with torch.inference_mode():
        saved = pipe.prepare_ip_adapter_image_embeds([pictures[:2]], None, "cpu", 1, guided)
    torch.save(saved, tmp_path / "a.ipadpt")
    (read,) = read_ipadpt(tmp_path / "a.ipadpt", [POOLED if variant == "base" else HIDDEN])
    expected = encoder.encode(pictures[:2], hidden=True)
    assert len(read.shown) == 2
    assert len(read.negative) == (2 if guided else 0)
    for shown, own in zip(read.shown, expected, strict=True):
        wanted = own.pooled if variant == "base" else own.hidden
        assert wanted is not None
        assert np.abs(shown - wanted).max() <= 1e-5
    for nothing in read.negative:
        zero = np.zeros(tiny.EMBED) if variant == "base" else encoder.zero_hidden()
        assert np.abs(nothing - zero).max() <= 1e-5


@pytest.mark.parametrize("reads", [POOLED, HIDDEN, Reads("face", 0, 512)])
def test_what_comfyui_saves_is_read_with_the_picture_first(tmp_path: Path, reads: Reads) -> None:
    shape = (tiny.PATCHES + 1, tiny.HIDDEN) if reads is HIDDEN else (reads.embed or reads.face,)
    shown, negative = torch.rand(3, *shape), torch.zeros(3, *shape)
    for content, nothing in ((shown, 0), (torch.stack([shown, negative]), 3)):
        torch.save(content, tmp_path / "a.ipadpt")
        (read,) = read_ipadpt(tmp_path / "a.ipadpt", [reads])
        assert np.array_equal(np.stack(read.shown), shown.numpy())
        assert len(read.negative) == nothing
        assert all(not n.any() for n in read.negative)


def test_a_file_for_several_adapters_has_one_answer_each(tmp_path: Path) -> None:
    torch.save([torch.rand(2, 1, tiny.EMBED), torch.rand(2, 3, 5, tiny.HIDDEN)], tmp_path / "a.ipadpt")
    assert [len(e.shown) for e in read_ipadpt(tmp_path / "a.ipadpt", [POOLED, HIDDEN])] == [1, 3]
    with pytest.raises(CheckpointRefused, match="for 2 adapters"):
        read_ipadpt(tmp_path / "a.ipadpt", [POOLED])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (torch.rand(2, 1, tiny.EMBED + 1), str(tiny.EMBED + 1)),
        (torch.rand(3, 1, tiny.EMBED), "shape"),
        ([torch.rand(2, tiny.EMBED)], "shape"),
        ({"pooled": torch.rand(3)}, "no embeddings"),
        ([], "no embeddings"),
        (torch.tensor(1.0), "0 numbers"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(tmp_path: Path, content: Any, told: str) -> None:
    torch.save(content, tmp_path / "a.ipadpt")
    with pytest.raises(CheckpointRefused, match=told):
        read_ipadpt(tmp_path / "a.ipadpt", [POOLED])


class Hostile:
    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


def test_a_saved_embedding_that_runs_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    torch.save([Hostile(tmp_path / "mark")], tmp_path / "a.ipadpt")
    with pytest.raises(CheckpointRefused, match="no plain file"):
        read_ipadpt(tmp_path / "a.ipadpt", [POOLED])
    assert not (tmp_path / "mark").exists()


# ---------------------------------------------------------------------- tiles


@pytest.mark.parametrize(
    ("size", "count"),
    [((40, 40), 1), ((44, 40), 1), ((60, 40), 2), ((40, 80), 2), ((101, 40), 3), ((40, 160), 4), ((400, 40), 4)],
)
def test_tiles_are_squares_that_lose_nothing(size: tuple[int, int], count: int) -> None:
    """Every column, or row, of the picture has a colour of its own; all of them are seen in some tile."""
    width, height = size
    along = np.arange(max(size), dtype=np.int64)
    line = np.stack([along % 256, along // 256, np.zeros_like(along)], axis=-1).astype(np.uint8)
    grid = np.broadcast_to(line[None], (height, width, 3)) if width >= height else line[:, None].repeat(width, axis=1)
    found = tiles(Image.fromarray(np.ascontiguousarray(grid)))
    assert len(found) == count
    if count > 1:
        assert {t.width == t.height for t in found} == {True}
        seen = {tuple(c) for t in found for c in np.asarray(t).reshape(-1, 3).tolist()}
        assert {tuple(c) for c in line.tolist()} <= seen


def test_a_tile_says_what_the_encoder_says_of_that_square(encoder: ImageEncoder) -> None:
    left, right = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 32), "blue")
    both = Image.new("RGB", (64, 32))
    both.paste(left, (0, 0))
    both.paste(right, (32, 0))
    for tile, alone in zip(encoder.encode_tiled(both), encoder.encode([left, right]), strict=True):
        assert np.abs(tile.pooled - alone.pooled).max() <= 1e-5


# ---------------------------------------------------------------------- faces


@pytest.mark.skipif(importlib.util.find_spec("insightface") is not None, reason="insightface is installed")
def test_without_insightface_its_extra_and_its_licence_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointRefused, match="insightface is not installed") as refusal:
        FaceFinder.open(tmp_path)
    assert "onmodel[face]" in refusal.value.next_step
    assert "non-commercial" in refusal.value.next_step


def test_a_face_has_a_direction_of_length_one() -> None:
    face = Face(np.full(512, 2.0, dtype=np.float32), np.zeros((224, 224, 3), np.uint8), (1.0, 2.0, 4.0, 6.0), 0.9)
    assert np.linalg.norm(face.unit) == pytest.approx(1)
    assert face.area == 12
