"""The store of models: added whole or not at all, from a path, S3 and a hub; verified, removed, named by settings."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from asset_store.errors import PlaceInvalid, SourceUnreachable
from flows.configured import configured, described, model_store, settings_naming
from flows.model_facts import Said, recognised
from flows.model_files import ModelRefused
from flows.models import ModelStore
from flows.settings import EngineSettings, S3Settings, Settings
from ipadapter_engine import registry
from ipadapter_engine.checkpoints import CheckpointPaths, open_checkpoint
from ipadapter_engine.errors import CheckpointRefused
from ipadapter_engine.hashing import sha256_of_file
from tests.hub_server import COMMIT, Hub, serving
from tests.ipadapter_engine import tiny_checkpoints as tiny
from tests.s3_server import REGION, S3Server
from tests.studio_home import ROOT

NO_S3 = S3Settings(endpoint_url=None)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an encoder and adapters, as they lie about before anybody adds them."""
    root = tmp_path_factory.mktemp("made")
    base = tiny.write_sd15(root / "sd15")
    unet = tiny.open_unet(base)
    tiny.write_encoder(root / "clip")  # with how its pictures are prepared beside it
    tiny.write_safetensors(root / "base.safetensors", tiny.base_adapter_state(unet))
    tiny.write_safetensors(root / "plus.safetensors", tiny.plus_adapter_state(unet))
    tiny.write_bin(root / "plus.bin", tiny.plus_adapter_state(unet))
    return root


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "home"
    registry.learn(None)


@pytest.fixture
def store(home: Path) -> ModelStore:
    return model_store(Settings(home=home))


def add(store: ModelStore, source: Path | str, **more: Any) -> Any:
    return store.add(str(source), "pat", more.pop("s3", NO_S3), **more)


def leftovers(store: ModelStore) -> list[Path]:
    """Files that lie about beside those of models."""
    return [p for p in (store.root / ".adding").rglob("files/*") if p.is_file()]


# ---------------------------------------------------------------------------- adding from a path


def test_an_added_model_says_what_it_is_and_where_it_came_from(store: ModelStore, made: Path) -> None:
    added = add(store, made / "base.safetensors", name="ours", said=Said(licence="house", base="sd15"))
    model = store.get("ours")
    assert added.new
    assert added.model == model
    assert (model.kind, model.variant, model.base, model.licence) == ("adapter", "base", "sd15", "house")
    assert (model.source, model.added_by) == (str(made / "base.safetensors"), "pat")
    assert model.files[0].sha256 == sha256_of_file(made / "base.safetensors")
    assert store.place_of("ours").read_bytes() == (made / "base.safetensors").read_bytes()
    assert store.verify() == []


def test_a_base_and_an_encoder_are_folders(store: ModelStore, made: Path) -> None:
    assert add(store, made / "sd15").model.kind == "base"
    assert add(store, made / "clip" / "image_encoder").model.kind == "encoder"
    paths = CheckpointPaths(store.place_of("sd15"), made / "base.safetensors", store.place_of("image_encoder"))
    lying = CheckpointPaths(made / "sd15", made / "base.safetensors", made / "clip" / "image_encoder")
    added, before = open_checkpoint(paths).encoder, open_checkpoint(lying).encoder
    assert added is not None
    assert before is not None
    assert added.sha256 == before.sha256  # weights and preprocessing


def test_added_again_nothing_changes(store: ModelStore, made: Path) -> None:
    first = add(store, made / "clip" / "image_encoder").model
    again = add(store, made / "clip" / "image_encoder")
    assert (again.new, again.model) == (False, first)
    assert len(list((store.root / ".data").iterdir())) == 1
    assert leftovers(store) == []


def test_another_model_of_the_name_needs_replace(store: ModelStore, made: Path) -> None:
    first = add(store, made / "base.safetensors", name="ours").model
    with pytest.raises(ModelRefused, match="another model ours already") as refused:
        add(store, made / "plus.safetensors", name="ours")
    assert "--replace" in refused.value.next_step
    assert store.get("ours") == first
    assert add(store, made / "plus.safetensors", name="ours", replacing=True).model.variant == "plus"
    assert store.place_of("ours").name == "plus.safetensors"
    assert len(list((store.root / ".data").iterdir())) == 1


