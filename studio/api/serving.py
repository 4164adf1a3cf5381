"""Serving on one machine: the first person, the address, and the servers beside it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path

import httpx
from sqlalchemy import select
from sqlalchemy.orm import Session

from asset_store.errors import SettingsInvalid
from asset_store.people import accounts, passes
from asset_store.tables import Person, Role

LOOPBACK = "127.0.0.1"
PREFECT_STARTS_WITHIN_S = 90.0


def first_person(session: Session, handle: str) -> Person | None:
    """Whoever starts the first server on an empty database may do everything; once there are people, it is who has that
    handle, or nobody."""
    if session.scalar(select(Person.id).limit(1)) is not None:
        found = accounts.find_person(session, handle)
        return found if found is not None and found.disabled_at is None else None
    person = accounts.add_person(session, handle, handle, "system")
    for role in Role:
        accounts.grant(session, handle, role, "system")
    return person


def link_for(session: Session, handle: str, address: str) -> str:
    """A sign-in link; the token stands behind the #, so that no server logs it."""
    return f"{address.rstrip('/')}/sign-in#{passes.make_link(session, handle, 'system')}"


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 takes a free one. SettingsInvalid where the port is taken."""
    # The protocol is named: only of such sockets does asyncio send small writes at once, and else each answer waits 40 ms.
    server = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        server.bind((host, port))
    except OSError as error:
        server.close()
        raise SettingsInvalid(
            f"{host}:{port} cannot be listened at: {error.strerror}", "Give another --port, or 0 for a free one."
        ) from None
    server.listen(128)
    return server


@contextmanager
def prefect_server(home: Path) -> Iterator[str]:
    """Prefect's server and the served flows as processes of their own, ended with this one; its API's address."""
    with listening(LOOPBACK, 0) as free:
        port = int(free.getsockname()[1])
    api = f"http://{LOOPBACK}:{port}/api"
    environment = {**os.environ, "PREFECT_API_URL": api, "PREFECT_HOME": str(home / "prefect")}
    home.mkdir(parents=True, exist_ok=True)
    with (home / "prefect.log").open("ab") as log:

        def start(*arguments: str) -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                [sys.executable, "-m", *arguments], env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

        processes = [start("prefect", "server", "start", "--host", LOOPBACK, "--port", str(port), "--no-ui")]
        try:
            _await_health(api, processes[0], home / "prefect.log")
            processes.append(start("flows.deployments"))
            yield api
        finally:
            for process in reversed(processes):
                _end(process)


@contextmanager
def worker(home: Path) -> Iterator[None]:
    """`onmodel worker` as a process of its own, ended with this one."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "worker.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", "from studio.cli.app import run; run()", "worker"], stdin=subprocess.DEVNULL, stdout=log,
            stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            yield
        finally:
            _end(process)


def _await_health(api: str, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up_at = time.monotonic() + PREFECT_STARTS_WITHIN_S
    while time.monotonic() < give_up_at and process.poll() is None:
        with suppress(httpx.HTTPError):
            if httpx.get(f"{api}/health", timeout=2).status_code == HTTPStatus.OK:
                return
        time.sleep(0.2)
    raise SettingsInvalid("Prefect's server does not start", f"Read {log}, or name a server with PREFECT_API_URL.")


def _end(process: subprocess.Popen[bytes]) -> None:
    """It and what it started, which share its process group."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        try:
            process.wait(timeout=10)
            return
        except subprocess.TimeoutExpired:
            continue
