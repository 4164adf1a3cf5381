"""The command line as a user meets it: output, exit codes, errors of one sentence."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from studio.cli.app import app, load_commands
from tests.studio_home import PASSING, ROOT, SMALL_BRIEF, Home

load_commands()
COMMANDS = (
    "ingest", "campaign run", "campaign schedule", "campaign pause", "campaign resume", "campaign unschedule", "campaign list",
    "sheet", "runs list", "runs cancel", "worker", "review list", "review show", "review approve", "review reject",
    "review request-changes", "review waive", "review reopen", "review comment", "review assign", "review retake",
    "suspend", "reinstate", "withdraw", "release", "lineage", "audit verify", "recall",
    "references", "calibrate", "tune", "evaluate", "train adapter", "train character", "train list", "gc", "doctor",
    "models add", "models list", "models verify", "models remove", "people add", "people list", "people grant", "people revoke", "people disable", "people link", "people unlink", "keys make", "keys list",
    "keys revoke", "up", "mcp", "subscriptions add", "subscriptions list", "subscriptions remove",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_and_is_in_the_docs(command: str) -> None:
    answer = CliRunner().invoke(app, [*command.split(), "--help"])
    assert answer.exit_code == 0
    assert "Usage" in answer.output
    assert f"onmodel {command}" in (ROOT / "docs" / "cli.md").read_text()


def test_the_docs_name_no_command_that_is_not_there() -> None:
    named = set(re.findall(r"^## `onmodel ([a-z -]+?)`", (ROOT / "docs" / "cli.md").read_text(), re.M))
    assert named == set(COMMANDS)


@pytest.mark.usefixtures("prefect")
def test_the_whole_way_from_library_to_delivery(home: Home, tmp_path: Path) -> None:
    assert home.onmodel("ingest", str(home.library), "--by", "pat").code == 0
    run = home.onmodel_fresh("campaign", "run", str(home.brief(SMALL_BRIEF + PASSING)), "--by", "pat", "--json")
    assert run.code in (0, 3), run.err
    waiting = home.onmodel("review", "list", "--json").json["assets"]
    assert waiting, run.out
    asset = waiting[0]["id"][:8]
    refused = home.onmodel("review", "approve", asset, "--by", "pat")
    assert (refused.code, "asked for it" in refused.err) == (1, True)
    assert home.onmodel("review", "reject", asset, "--by", "rosa", "--reason", " ").code == 1
    assert home.onmodel("release", asset, "--to", str(tmp_path / "out")).code == 1
    assert home.onmodel("review", "approve", asset, "--by", "rosa").out.strip().endswith("is now approved")
    released = home.onmodel("release", asset, "--to", str(tmp_path / "out"), "--by", "lee", "--json").json
    assert all(Path(f).exists() for f in released["released"][0]["files"])
    tree = home.onmodel("lineage", asset)
    for word in ("references", "models", "settings", "decisions", "deliveries", "sha256", "approve at brand by rosa"):
        assert word in tree.out
    assert home.onmodel("lineage", asset, "--json").json["versions"][0]["references"]
    assert "whole" in home.onmodel("audit", "verify").out
    assert home.onmodel("gc", "--json").json["garbage"] == 0
    recalled = home.onmodel(
        "recall", tree_reference(home, asset), "--reason", "contract ended", "--by", "rita", "--json"
    ).json
    assert recalled[0]["deliveries"]


def tree_reference(home: Home, asset: str) -> str:
    return str(home.onmodel("lineage", asset, "--json").json["versions"][0]["references"][0]["key"])


def test_a_mistake_in_a_brief_is_told_by_line_without_a_traceback(home: Home) -> None:
    answer = home.onmodel("campaign", "run", str(home.brief(SMALL_BRIEF.replace("steps: 3", "steps: x"))))
    assert answer.code == 2
    assert "brief.yaml:4: defaults.steps" in answer.err
    assert "Traceback" not in answer.err


def test_an_unknown_asset_is_told_with_a_next_step(home: Home) -> None:
    answer = home.onmodel("lineage", "abcdef12")
    assert answer.code == 1
    assert "there is no asset abcdef12" in answer.err
    assert "→" in answer.err


def test_debug_shows_the_traceback(home: Home) -> None:
    assert "Traceback" in home.onmodel("--debug", "lineage", "abcdef12").err


def test_an_unreachable_database_has_its_own_exit_code(home: Home) -> None:
    answer = home.onmodel("review", "list", ONMODEL_DATABASE__URL="postgresql://nobody@127.0.0.1:9/none")
    assert answer.code == 4
    assert "ONMODEL_DATABASE__URL" in answer.err


def test_doctor_finds_all_well_and_says_what_to_do_where_not(home: Home) -> None:
    well = home.onmodel("doctor", "--json")
    assert well.code == 0, well.out
    assert {f["part"]: f["ok"] for f in well.json} == dict.fromkeys(
        ("home", "database", "blobs", "engine", "prefect", "sign-in"), True
    )
    nobody = {"ONMODEL_OIDC__ISSUER": "http://127.0.0.1:1", "ONMODEL_OIDC__CLIENT_ID": "onmodel"}
    ill = home.onmodel("doctor", "--json", ONMODEL_ENGINE__BASE="/nowhere", **nobody)
    assert ill.code == 4
    assert {f["part"]: bool(f["what_to_do"]) for f in ill.json if not f["ok"]} == {"engine": True, "sign-in": True}


def test_hostile_names_are_shown_as_text(home: Home) -> None:
    answer = home.onmodel("lineage", "\x1b[31m[red]evil\u202e")
    assert "\x1b" not in answer.err
    assert "\u202e" not in answer.err


def test_asking_for_review_loads_no_torch() -> None:
    code = (
        "import sys; import studio.cli.app, studio.cli.reviewing, studio.cli.asking, flows.dispatch; "
        "sys.exit('torch' in sys.modules or 'prefect' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


@pytest.mark.parametrize("place", ["gs://bucket/x", "https://example.test/x"])
def test_another_scheme_is_not_taken_for_a_folder(home: Home, place: str) -> None:
    for command in (["ingest", place], ["release", "--to", place]):
        answer = home.onmodel(*command)
        assert answer.code == 1
        assert "neither a folder nor in S3" in answer.err
    assert not list(home.path.glob("*:*"))


def test_a_wrong_setting_is_named_without_its_value(home: Home) -> None:
    answer = home.onmodel("doctor", ONMODEL_INGEST__BATCH="secret-word")
    assert answer.code == 2
    assert "ONMODEL_INGEST__BATCH" in answer.err
    assert "secret-word" not in answer.err
