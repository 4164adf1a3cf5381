"""What does not make or look at a picture starts without the engine, which takes seconds to load."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.studio_home import ROOT, SMALL_BRIEF, Home

ENGINE = ("torch", "diffusers", "transformers", "peft", "accelerate")
QUESTIONS = (
    "review list", "runs list", "train list", "people list", "keys list", "subscriptions list", "audit verify", "gc",
    "models list", "models verify", "release --to delivered", "campaign run --help", "tune --list",
)  # fmt: skip
UNKNOWN_NAMES = ("references Popeye", "calibrate Popeye", "tune --list Popeye", "campaign run --dry-run brief.yaml")


def after(program: str, *arguments: str) -> tuple[list[str], list[str]]:
    """What a program prints in a process of its own, and the parts of the engine that it loaded."""
    ending = f"; import sys; print(*[m for m in {ENGINE!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program + ending, *arguments], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    *printed, loaded = done.stdout.splitlines()
    return printed, loaded.split()


def test_a_process_that_loads_the_engine_is_seen() -> None:
    assert after("import ipadapter_engine.pipeline")[1] == list(ENGINE)


def test_serving_the_flows_loads_no_engine() -> None:
    program = (
        "from flows.deployments import deployments; from flows.settings import load_settings; "
        "print(*[d.flow_name for d in deployments(load_settings())])"
    )
    printed, loaded = after(program)
    assert {"run-campaign", "make-character-sheet", "train-adapter", "sweep"} <= set(printed[0].split())
    assert not loaded


def test_the_api_with_the_pages_loads_no_engine() -> None:
    assert not after("import studio.api.app, flows.starting, flows.telling")[1]


def test_questions_and_names_that_there_are_not_are_answered_without_the_engine(home: Home) -> None:
    brief = home.brief(SMALL_BRIEF)
    wrong = [words.replace(brief.name, str(brief)) for words in UNKNOWN_NAMES]
    program = (
        "import sys; from typer.testing import CliRunner; from studio.cli.app import app, load_commands; load_commands(); "
        "print(*[CliRunner().invoke(app, words.split()).exit_code for words in sys.argv[1:]])"
    )
    printed, loaded = after(program, *QUESTIONS, *wrong)
    codes = printed[0].split()
    assert dict(zip(QUESTIONS, codes, strict=False)) == dict.fromkeys(QUESTIONS, "0")
    assert dict(zip(UNKNOWN_NAMES, codes[len(QUESTIONS) :], strict=True)) == dict.fromkeys(UNKNOWN_NAMES, "1")
    assert not loaded


def test_a_mistake_in_a_brief_is_told_without_the_engine(home: Home) -> None:
    """Nobody waits for it to load to hear of a typing error."""
    brief = home.brief(SMALL_BRIEF.replace("steps: 3", "steps: x"))
    program = (
        "import json, sys; from typer.testing import CliRunner; from studio.cli.app import app, load_commands; "
        "load_commands(); told = CliRunner().invoke(app, ['campaign', 'run', sys.argv[1]]); "
        "print(json.dumps([told.exit_code, told.output]))"
    )
    printed, loaded = after(program, str(brief))
    code, told = json.loads(printed[0])
    assert code == 2
    assert "brief.yaml:4: defaults.steps" in told
    assert not loaded
