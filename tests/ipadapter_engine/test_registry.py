"""What is known of model files by sha256, by name, by a team's own list and by the manifest beside them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ipadapter_engine import registry
from ipadapter_engine.checkpoints import CheckpointPaths, open_checkpoint
from ipadapter_engine.errors import CheckpointRefused
from ipadapter_engine.hashing import sha256_of_file, sha256_of_weights
from ipadapter_engine.manifests import FILE, Manifest, StoredFile
from ipadapter_engine.weight_files import shapes_of, told_by
from tests.ipadapter_engine import tiny_checkpoints as tiny
from tests.ipadapter_engine.conftest import Checkpoints

SD15 = "289b45f16d043d0bf542e45831f971dcdaabe18b656f11e86d9dfba7e9ee3369"
LIGHT = "0747d08db670535bfa286452a77d93cebad5c677b46d038543f9f2de8690bb26"
Learn = Callable[[str], None]


@pytest.fixture
def learn(tmp_path: Path) -> Iterator[Learn]:
    """Writes a team's own list, which the registry knows while the test runs."""
    file = tmp_path / "models.toml"

    def written(text: str) -> None:
        file.write_text(text, encoding="utf-8")
        registry.learn(file)

    yield written
    registry.learn(None)


def entry(path: Path, **more: str) -> str:
    sha256 = sha256_of_weights(path) if path.is_dir() else sha256_of_file(path)
    told = {"name": "ours.safetensors", "kind": "adapter", "licence": "ours", "sha256": sha256} | more
    return "[[file]]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in told.items())


def manifest(folder: Path, file: Path, sha256: str) -> None:
    made = Manifest(
        "ours", "adapter", "plus", "sdxl", "vit-h", "from the manifest", "elsewhere", None, False,
        (StoredFile(file.name, sha256, file.stat().st_size),), "pat", "2026-11-27T12:00:00+00:00",
    )  # fmt: skip
    (folder / FILE).write_text(json.dumps(made.as_json()), encoding="utf-8")


# ---------------------------------------------------------------------------- the published files


def test_no_two_published_files_share_a_sha256() -> None:
    known = [f.sha256 for f in registry.registry().files if f.sha256 is not None]
    assert len(known) == len(set(known)) >= 40


def test_every_sha256_says_where_it_was_found() -> None:
    assert all(bool(f.seen_in) == (f.sha256 is not None) for f in registry.registry().files)


def test_the_docs_count_what_there_is() -> None:
    files = registry.registry().files
    known = sum(f.sha256 is not None for f in files)
    docs = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    assert f"knows {len(files)} published files, {known} of them by sha256" in docs
    assert f"names alone ({len(files) - known} of them)" in docs


def test_every_encoder_that_a_file_needs_has_a_name() -> None:
    known = registry.registry()
    assert {f.encoder for f in known.files if f.encoder} <= set(known.encoders)


def test_whatever_reads_faces_is_non_commercial() -> None:
    faces = [f for f in registry.registry().files if "FaceID" in f.variant]
    assert len(faces) == 14
    assert all(f.licence.startswith("non-commercial") for f in faces)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ip-adapter_sd15.safetensors", "ip-adapter_sd15_light.safetensors"),
        ("ip-adapter-plus_sd15.safetensors", "ip-adapter-plus-face_sd15.safetensors"),
        ("ip-adapter-plus_sdxl_vit-h.safetensors", "ip-adapter-plus-face_sdxl_vit-h.safetensors"),
        ("ip-adapter-faceid-plus_sd15.bin", "ip-adapter-faceid-plusv2_sd15.bin"),
    ],
)
def test_files_of_one_shape_are_told_apart_by_sha256(one: str, other: str) -> None:
    by_name = {f.name: f for f in registry.registry().files}
    found = [registry.registry().find(by_name[n].sha256, "renamed.bin") for n in (one, other)]
    assert [f.file.name for f in found if f] == [one, other]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].file.variant != found[1].file.variant


def test_a_name_alone_is_said_to_be_unverified(tmp_path: Path) -> None:
    file = tmp_path / "ip-adapter-plus_sdxl_vit-h.bin"
    file.write_bytes(b"x")
    assert registry.licence_of(file) == "Apache-2.0 (by its name, unverified)"
    told = registry.advice(file)
    assert told is not None
    assert "unverified" in told
    assert "CLIP ViT-H/14" in told


def test_the_name_of_a_published_file_on_other_bytes_names_both_hashes(tmp_path: Path) -> None:
    file = tmp_path / "ip-adapter_sd15.safetensors"
    file.write_bytes(b"x")
    told = registry.advice(file)
    assert registry.licence_of(file) is None
    assert told is not None
    for part in (sha256_of_file(file), SD15, "hub:h94/IP-Adapter:models/ip-adapter_sd15.safetensors"):
        assert part in told


