"""A real Prefect server process for the tests of flows: what a run leaves there is asked for over HTTP."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import certifi
import httpx
import pytest

STARTUP_S = 240


@dataclass(frozen=True)
class PrefectServer:
    api_url: str

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """POST a filter to the server's API and return its answer."""
        answer = httpx.post(f"{self.api_url}/{path}", json=body or {}, timeout=30)
        answer.raise_for_status()
        return answer.json()


@pytest.fixture(scope="session")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """The server, and PREFECT_API_URL set to it for this process and those it starts."""
    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    environment = {**os.environ, "PREFECT_HOME": str(home), "PREFECT_SERVER_API_HOST": "127.0.0.1"}
    log = (home / "server.log").open("w")
    server = subprocess.Popen(
        [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui"],
        env=environment, stdout=log, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        _wait_for(url, server, home / "server.log")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PREFECT_API_URL", url)
            patch.setenv("PREFECT_HOME", str(home))
            certificate = str(_one_certificate(home))
            patch.setenv("PREFECT_API_SSL_CERT_FILE", certificate)
            from prefect.settings import PREFECT_API_SSL_CERT_FILE, PREFECT_API_URL, PREFECT_HOME, temporary_settings

            settings = {PREFECT_API_URL: url, PREFECT_HOME: home, PREFECT_API_SSL_CERT_FILE: certificate}
            with temporary_settings(settings):
                yield PrefectServer(url)
    finally:
        server.terminate()
        server.wait(timeout=120)
        log.close()


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + STARTUP_S
    with httpx.Client(verify=False) as client:  # noqa: S501  (there is no TLS, and reading certificates takes longer than asking)
        while time.monotonic() < deadline:
            if server.poll() is not None:
                raise RuntimeError(f"the Prefect server ended:\n{log.read_text()}")
            try:
                if client.get(f"{url}/health", timeout=2).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
    raise RuntimeError(f"the Prefect server did not answer within {STARTUP_S} s:\n{log.read_text()}")


def _one_certificate(folder: Path) -> Path:
    """Every client of Prefect's reads the whole bundle of certificates, also for an address without TLS: here one is enough."""
    first, end, _ = Path(certifi.where()).read_text().partition("-----END CERTIFICATE-----")
    one = folder / "certificate.pem"
    one.write_text(f"{first[first.index('-----BEGIN') :]}{end}\n")
    return one
