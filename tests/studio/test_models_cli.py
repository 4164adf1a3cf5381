"""`onmodel models` as a user meets it: what is printed, exit codes, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from studio.cli import asking
from studio.cli.app import load_commands
from studio.cli.models import models_app
from tests.hub_server import COMMIT, Hub, serving
from tests.ipadapter_engine import tiny_checkpoints as tiny
from tests.studio_home import ROOT

load_commands()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONMODEL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    return tiny.write_safetensors(
        tmp_path / "Pip LoRA.safetensors", {"unet": {"down.to_q.lora_A.weight": torch.zeros(4, 8)}}
    )


def models(*arguments: str) -> Result:
    return CliRunner().invoke(models_app, arguments)


def test_a_model_is_added_listed_verified_and_removed(home: Path, lora: Path) -> None:
    added = models("add", str(lora), "--licence", "house", "--by", "pat", "--json")
    assert added.exit_code == 0, added.output
    told = json.loads(added.stdout)
    assert (told["name"], told["kind"], told["licence"], told["added_by"]) == ("pip-lora", "lora", "house", "pat")
    (row,) = json.loads(models("list", "--json").stdout)
    assert (row["name"], row["size_bytes"], row["verified"]) == ("pip-lora", lora.stat().st_size, False)
    assert "pip-lora" in models("list").output
    assert models("verify").exit_code == 0
    assert models("remove", "pip-lora").exit_code == 0
    assert json.loads(models("list", "--json").stdout) == []


def test_what_is_damaged_is_named_with_exit_code_1(home: Path, lora: Path) -> None:
    models("add", str(lora))
    file = home / "models" / "pip-lora" / lora.name
    file.write_bytes(file.read_bytes()[:-1])
    told = models("verify", "pip-lora", "--json")
    assert told.exit_code == 1
    assert [(p["file"], p["what"]) for p in json.loads(told.stdout)["problems"]] == [(lora.name, "damaged")]
    assert "damaged pip-lora" in models("verify").output


def test_a_model_that_the_settings_name_is_removed_by_force_alone(
    home: Path, lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models("add", str(lora))
    monkeypatch.setenv("ONMODEL_ENGINE__ADAPTERS__STYLE", "models:pip-lora")
    refused = models("remove", "pip-lora")
    assert refused.exit_code == 1
    assert "ONMODEL_ENGINE__ADAPTERS__STYLE" in refused.output
    assert models("remove", "pip-lora", "--force").exit_code == 0


def test_a_refusal_is_a_sentence_and_a_next_step(home: Path, lora: Path) -> None:
    refused = models("add", str(lora), "--sha256", "A" * 64)
    assert refused.exit_code == 1
    assert "a" * 64 in refused.output
    assert "→" in refused.output
    assert models("remove", "nothing").exit_code == 1
    assert models("verify", "nothing").exit_code == 1


def test_the_published_files_are_listed_with_their_licences(home: Path) -> None:
    known = {f["name"]: f for f in json.loads(models("list", "--known", "--json").stdout)}
    assert known["ip-adapter-plus-face_sd15.safetensors"]["variant"] == "plus-face"
    assert known["ip-adapter-faceid-plusv2_sdxl.bin"]["licence"].startswith("non-commercial")


def test_the_command_asks_a_hub_and_keeps_to_offline(tmp_path: Path, lora: Path) -> None:
    with serving(Hub({"lumen/pip": {"pip.safetensors": lora.read_bytes()}})) as hub:
        env = {**os.environ, "HF_ENDPOINT": hub.address, "ONMODEL_HOME": str(tmp_path / "home")}
        command = [
            sys.executable,
            "-c",
            "from studio.cli.app import run; run()",
            "models",
            "add",
            "hub:lumen/pip",
            "--json",
        ]
        offline = subprocess.run(
            command, env={**env, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False, cwd=ROOT
        )
        del env["HF_HUB_OFFLINE"]  # as for a user who says nothing: every other command goes without a hub
        asked = subprocess.run(command, env=env, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (offline.returncode, "HF_HUB_OFFLINE is set" in offline.stderr) == (4, True)
    assert asked.returncode == 0, asked.stderr
    assert json.loads(asked.stdout)["revision"] == COMMIT


def test_doctor_says_which_models_are_set(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny.write_studio(tmp_path / "studio")
    assert models("add", str(base), "--name", "ours", "--licence", "house").exit_code == 0
    monkeypatch.setenv("ONMODEL_ENGINE__BASE", "models:ours")
    assert "base models:ours (house" in asking._engine()
