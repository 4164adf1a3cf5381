"""What a native family does not have is refused by its name, and what does not fit together is not opened."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ipadapter_engine.checkpoints import CheckpointPaths
from ipadapter_engine.emphasis import AdapterSettings
from ipadapter_engine.engines import open_engine
from ipadapter_engine.errors import CheckpointRefused, RequestRefused
from ipadapter_engine.native.engine import NativeEngine
from ipadapter_engine.native.families import native_family
from ipadapter_engine.native.licences import licence_of
from ipadapter_engine.native.supporting import ANSWERED
from ipadapter_engine.prompts import CharacterModel, ControlPrompt, ReferencePrompt, SourcePicture
from ipadapter_engine.requests import GenerationRequest
from tests.ipadapter_engine import tiny_checkpoints as tiny
from tests.ipadapter_engine import tiny_native
from tests.ipadapter_engine.conftest import picture
from tests.ipadapter_engine.native_engines import NativeEngines

PIXELS = np.asarray(picture(1, 96))
MASK = np.full((96, 96), 255, np.uint8)
MODEL = CharacterModel(Path("pip.safetensors"), "a" * 64)


def shown(**changes: Any) -> ReferencePrompt:
    return ReferencePrompt(**{"embedding": None, "picture": PIXELS, **changes})


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("ControlNets", {"controls": (ControlPrompt(PIXELS, "pose"),)}),
    ("model of a character", {"character": MODEL}),
    ("LoRAs", {"loras": (MODEL,)}),
    ("regions", {"regions": {"left": MASK}}),
    ("regions", {"references": (shown(region="left"),), "regions": {"left": MASK}}),
    ("negative references", {"references": (shown(), shown(negative=True))}),
    ("settings of an adapter", {"settings": {"identity": AdapterSettings(blocks="style")}}),
    ("picture to start from", {"source": SourcePicture(PIXELS)}),
    ("window of its references", {"window": (0.0, 0.5)}),
    ("window of its guidance", {"guidance_window": (0.0, 0.5)}),
    ("adapter beside the identity one", {"scales": {"style": 0.5}}),
    ("adapter beside the identity one", {"references": (shown(adapter="style"),)}),
    ("scheduler 'ddim'", {"scheduler": "ddim"}),
    ("negative prompt", {"negative_prompt": "rain"}),
    ("scale of its references", {"scale": 0.5}),
    ("weights of its references", {"references": (shown(), shown(weight=2.0))}),
    ("FaceID", {"references": (shown(face=np.zeros(512, np.float32)),)}),
]


@pytest.mark.parametrize(("what", "changes"), REFUSED, ids=[w for w, _ in REFUSED])
@pytest.mark.parametrize("name", ["kontext", "flux2"])
def test_a_family_says_by_name_what_it_has_not(
    native: NativeEngines, name: str, what: str, changes: dict[str, Any]
) -> None:
    engine = native(name)
    with pytest.raises(RequestRefused) as refused:
        engine.batch_key(GenerationRequest("a fox", 1, **{"references": (shown(),), **changes}))
    assert refused.value.message.startswith(f"{engine.family.title} has no ")
    assert what in refused.value.message
    assert refused.value.next_step


def test_every_field_of_a_request_is_decided_on() -> None:
    """A new one is to be supported or refused here before it can be asked of these families."""
    assert {f.name for f in fields(GenerationRequest)} <= ANSWERED


@pytest.mark.parametrize(
    ("name", "references", "message"),
    [
        ("kontext", (shown(), shown()), "FLUX.1 Kontext takes 1 reference at once"),
        ("qwen-edit", (), "Qwen-Image-Edit changes pictures and is shown none"),
        ("qwen-edit-plus", (shown(),) * 4, "Qwen-Image-Edit Plus takes 3 references at once"),
        ("flux", (shown(),), "FLUX.1 hears references through an IP-Adapter, and none is loaded"),
        ("sd3", (shown(),), "Stable Diffusion 3 hears references through an IP-Adapter, and none is loaded"),
        ("sd3-adapter", (shown(), shown()), "Stable Diffusion 3 takes 1 reference at once"),
        ("flux2", (ReferencePrompt(np.zeros(24, np.float32)),), "reads references as pictures"),
        ("flux2", (shown(picture=PIXELS[:32]),), "a reference of 96 × 32 px is too small or too long"),
        ("flux2", (shown(picture=np.zeros((64, 800, 3), np.uint8)),), "a reference of 800 × 64 px is too small or too"),
        ("flux-adapter", (ReferencePrompt(np.zeros(5, np.float32)),), "has shape (5,), the adapter reads (24,)"),
    ],
)
def test_references_that_a_family_cannot_take_are_refused(
    native: NativeEngines, name: str, references: tuple[ReferencePrompt, ...], message: str
) -> None:
    with pytest.raises(RequestRefused) as refused:
        native(name).batch_key(GenerationRequest("a fox", 1, references))
    assert message in refused.value.message


def test_what_has_no_part_is_not_refused(native: NativeEngines) -> None:
    """At strength 0, in an empty window, at weight 0 and at scale 0 nothing is heard, as of every family."""
    silent = GenerationRequest(
        "a fox", 1, (shown(), shown(weight=0)), controls=(ControlPrompt(PIXELS, "pose", 0.0),),
        character=CharacterModel(MODEL.file, MODEL.sha256, 0.0), width_px=64, height_px=64,
    )  # fmt: skip
    assert native("kontext").batch_key(silent).width_px == 64


@pytest.mark.parametrize("name", ["flux-schnell", "flux2-klein-distilled"])
def test_a_distilled_model_takes_no_guidance(native: NativeEngines, name: str) -> None:
    engine = native(name)
    assert engine.batch_key(GenerationRequest("a fox", 1, guidance=1.0)).steps == 4
    with pytest.raises(RequestRefused, match="has no guidance"):
        engine.batch_key(GenerationRequest("a fox", 1, guidance=3.0))


def test_a_character_model_is_refused_by_name(native: NativeEngines) -> None:
    with pytest.raises(RequestRefused, match="FLUX.2 has no model of a character"):
        native("flux2").load_character(MODEL)


def test_without_an_encoder_libraries_cannot_be_read(native: NativeEngines) -> None:
    with pytest.raises(RequestRefused, match="without a CLIP image encoder"):
        _ = native("flux2").encoder


# ---------------------------------------------------------------------------- opening


def index_of(folder: Path, **changes: Any) -> None:
    tiny.change_json(folder / "model_index.json", **changes)


DAMAGE: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "no scheduler": ("flux", lambda f: shutil.rmtree(f / "scheduler"), "there is no folder"),
    "no weights": ("flux", lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").unlink(), "does not open"),
    "no tokenizer": ("flux2", lambda f: shutil.rmtree(f / "tokenizer"), "there is no folder"),
    "another text encoder": (
        "flux", lambda f: index_of(f, text_encoder_2=["transformers", "UMT5EncoderModel"]),
        "is a UMT5EncoderModel, FLUX.1 needs a T5EncoderModel"),
    "a left out text encoder": (
        "sd3", lambda f: index_of(f, text_encoder_3=[None, None]), "is missing, Stable Diffusion 3 needs a T5"),
    "another scheduler": (
        "flux", lambda f: index_of(f, scheduler=["diffusers", "DDIMScheduler"]), "is a DDIMScheduler, FLUX.1 needs"),
    "an unknown pipeline": (
        "flux", lambda f: index_of(f, _class_name="FluxFillPipeline"), "is a FluxFillPipeline, which is not supported"),
    "no processor": (
        "qwen-edit", lambda f: (f / "processor" / "preprocessor_config.json").unlink(), "does not open"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_folder_that_does_not_fit_is_not_opened(native: NativeEngines, tmp_path: Path, damage: str) -> None:
    name, change, message = DAMAGE[damage]
    folder = tiny.copy_of(native.folder(name), tmp_path / name)
    change(folder)
    with pytest.raises(CheckpointRefused) as refused:
        open_engine(CheckpointPaths(folder))
    assert message in refused.value.message
    assert refused.value.next_step


def test_parts_of_two_folders_do_not_open_together(native: NativeEngines, tmp_path: Path) -> None:
    folder = tiny.copy_of(native.folder("flux"), tmp_path / "mixed")
    shutil.rmtree(folder / "text_encoder_2")
    shutil.copytree(native.folder("sd3") / "text_encoder_3", folder / "text_encoder_2")
    with pytest.raises(CheckpointRefused, match="attends to text of width 32, its text encoder gives 64"):
        open_engine(CheckpointPaths(folder))


def test_weights_that_a_file_lacks_are_not_made_up(native: NativeEngines, tmp_path: Path) -> None:
    folder = tiny.copy_of(native.folder("flux"), tmp_path / "deeper")
    tiny.change_json(folder / "transformer" / "config.json", num_layers=3)
    with pytest.raises(CheckpointRefused, match="lacks .* weights of a FluxTransformer2DModel"):
        open_engine(CheckpointPaths(folder))


def test_an_adapter_of_another_base_is_refused(native: NativeEngines, tmp_path: Path) -> None:
    paths = native.paths("flux-adapter")
    file = tiny_native.write_flux_adapter(tmp_path / "wide.safetensors", width=48)
    with pytest.raises(CheckpointRefused, match="wide.safetensors is no IP-Adapter for this FLUX.1"):
        NativeEngine.open(CheckpointPaths(paths.base, file, paths.encoder))


def test_an_adapter_and_an_encoder_that_do_not_fit_are_refused(native: NativeEngines, tmp_path: Path) -> None:
    paths = native.paths("flux-adapter")
    with pytest.raises(CheckpointRefused, match="reads embeddings of 24 numbers, the encoder image_encoder gives 30"):
        NativeEngine.open(CheckpointPaths(paths.base, paths.adapter, tiny.write_encoder(tmp_path, embed=30)))


def test_sd3_reads_a_siglip(native: NativeEngines, tmp_path: Path) -> None:
    paths = native.paths("sd3-adapter")
    with pytest.raises(CheckpointRefused, match="adapters read a SigLIP"):
        NativeEngine.open(CheckpointPaths(paths.base, paths.adapter, tiny.write_encoder(tmp_path)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"adapter": "flux"}, "FLUX.2 reads references itself"),
        ({"controls": {"pose": Path("pose")}}, "no ControlNets, no further adapters, no taught words"),
    ],
)
def test_nothing_is_loaded_that_a_family_would_not_use(
    native: NativeEngines, given: dict[str, Any], message: str
) -> None:
    paths = native.paths("flux-adapter")
    if "adapter" in given:
        given = {"adapter": paths.adapter, "encoder": paths.encoder}
    with pytest.raises(CheckpointRefused, match=message):
        open_engine(CheckpointPaths(native.folder("flux2"), **given))


# ---------------------------------------------------------------------------- licences


@pytest.mark.parametrize(
    ("name", "readme", "own", "licence"),
    [
        ("flux", None, None, "non-commercial, as FLUX.1 [dev] is, unless its folder tells otherwise"),
        ("kontext", None, None, "non-commercial, as FLUX.1 Kontext [dev] is, unless its folder tells otherwise"),
        ("flux2", None, None, "non-commercial, as FLUX.2 [dev] is, unless its folder tells otherwise"),
        ("flux-schnell", None, None, "as its own, not told here"),
        ("flux-schnell", "---\nlicense: apache-2.0\n---\nlicense: mine\n", None, "apache-2.0"),
        ("flux", "---\nlicense: other\nlicense_name: flux-1-dev-non-commercial-license\n---\n", None,
         "flux-1-dev-non-commercial-license"),
        ("flux", "a folder\n---\nlicense: apache-2.0\n---\n", None,
         "non-commercial, as FLUX.1 [dev] is, unless its folder tells otherwise"),
        ("flux", "---\nlicense: apache-2.0\n---\n", "bought", "bought"),
    ],
)  # fmt: skip
def test_the_licence_is_what_the_folder_tells(
    native: NativeEngines, tmp_path: Path, name: str, readme: str | None, own: str | None, licence: str
) -> None:
    folder = tiny.copy_of(native.folder(name), tmp_path / name)
    if readme is not None:
        (folder / "README.md").write_text(readme)
    if own is not None:
        index_of(folder, _onmodel_licence=own)
    index = json.loads((folder / "model_index.json").read_text())
    config = json.loads((folder / "transformer" / "config.json").read_text())
    assert licence_of(folder, index, native_family(index, config)) == licence
