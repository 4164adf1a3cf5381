"""`onmodel …`, or another program, as a process of its own without the seconds that importing takes: forked from one that has imported everything.

The server holds no thread, no connection and no opened engine, so a child differs from a new interpreter in nothing but the imports;
how those behave, tests/flows/test_start_up.py and all commands that are started `fresh` show. Between server and child stands a
process that waits for the child and tells how it ended, also where it was killed.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STARTUP_S = 240
COMMAND = "from studio.cli.app import run; run()"
DONE = 4  # bytes of a number on the wire


class Forked:
    """`onmodel` with these arguments, or a program in Python, while it runs; with as much of subprocess.Popen as the tests use."""

    def __init__(
        self, arguments: Sequence[str], environment: Mapping[str, str] = os.environ, folder: Path = ROOT, program: str = COMMAND
    ) -> None:  # fmt: skip
        self.args = arguments
        self.returncode: int | None = None
        nothing = os.open(os.devnull, os.O_RDONLY)
        (out, out_end), (err, err_end) = os.pipe(), os.pipe()
        self.stdout, self.stderr = open(out), open(err)  # noqa: SIM115  (communicate closes them)
        self._end = _server()
        asked = json.dumps([[program, *map(str, arguments)], dict(environment), str(folder)]).encode()
        socket.send_fds(self._end, [len(asked).to_bytes(DONE, "big")], [nothing, out_end, err_end])
        self._end.sendall(asked)
        for fd in (nothing, out_end, err_end):
            os.close(fd)
        self.pid = self._number()

    def _number(self) -> int:
        told = self._end.recv(DONE, socket.MSG_WAITALL)
        if len(told) < DONE:
            raise RuntimeError("the process that waits for a command is gone")
        return int.from_bytes(told, "big", signed=True)

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._end], [], [], 0)[0]:
            self.returncode = self._number()
            self._end.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None and not select.select([self._end], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        code = self.poll()
        assert code is not None
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it says until it has ended. It runs on where that takes longer than `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        said: dict[Any, str] = {}
        readers = [
            threading.Thread(target=lambda p=pipe: said.update({p: p.read()}), daemon=True)
            for pipe in (self.stdout, self.stderr)
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        self.wait(None if deadline is None else max(0.1, deadline - time.monotonic()))
        self.stdout.close()
        self.stderr.close()
        return said[self.stdout], said[self.stderr]

    def send_signal(self, sign: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, sign)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


# ---------------------------------------------------------------------------- the server


@lru_cache(maxsize=1)
def _started() -> tuple[str, subprocess.Popen[bytes]]:
    """The server of this process and where it listens, started when it is first needed; it ends with this process."""
    folder = tempfile.mkdtemp(prefix="onmodel-forking-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    address = str(Path(folder) / "socket")
    program = f"from tests.forking import serve; serve({address!r})"
    with open(Path(folder) / "log", "w") as log:
        process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stderr=log)
    atexit.register(process.wait)
    assert process.stdin is not None
    atexit.register(process.stdin.close)  # runs first
    return address, process


def _server() -> socket.socket:
    (address, process), give_up_at = _started(), time.monotonic() + STARTUP_S
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(address)
        except OSError:
            connection.close()
            if process.poll() is not None or time.monotonic() > give_up_at:
                log = Path(address).with_name("log").read_text()
                raise RuntimeError(f"the process that commands are forked from does not answer:\n{log}") from None
            time.sleep(0.05)
        else:
            return connection


def serve(address: str) -> None:
    """Import all that commands import, then fork a child for each that connects; returns in the children after their command."""
    _load()
    assert threading.active_count() == 1, threading.enumerate()  # only one thread lives on in a child
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(address)
        door.listen()
        while True:
            ready, _, _ = select.select([door, sys.stdin], [], [])
            if sys.stdin in ready:
                os._exit(0)  # there is nothing to put away
            connection, _ = door.accept()
            if os.fork() == 0:
                door.close()
                break
            connection.close()
    head, fds, _, _ = socket.recv_fds(connection, DONE, 3)
    asked = json.loads(connection.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL))
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if child := os.fork():
        _wait(connection, child, fds)
    connection.close()
    (program, *arguments), environment, folder = asked
    _become(fds, arguments, environment, folder)
    exec(compile(program, "<string>", "exec", dont_inherit=True), {"__name__": "__main__"})  # noqa: S102  (a test's own, as after `python -c`)


def _wait(connection: socket.socket, child: int, fds: list[int]) -> None:
    """Tell who the child is and how it ended."""
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, signal.SIG_IGN)
    for fd in (*fds, 0, 1, 2):
        os.close(fd)
    connection.sendall(child.to_bytes(DONE, "big", signed=True))
    _, status = os.waitpid(child, 0)
    with suppress(OSError):  # nobody may be left to ask
        connection.sendall(os.waitstatus_to_exitcode(status).to_bytes(DONE, "big", signed=True))
    os._exit(0)


def _become(fds: list[int], arguments: list[str], environment: dict[str, str], folder: str) -> None:
    """What a new interpreter begins with."""
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["-c", *arguments]
    import numpy as np
    from prefect.context import refresh_global_settings_context

    np.random.seed()  # else all children draw the same numbers
    refresh_global_settings_context()


def _load() -> None:
    import transformers  # noqa: F401
    from diffusers.loaders import peft  # noqa: F401
    from transformers.models.clip import modeling_clip, tokenization_clip  # noqa: F401

    import flows.calibration
    import flows.campaign
    import flows.character_sheet
    import flows.deployments
    import flows.evaluation
    import flows.publish
    import flows.recall
    import flows.training
    import flows.tuning  # noqa: F401
    import ipadapter_engine.evaluation.likeness
    import ipadapter_engine.pipeline  # noqa: F401
    import studio.api.app  # noqa: F401
    from studio.cli.app import load_commands

    load_commands()