def test_a_common_name_says_nothing() -> None:
    assert registry.registry().find(None, "model.safetensors") is None


def test_advice_by_sha256_names_base_encoder_and_how_to_get_it() -> None:
    told = registry.advice(LIGHT)
    assert told is not None
    for part in ("IP-Adapter light", "Stable Diffusion 1.5", "ViT-H/14", "onmodel models add hub:h94/IP-Adapter"):
        assert part in told
    assert registry.advice("0" * 64) is None


def test_the_registry_loads_no_torch() -> None:
    code = "import sys, ipadapter_engine.registry as r; r.registry(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------------------- a team's own, and manifests


def test_a_teams_own_entry_is_known_beside_the_published(tmp_path: Path, learn: Learn) -> None:
    file = tmp_path / "mine.safetensors"
    file.write_bytes(b"mine")
    assert registry.licence_of(file) is None
    learn(entry(file, base="sdxl", encoder="vit-bigg", licence="house licence 4"))
    assert registry.licence_of(file) == "house licence 4"
    assert "ViT-bigG/14" in str(registry.advice(file))
    assert registry.advice(LIGHT) is not None


def test_a_teams_list_that_changes_is_read_again(tmp_path: Path, learn: Learn) -> None:
    file = tmp_path / "mine.safetensors"
    file.write_bytes(b"mine")
    learn(entry(file, licence="first"))
    assert registry.licence_of(file) == "first"
    learn(entry(file, licence="the second"))
    assert registry.licence_of(file) == "the second"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[[file]]\nname = 'a'\nkind = 'adapter'\n", "a says no licence"),
        ("[[file]]\nname = 'a'\nkind = 'magic'\nlicence = 'x'\n", "'magic'"),
        ("[[file]]\nname = 'a'\nkind = 'lora'\nlicence = 'x'\nsha256 = 'ABC'\n", "64 lower-case hex digits"),
        ("[[file]]\nname = 'a'\nkind = 'lora'\nlicence = 'x'\ncolour = 'red'\n", "'colour'"),
        ("file = 3\n", "no list of known models"),
        ("[[file\n", "no list of known models"),
    ],
)
def test_a_malformed_list_is_refused_by_what_is_wrong(learn: Learn, text: str, named: str) -> None:
    learn(text)
    with pytest.raises(CheckpointRefused) as refused:
        registry.registry()
    assert named in refused.value.message
    assert "models.toml" in refused.value.message
    assert "[[file]]" in refused.value.next_step


def test_a_manifest_speaks_of_the_bytes_that_it_was_written_for(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"a")
    manifest(tmp_path, file, sha256_of_file(file))
    assert registry.licence_of(file) == "from the manifest"
    file.write_bytes(b"b")
    assert registry.licence_of(file) is None


def test_known_toml_is_what_a_team_would_write() -> None:
    held = tomllib.loads(registry.KNOWN.read_text(encoding="utf-8"))
    assert len(held["file"]) == len(registry.registry().files)


# ---------------------------------------------------------------------------- in a checkpoint that is opened


def test_lineage_tells_the_licence_of_a_known_adapter_and_encoder(
    checkpoints: Checkpoints, tmp_path: Path, learn: Learn
) -> None:
    adapter = tmp_path / "elsewhere.safetensors"
    shutil.copyfile(checkpoints.adapters["sd15", "base"], adapter)
    paths = CheckpointPaths(checkpoints.folders["sd15"], adapter, checkpoints.encoder)
    before = {m.role: m.licence for m in open_checkpoint(paths).models}
    assert before["ip-adapter"] == before["image encoder"] == "as its own, not told here"
    learn(entry(adapter, licence="A") + entry(checkpoints.encoder, kind="encoder", licence="E"))
    after = {m.role: m.licence for m in open_checkpoint(paths).models}
    assert (after["ip-adapter"], after["image encoder"]) == ("A", "E")


def test_a_base_that_tells_no_licence_has_that_of_its_known_unet(checkpoints: Checkpoints, learn: Learn) -> None:
    base = checkpoints.folders["sd15"]
    assert {m.licence for m in open_checkpoint(CheckpointPaths(base)).models} == {"as the checkpoint's own"}
    learn(entry(base / "unet", kind="base", licence="U"))
    assert {m.licence for m in open_checkpoint(CheckpointPaths(base)).models} == {"U"}