def test_a_source_that_changed_is_another_model(store: ModelStore, made: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.safetensors"
    shutil.copyfile(made / "base.safetensors", file)
    add(store, file)
    shutil.copyfile(made / "plus.safetensors", file)
    with pytest.raises(ModelRefused, match="another model mine already"):
        add(store, file)
    assert leftovers(store) == []


def test_another_sha256_is_refused_with_both(store: ModelStore, made: Path) -> None:
    expected, found = "a" * 64, sha256_of_file(made / "base.safetensors")
    with pytest.raises(ModelRefused) as refused:
        add(store, made / "base.safetensors", said=Said(sha256=expected))
    assert expected in refused.value.message
    assert found in refused.value.message
    assert store.names() == []
    assert leftovers(store) == []
    pinned = add(store, made / "base.safetensors", said=Said(sha256=found)).model
    assert recognised(pinned, registry.registry()) == "pinned"


def test_a_pickle_of_weights_is_taken_and_one_that_runs_code_is_not(
    store: ModelStore, made: Path, tmp_path: Path
) -> None:
    class Runs:
        def __reduce__(self) -> tuple[object, ...]:
            return (tmp_path.joinpath("ran").mkdir, ())

    assert add(store, made / "plus.bin").model.variant == "plus"
    torch.save({"image_proj": Runs()}, tmp_path / "evil.bin")
    with pytest.raises(CheckpointRefused, match="run code"):
        add(store, tmp_path / "evil.bin")
    assert store.names() == ["plus"]
    assert not (tmp_path / "ran").exists()


def test_a_file_that_was_cut_is_refused(store: ModelStore, made: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes((made / "base.safetensors").read_bytes()[:-9])
    with pytest.raises(CheckpointRefused, match="damaged"):
        add(store, tmp_path / "cut.safetensors")
    assert store.names() == []


def test_of_a_folder_only_what_the_engine_opens_is_copied(store: ModelStore, made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sd15"
    shutil.copytree(made / "sd15", folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    for copy in ("unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.bin",
                 "v1-5-pruned.safetensors", "safety_checker/model.safetensors", ".git/x.safetensors"):  # fmt: skip
        (folder / copy).parent.mkdir(exist_ok=True)
        shutil.copyfile(weights, folder / copy)
    (folder / "LICENSE").write_text("terms")
    add(store, folder)
    names = {f.path for f in store.get("sd15").files}
    assert {n for n in names if n.endswith((".safetensors", ".bin"))} == {
        "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    }  # fmt: skip
    assert {"LICENSE", "model_index.json", "tokenizer/vocab.json"} <= names
    assert open_checkpoint(CheckpointPaths(store.place_of("sd15"))).family.name == "sd15"


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["a.safetensors", "b.safetensors"], "holds 2 files of weights"),
        (["notes.txt"], "holds no weights"),
        (["config.json", "pytorch_model.bin"], "only as pickles"),
    ],
)
def test_a_folder_that_is_not_one_model_is_refused(
    store: ModelStore, made: Path, tmp_path: Path, names: list[str], told: str
) -> None:
    for name in names:
        shutil.copyfile(made / "base.safetensors", tmp_path / name)
    with pytest.raises(ModelRefused, match=told):
        add(store, tmp_path)


@pytest.mark.parametrize("source", ["/nowhere/at/all.safetensors", "gs://bucket/x", "hub:justaname", " "])
def test_a_place_that_is_none_is_refused(store: ModelStore, source: str) -> None:
    with pytest.raises((ModelRefused, PlaceInvalid)):
        add(store, source, name="x")


@pytest.mark.parametrize("name", ["..", "a/b", "UPPER", ".hidden", "feature_extractor", "a" * 65, ""])
def test_a_name_is_one_of_a_folder_in_the_store(store: ModelStore, made: Path, name: str) -> None:
    if name:
        with pytest.raises(ModelRefused, match="no name for a model"):
            add(store, made / "base.safetensors", name=name)
    else:
        assert add(store, made / "base.safetensors", name=name).model.name == "base"


def test_another_kind_than_the_file_is_refused(store: ModelStore, made: Path) -> None:
    with pytest.raises(ModelRefused, match="of kind adapter, not encoder"):
        add(store, made / "base.safetensors", said=Said(kind="encoder"))


def test_the_registry_says_what_shapes_cannot(store: ModelStore, made: Path, home: Path) -> None:
    home.mkdir()
    sha256 = sha256_of_file(made / "base.safetensors")
    (home / "models.toml").write_text(
        f'[[file]]\nname = "x"\nkind = "adapter"\nvariant = "light"\nbase = "sd15"\nencoder = "vit-h"\n'
        f'licence = "Apache-2.0"\nsha256 = "{sha256}"\n'
    )
    model = add(store, made / "base.safetensors").model
    assert (model.variant, model.base, model.encoder, model.licence) == ("light", "sd15", "vit-h", "Apache-2.0")
    assert recognised(model, registry.registry()) == "sha256"


def test_what_is_recognised_by_name_alone_is_said_to_be(store: ModelStore, made: Path, tmp_path: Path) -> None:
    file = tmp_path / "ip-adapter-plus_sdxl_vit-h.bin"
    shutil.copyfile(made / "plus.bin", file)
    added = add(store, file)
    assert "unverified" in str(added.model.licence)
    assert any("unverified" in note for note in added.notes)
    assert recognised(added.model, registry.registry()) == "name"


# ---------------------------------------------------------------------------- killed at any point

KILLED = """
import json, os, shutil, signal, sys
from pathlib import Path
from flows.models import ModelStore
from flows.settings import S3Settings

root, before, source = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
STEPS = ("open", "os.rename", "os.symlink", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")


def add(source):
    return ModelStore(root).add(source, "pat", S3Settings(endpoint_url=None), name="ours", replacing=True).model.variant


def killed_at(step):
    count = 0

    def heard(event, args):
        nonlocal count
        if event in STEPS and any(str(a).startswith((str(root), ".data/")) for a in args):
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)

    if (child := os.fork()) == 0:
        sys.addaudithook(heard)
        add(source)
        os._exit(0)
    return os.waitpid(child, 0)[1] != 0


step, killed = 0, True
while killed:
    step += 1
    shutil.rmtree(root, ignore_errors=True)
    if before:
        add(before)
    killed = killed_at(step)
    store = ModelStore(root)
    there = store.find("ours")
    told = {"there": there and there.variant, "problems": [p.message for p in store.verify()]}
    told |= {"again": add(source), "whole": not store.verify(), "folders": len(list((root / ".data").iterdir()))}
    print(json.dumps(told))
"""


@pytest.mark.parametrize("before", ["", "base.safetensors"])
def test_killed_at_any_step_there_is_the_model_before_or_the_new_one_whole(
    store: ModelStore, made: Path, before: str
) -> None:
    """A process is killed at each step that touches the store, then at none; each time the same is added again."""
    process = subprocess.run(
        [sys.executable, "-c", KILLED, str(store.root), before and str(made / before), str(made / "plus.safetensors")],
        check=False, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    steps = [json.loads(line) for line in process.stdout.splitlines()]
    assert len(steps) > 15
    assert {s["there"] for s in steps} == {"base" if before else None, "plus"}
    assert not [s for s in steps if s["problems"]]
    assert {(s["again"], s["whole"], s["folders"]) for s in steps} == {("plus", True, 1)}


# ---------------------------------------------------------------------------- S3


@pytest.fixture
def there(s3: S3Server, bucket: str, made: Path) -> S3Settings:
    """The made models in a bucket."""
    client = s3.client()
    for file in [p for p in made.rglob("*") if p.is_file()]:
        client.put_object(Bucket=bucket, Key=f"models/{file.relative_to(made).as_posix()}", Body=file.read_bytes())
    return S3Settings(endpoint_url=s3.endpoint_url, region=REGION)


def test_a_prefix_and_an_object_of_s3_are_added(store: ModelStore, made: Path, there: S3Settings, bucket: str) -> None:
    base = add(store, f"s3://{bucket}/models/sd15", s3=there).model
    encoder = add(store, f"s3://{bucket}/models/clip/image_encoder", s3=there).model
    assert {f.path for f in encoder.files} == {"config.json", "model.safetensors", "preprocessor_config.json"}
    adapter = add(store, f"s3://{bucket}/models/base.safetensors", s3=there).model
    assert (base.kind, adapter.kind) == ("base", "adapter")
    assert adapter.source == f"s3://{bucket}/models/base.safetensors"
    assert adapter.files[0].sha256 == sha256_of_file(made / "base.safetensors")
    assert store.verify() == []
    assert not add(store, f"s3://{bucket}/models/sd15", s3=there).new


def test_nothing_at_a_prefix_is_refused(store: ModelStore, there: S3Settings, bucket: str) -> None:
    with pytest.raises(ModelRefused, match="there is nothing at"):
        add(store, f"s3://{bucket}/elsewhere", s3=there)


def test_a_bucket_that_is_not_there_cannot_be_reached(store: ModelStore, there: S3Settings) -> None:
    with pytest.raises(SourceUnreachable, match="there is no bucket"):
        add(store, "s3://no-such-bucket-here/models", s3=there)


def test_a_key_that_leads_out_of_the_store_is_refused(
    store: ModelStore, s3: S3Server, there: S3Settings, bucket: str
) -> None:
    s3.client().put_object(Bucket=bucket, Key="evil/config.json", Body=b"{}")
    s3.client().put_object(Bucket=bucket, Key="evil/../../escape.txt", Body=b"x")
    s3.client().put_object(Bucket=bucket, Key="evil/..", Body=b"x")
    with pytest.raises(ModelRefused):
        add(store, f"s3://{bucket}/evil", s3=there)
    assert not list(store.root.rglob("escape.txt"))


# ---------------------------------------------------------------------------- a hub

FETCH = """
import json, sys
from pathlib import Path
from flows.models import ModelStore
from flows.settings import S3Settings
for source in sys.argv[2:]:
    try:
        added = ModelStore(Path(sys.argv[1])).add(source, "pat", S3Settings(endpoint_url=None), name="ours")
        told = {**added.model.as_json(), "new": added.new}
    except Exception as error:
        told = {"error": type(error).__name__, "message": str(error), "next": getattr(error, "next_step", "")}
    print(json.dumps(told))
"""


def fetching(store: ModelStore, hub: Hub, *sources: str, **environment: str) -> subprocess.Popen[str]:
    """One after the other, in a process of its own: huggingface_hub reads its environment once."""
    ours = {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(store.root.parent / "hf")}
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, str(store.root), *sources], env={**os.environ, **ours, **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip


def fetched(store: ModelStore, hub: Hub, *sources: str, **environment: str) -> list[dict[str, Any]]:
    out, err = fetching(store, hub, *sources, **environment).communicate(timeout=200)
    assert len(out.splitlines()) == len(sources), err
    return [json.loads(line) for line in out.splitlines()]


@pytest.fixture
def hub(made: Path) -> Iterator[Hub]:
    encoder = {
        f"models/{p.relative_to(made / 'clip').as_posix()}": p.read_bytes()
        for p in (made / "clip").rglob("*.*")
        if p.is_file()
    }
    adapters = {f"models/{n}.safetensors": (made / f"{n}.safetensors").read_bytes() for n in ("base", "plus")}
    files = {**encoder, "models/image_encoder/pytorch_model.bin": b"not wanted", **adapters, "README.md": b"a card"}
    with serving(Hub({"h94/tiny": files}, gated=frozenset({"h94/gated"}))) as made_hub:
        yield made_hub


def test_a_file_of_a_hub_is_pinned_to_the_commit_it_was_resolved_to(store: ModelStore, hub: Hub, made: Path) -> None:
    source = "hub:h94/tiny:models/base.safetensors"
    told, again = fetched(store, hub, source, source)
    assert (told["kind"], told["revision"], told["licence"]) == ("adapter", COMMIT, "apache-2.0")
    assert told["files"][0]["sha256"] == sha256_of_file(made / "base.safetensors")
    assert (told["new"], again["new"]) == (True, False)
    assert len([path for method, path, _ in hub.asked if method == "GET" and "/resolve/" in path]) == 1
    assert store.verify() == []


def test_a_folder_of_a_hub_is_added_without_its_pickles(store: ModelStore, hub: Hub) -> None:
    (told,) = fetched(store, hub, f"hub:h94/tiny@{COMMIT}:models/image_encoder")
    assert told["kind"] == "encoder"
    assert {f["path"] for f in told["files"]} == {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert not [path for _, path, _ in hub.asked if path.endswith(".bin")]


REFUSED = {
    "hub:h94/none": "no repository h94/none",
    "hub:h94/gated": "is gated",
    "hub:h94/tiny@old": "has no revision old",
    "hub:h94/tiny:models/none.bin": "has no models/none.bin",
    "hub:h94/tiny:models": "files of weights",
}


def test_what_a_hub_does_not_have_is_refused_with_what_to_do(store: ModelStore, hub: Hub) -> None:
    answers = fetched(store, hub, *REFUSED)
    for answer, told in zip(answers, REFUSED.values(), strict=True):
        assert answer["error"] == "ModelRefused", answer
        assert told in answer["message"]
        assert answer["next"]
    assert store.names() == []


def test_a_file_that_is_not_what_the_hub_lists_is_refused(store: ModelStore, hub: Hub) -> None:
    name = next(n for n in hub.files["h94/tiny"] if n.endswith(".safetensors"))
    hub.damaged[name] = hub.files["h94/tiny"][name][::-1]
    (answer,) = fetched(store, hub, f"hub:h94/tiny:{name}")
    assert answer["error"] == "ModelRefused", answer
    assert "came with sha256" in answer["message"]
    assert store.names() == []
    hub.damaged.clear()
    assert fetched(store, hub, f"hub:h94/tiny:{name}")[0]["new"] is True


@pytest.mark.parametrize(
    ("environment", "told"),
    [({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"), ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot be read")],
)
def test_a_hub_that_is_not_reached_says_why(
    store: ModelStore, hub: Hub, environment: dict[str, str], told: str
) -> None:
    (answer,) = fetched(store, hub, "hub:h94/tiny", **environment)
    assert answer["error"] == "SourceUnreachable", answer
    assert told in answer["message"]
    assert answer["next"]


def test_a_fetch_that_is_killed_half_way_leaves_no_model_and_can_be_repeated(
    store: ModelStore, hub: Hub, tmp_path: Path
) -> None:
    file = tiny.write_safetensors(
        tmp_path / "big.safetensors", {"unet": {"a.lora_A.weight": torch.zeros(4, 1_500_000)}}
    )
    hub.files["h94/tiny"]["big.safetensors"] = file.read_bytes()
    hub.stop_at = 15_000_000  # huggingface_hub writes pieces of ten million bytes
    process = fetching(store, hub, "hub:h94/tiny:big.safetensors")
    try:
        assert hub.held.wait(120)
        deadline = time.monotonic() + 120
        while not any(p.stat().st_size for p in (store.root / ".adding").rglob("*.incomplete")):
            assert time.monotonic() < deadline, "nothing was written"
            time.sleep(0.05)
    finally:
        process.kill()
        process.communicate()
    assert store.names() == []
    assert store.verify() == []
    hub.stop_at = None
    (again,) = fetched(store, hub, "hub:h94/tiny:big.safetensors")
    assert again["new"] is True
    assert store.place_of("ours").read_bytes() == file.read_bytes()
    assert store.verify() == []


# ---------------------------------------------------------------------------- verifying and removing


def test_what_is_damaged_missing_or_foreign_is_named(store: ModelStore, made: Path) -> None:
    add(store, made / "clip" / "image_encoder")
    add(store, made / "base.safetensors")
    folder = store.root / "image_encoder"
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    (folder / "config.json").unlink()
    (folder / "extra.txt").write_text("?")
    (store.root / "dropped").mkdir()
    found = {(p.model, p.file): p.what for p in store.verify()}
    assert found == {
        ("image_encoder", "model.safetensors"): "damaged", ("image_encoder", "config.json"): "missing", ("image_encoder", "extra.txt"): "foreign",
        ("dropped", ""): "foreign",
    }  # fmt: skip
    assert store.verify("base") == []
    told = next(p.message for p in store.verify("image_encoder") if p.what == "damaged")
    assert sha256_of_file(weights) in told
    assert sha256_of_file(made / "clip" / "image_encoder" / "model.safetensors") in told


def test_a_damaged_manifest_is_named_and_replaced(store: ModelStore, made: Path) -> None:
    add(store, made / "base.safetensors")
    (store.root / "base" / "onmodel.json").write_text("{")
    assert [p.what for p in store.verify()] == ["damaged"]
    with pytest.raises(CheckpointRefused):
        add(store, made / "base.safetensors")
    add(store, made / "base.safetensors", replacing=True)
    assert store.verify() == []


def test_a_damaged_file_is_mended_by_replacing(store: ModelStore, made: Path) -> None:
    add(store, made / "base.safetensors")
    store.place_of("base").write_bytes(b"damaged")
    assert not add(store, made / "base.safetensors").new
    assert [p.what for p in store.verify()] == ["damaged"]
    assert add(store, made / "base.safetensors", replacing=True).new
    assert store.verify() == []


def test_a_removed_model_is_gone_with_its_files(store: ModelStore, made: Path) -> None:
    add(store, made / "base.safetensors")
    store.remove("base")
    assert store.names() == []
    assert list((store.root / ".data").iterdir()) == []
    with pytest.raises(ModelRefused, match="there is no model base"):
        store.remove("base")


# ---------------------------------------------------------------------------- named by settings


def settings_of(home: Path, **engine: Any) -> Settings:
    return Settings(home=home, engine=EngineSettings(gpus=1, **engine))


@pytest.mark.parametrize("prefix", ["models:", ""])
def test_settings_name_models_and_lineage_tells_their_licences(
    store: ModelStore, made: Path, home: Path, prefix: str
) -> None:
    add(store, made / "sd15", name="our-base", said=Said(licence="B"))
    add(store, made / "clip" / "image_encoder", name="our-clip", said=Said(licence="E"))
    add(store, made / "base.safetensors", name="our-adapter", said=Said(licence="A"))
    settings = settings_of(
        home, base=Path(f"{prefix}our-base"), adapter=Path(f"{prefix}our-adapter"), encoder=Path(f"{prefix}our-clip")
    )
    engine = configured(settings).engine
    assert engine.base == store.root / "our-base"
    assert engine.adapter == store.root / "our-adapter" / "base.safetensors"
    opened = open_checkpoint(CheckpointPaths(engine.base, engine.adapter, engine.encoder))
    licences = {m.role: m.licence for m in opened.models}
    assert (licences["unet"], licences["image encoder"], licences["ip-adapter"]) == ("B", "E", "A")
    assert settings_naming(settings, "our-adapter") == ["ONMODEL_ENGINE__ADAPTER"]
    assert "adapter models:our-adapter (A" in described(settings)
    assert configured(configured(settings)).engine == engine


def test_paths_stay_as_they_are(store: ModelStore, made: Path, home: Path) -> None:
    settings = settings_of(home, base=made / "sd15", controls={"pose": made / "nowhere"})
    assert configured(settings) == settings
    add(store, made / "sd15", name="ours")
    inside = settings_of(home, base=store.root / "ours")
    assert configured(inside).engine.base == store.root / "ours"
    assert settings_naming(inside, "ours") == ["ONMODEL_ENGINE__BASE"]


def test_a_model_that_is_not_there_or_of_another_kind_is_refused(store: ModelStore, made: Path, home: Path) -> None:
    add(store, made / "base.safetensors", name="ours")
    with pytest.raises(
        CheckpointRefused, match="ONMODEL_ENGINE__BASE names a model none, which there is not"
    ) as refused:
        configured(settings_of(home, base=Path("models:none")))
    assert "ours" in refused.value.next_step
    add(store, made / "clip" / "image_encoder", name="ours", replacing=True)
    with pytest.raises(CheckpointRefused, match="ONMODEL_ENGINE__ADAPTERS__STYLE names ours") as refused:
        configured(settings_of(home, adapters={"style": Path("models:ours")}))
    assert "of kind encoder and not adapter" in refused.value.message
