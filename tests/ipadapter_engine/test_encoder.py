"""The image encoder is known by its weights and its preprocessing together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ipadapter_engine.encoder import ImageEncoder
from ipadapter_engine.errors import CheckpointRefused
from tests.ipadapter_engine import tiny_checkpoints as tiny
from tests.ipadapter_engine.conftest import Checkpoints
from tests.ipadapter_engine.conftest import picture as drawn


def opened(folder: Path) -> ImageEncoder:
    return ImageEncoder.open(folder, name="tiny", processor_folder=folder.parent / "feature_extractor")


@pytest.fixture(scope="module")
def encoder(checkpoints: Checkpoints) -> ImageEncoder:
    return opened(checkpoints.encoder)


@pytest.fixture
def other(checkpoints: Checkpoints, tmp_path: Path) -> Path:
    """A copy of the encoder that a test may change."""
    return tiny.copy_of(checkpoints.encoder.parent, tmp_path / "clip") / "image_encoder"


def test_the_same_files_have_the_same_identity(encoder: ImageEncoder, other: Path) -> None:
    assert opened(other).sha256 == encoder.sha256


@pytest.mark.parametrize(
    "change",
    [
        {"image_mean": [0.5, 0.5, 0.5]},
        {"image_std": [0.5, 0.5, 0.5]},
        {"do_center_crop": False},
        {"resample": 2},
        {"size": {"shortest_edge": 48}},
        {"rescale_factor": 0.01},
    ],
)
def test_other_preprocessing_is_another_identity(encoder: ImageEncoder, other: Path, change: dict[str, object]) -> None:
    tiny.change_json(other.parent / "feature_extractor" / "preprocessor_config.json", **change)
    changed = opened(other)
    assert changed.weights_sha256 == encoder.weights_sha256
    assert changed.sha256 != encoder.sha256


def test_other_weights_are_another_identity(encoder: ImageEncoder, tmp_path: Path) -> None:
    assert opened(tiny.write_encoder(tmp_path, embed=tiny.EMBED + 8)).sha256 != encoder.sha256


def test_settings_that_change_no_pixel_leave_the_identity(encoder: ImageEncoder, other: Path) -> None:
    tiny.change_json(other.parent / "feature_extractor" / "preprocessor_config.json", _comment="saved anew")
    assert opened(other).sha256 == encoder.sha256


def test_preprocessing_beside_the_weights_is_found(encoder: ImageEncoder, other: Path) -> None:
    settings = other.parent / "feature_extractor" / "preprocessor_config.json"
    tiny.change_json(settings, image_mean=[0.1, 0.2, 0.3])
    changed = opened(other).sha256
    settings.rename(other / "preprocessor_config.json")
    assert opened(other).sha256 == changed != encoder.sha256


def test_without_a_file_preprocessing_is_clips_own(encoder: ImageEncoder, other: Path) -> None:
    (other.parent / "feature_extractor" / "preprocessor_config.json").unlink()
    assert opened(other).sha256 == encoder.sha256


def test_a_picture_is_embedded_the_same_alone_and_in_a_batch(
    encoder: ImageEncoder, pictures: list[Image.Image]
) -> None:
    together = encoder.encode(pictures, hidden=True)
    for encoded, picture in zip(together, pictures, strict=True):
        (alone,) = encoder.encode([picture], hidden=True)
        assert np.abs(encoded.pooled - alone.pooled).max() <= 1e-5
        assert alone.hidden is not None
        assert encoded.hidden is not None
        assert np.abs(encoded.hidden - alone.hidden).max() <= 1e-5


def test_embeddings_have_the_shapes_that_they_say(encoder: ImageEncoder, pictures: list[Image.Image]) -> None:
    (encoded,) = encoder.encode(pictures[:1], hidden=True)
    assert encoded.pooled.shape == (encoder.dim,) == (tiny.EMBED,)
    assert encoded.hidden is not None
    assert encoded.hidden.shape == (tiny.PATCHES + 1, encoder.hidden_dim) == encoder.zero_hidden().shape


def test_hidden_states_are_given_only_when_asked_for(encoder: ImageEncoder, pictures: list[Image.Image]) -> None:
    assert encoder.encode(pictures[:1])[0].hidden is None


def test_no_pictures_have_no_embeddings(encoder: ImageEncoder) -> None:
    assert encoder.encode([]) == []


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
@pytest.mark.parametrize("size", [(8, 64), (64, 8), (1, 1)])
def test_pictures_of_any_mode_and_size_are_embedded(encoder: ImageEncoder, mode: str, size: tuple[int, int]) -> None:
    (encoded,) = encoder.encode([Image.new("RGB", size, "red").convert(mode)])
    assert np.isfinite(encoded.pooled).all()


def test_a_folder_without_an_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointRefused, match="holds no image encoder"):
        opened(tmp_path)


def test_an_encoder_without_its_projection_is_refused(other: Path) -> None:
    """transformers would fill the projection with random numbers: every embedding would be noise."""
    from safetensors.torch import load_file, save_file

    file = other / "model.safetensors"
    state = load_file(file)
    del state["visual_projection.weight"]
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointRefused, match=r"visual_projection\.weight"):
        opened(other)


def test_a_truncated_encoder_is_refused(other: Path) -> None:
    file = other / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointRefused, match="does not open"):
        opened(other)


def test_damaged_preprocessing_is_refused(other: Path) -> None:
    (other.parent / "feature_extractor" / "preprocessor_config.json").write_text("{")
    with pytest.raises(CheckpointRefused, match=r"preprocessor_config\.json"):
        opened(other)


@pytest.mark.parametrize("count", [0, 1, 4, 5, 23])
def test_pictures_that_are_read_ahead_are_embedded_in_their_order(encoder: ImageEncoder, count: int) -> None:
    def opened(seed: int) -> Image.Image:
        return drawn(seed)

    batches = list(encoder.encode_ahead(range(count), opened, batch=4, readers=3, hidden=True))
    assert [len(b) for b in batches] == [4] * (count // 4) + [count % 4] * (count % 4 > 0)
    for seed, encoded in (row for batch in batches for row in batch):
        (alone,) = encoder.encode([drawn(seed)], hidden=True)
        assert np.abs(encoded.pooled - alone.pooled).max() <= 1e-5
        assert encoded.hidden is not None
    assert [name for batch in batches for name, _ in batch] == list(range(count))


def test_no_more_than_three_batches_are_read_before_the_first_is_used(encoder: ImageEncoder) -> None:
    read: list[int] = []

    def opened(seed: int) -> Image.Image:
        read.append(seed)
        return drawn(seed)

    batches = encoder.encode_ahead(range(100), opened, batch=4, readers=3)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert len(read) <= 12


def test_a_picture_that_does_not_open_stops_at_its_batch(encoder: ImageEncoder) -> None:
    def opened(seed: int) -> Image.Image:
        if seed == 6:
            raise OSError("cut short")
        return drawn(seed)

    batches = encoder.encode_ahead(range(12), opened, batch=4, readers=3)
    assert len(next(batches)) == 4
    with pytest.raises(OSError, match="cut short"):
        next(batches)