def test_another_encoder_is_refused_with_the_one_that_the_file_needs(
    checkpoints: Checkpoints, tmp_path: Path, learn: Learn
) -> None:
    paths = checkpoints.paths("sd15", "base")
    assert paths.adapter is not None
    learn(entry(paths.adapter, encoder="vit-h", base="sd15", variant="light"))
    other = tiny.write_encoder(tmp_path, embed=tiny.EMBED + 8)
    with pytest.raises(CheckpointRefused) as refused:
        open_checkpoint(CheckpointPaths(paths.base, paths.adapter, other))
    assert f"trained on pooled embeddings of {tiny.EMBED}" in refused.value.message
    assert "IP-Adapter light for Stable Diffusion 1.5" in refused.value.next_step
    assert "CLIP ViT-H/14" in refused.value.next_step


def test_another_base_is_refused_with_the_one_that_the_file_needs(checkpoints: Checkpoints, learn: Learn) -> None:
    of = checkpoints.adapters["sdxl", "base"]
    learn(entry(of, base="sdxl", encoder="vit-bigg"))
    with pytest.raises(CheckpointRefused) as refused:
        open_checkpoint(CheckpointPaths(checkpoints.folders["sd15"], of, checkpoints.encoder))
    assert "made for another base" in refused.value.message
    assert "a base of SDXL" in refused.value.next_step


# ---------------------------------------------------------------------------- what a file tells of itself

Shapes = dict[str, tuple[int, ...]]
KEYS: Shapes = {"ip_adapter.1.to_k_ip.weight": (320, 768)}
XL_KEYS: Shapes = {"ip_adapter.1.to_k_ip.weight": (640, 2048)}


@pytest.mark.parametrize(
    ("shapes", "told"),
    [
        ({"image_proj.proj.weight": (3072, 1024)} | KEYS, ("adapter", "base", "sd15", "vit-h")),
        ({"image_proj.proj.weight": (8192, 1280)} | XL_KEYS, ("adapter", "base", "sdxl", "vit-bigg")),
        ({"image_proj.latents": (1, 16, 768), "image_proj.proj_in.weight": (768, 1280)} | KEYS,
         ("adapter", "plus", "sd15", "vit-h")),
        ({"image_proj.proj.0.weight": (1280, 1280), "image_proj.proj.3.weight": (768,)} | KEYS,
         ("adapter", "full-face", "sd15", "vit-h")),
        ({"image_proj.norm.weight": (768,), "image_proj.proj.0.weight": (1024, 512)} | KEYS,
         ("adapter", "FaceID", "sd15", "arcface")),
        ({"image_proj.perceiver_resampler.proj_in.weight": (768, 1280)} | XL_KEYS,
         ("adapter", "FaceID Plus", "sdxl", "arcface+vit-h")),
        ({"model.diffusion_model.x.attn2.to_k.weight": (320, 768)}, ("base", "single file", "sd15", None)),
        ({"unet.down.to_q.lora_A.weight": (4, 320)}, ("lora", "", None, None)),
        ({"string_to_param.*": (2, 768)}, ("embedding", "", None, None)),
        ({"vision_model.x": (3,), "visual_projection.weight": (1024, 1280)}, ("encoder", "", None, None)),
        ({"something": (3, 3)}, (None, "", None, None)),
    ],
)  # fmt: skip
def test_names_and_shapes_tell_what_a_file_is(shapes: Shapes, told: tuple[str | None, ...]) -> None:
    found = told_by(shapes)
    assert (found.kind, found.variant, found.base, found.encoder) == told


def test_a_pickle_and_safetensors_of_the_same_weights_tell_the_same(checkpoints: Checkpoints, tmp_path: Path) -> None:
    state = tiny.plus_adapter_state(tiny.open_unet(checkpoints.folders["sd15"]))
    safe = shapes_of(tiny.write_safetensors(tmp_path / "a.safetensors", state))
    assert safe == shapes_of(tiny.write_bin(tmp_path / "a.bin", state))
    assert told_by(safe).variant == "plus"


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"x", lambda b: b[:6], lambda b: b"\xff" * len(b)])
def test_a_file_that_was_cut_or_grew_is_damaged(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    file = tiny.write_safetensors(tmp_path / "a.safetensors", {"part": {"a": torch.zeros(3)}})
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(CheckpointRefused, match=r"a\.safetensors is damaged"):
        shapes_of(file)


def test_a_pickle_that_runs_code_is_refused_unrun(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> tuple[object, ...]:
            return (tmp_path.joinpath("ran").mkdir, ())

    file = tmp_path / "evil.bin"
    torch.save({"a": Runs()}, file)
    with pytest.raises(CheckpointRefused, match="run code"):
        shapes_of(file)
    assert not (tmp_path / "ran").exists()
