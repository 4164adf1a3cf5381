"""The embedded server, shared by several processes, any of which may be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from asset_store.database import open_database
from asset_store.embedded import EmbeddedServer
from asset_store.errors import DatabaseUnreachable
from tests.database import HEAD

ROOT = Path(__file__).resolve().parents[2]
OPEN_AND_WAIT = """
import sys, pathlib
from asset_store.database import open_database
database = open_database(None, pathlib.Path(sys.argv[1]))
database.migrate()
print("open", flush=True)
sys.stdin.readline()
with database.direct() as connection:
    print(connection.execute("SELECT count(*) FROM brands").fetchone()[0], flush=True)
if sys.argv[2] == "close":
    database.close()
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A folder whose server is stopped at the end, whatever the test left."""
    yield tmp_path / "a home"
    if (tmp_path / "a home").exists():
        EmbeddedServer(tmp_path / "a home").close()


def opener(home: Path, how: str = "close") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", OPEN_AND_WAIT, str(home), how],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def says(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go_on(process: subprocess.Popen[str]) -> str:
    """Let it ask its question; answers what it says and waits for its end."""
    said = process.communicate("\n", timeout=60)[0].strip()
    assert process.returncode == 0
    return said


def server_id(home: Path) -> int | None:
    try:
        return int((home / "postgres" / "postmaster.pid").read_text().splitlines()[0])
    except FileNotFoundError:
        return None


def is_alive(process_id: int) -> bool:
    return bool(psutil.pid_exists(process_id) and psutil.Process(process_id).status() != psutil.STATUS_ZOMBIE)


def test_processes_that_open_at_once_share_a_server_and_the_last_stops_it(home: Path) -> None:
    processes = [opener(home, how) for how in ("close", "exit", "close")]
    assert [says(process) for process in processes] == ["open"] * 3
    server = server_id(home)
    assert server is not None
    assert is_alive(server)
    for process in processes:
        assert is_alive(server)
        assert go_on(process) == "0"
    assert not is_alive(server)
    assert server_id(home) is None


def test_a_killed_process_breaks_neither_the_others_nor_the_next(home: Path) -> None:
    killed, other = opener(home), opener(home)
    assert says(killed) == says(other) == "open"
    server = server_id(home)
    killed.kill()
    killed.wait()
    with open_database(None, home) as database, database.direct() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
        assert server_id(home) == server
    assert go_on(other) == "0"
    assert server_id(home) is None


def test_a_server_whose_users_were_all_killed_is_taken_over(home: Path) -> None:
    killed = opener(home)
    assert says(killed) == "open"
    server = server_id(home)
    killed.kill()
    killed.wait()
    assert server is not None
    assert is_alive(server)
    with open_database(None, home) as database:
        assert server_id(home) == server
        assert database.revision() is not None
    assert not is_alive(server)


def test_a_killed_server_recovers_at_the_next_start(home: Path) -> None:
    with open_database(None, home) as database, database.transaction():
        database.migrate()
        server = server_id(home)
        assert server is not None
        os.kill(server, signal.SIGKILL)
        with open_database(None, home) as again:
            assert again.revision() == HEAD
            assert server_id(home) != server


def test_a_lock_file_whose_process_id_went_to_another_program_is_no_obstacle(home: Path) -> None:
    open_database(None, home).close()
    for name in ("postmaster.pid", ".s.PGSQL.5432.lock"):
        stale = home / "postgres" / name
        stale.write_text(f"{os.getpid()}\n{home / 'postgres'}\n1\n5432\n{home / 'postgres'}\n\n1 1\nready\n")
        stale.chmod(0o644)
    with open_database(None, home) as database:
        assert database.revision() is None


@pytest.mark.parametrize("sign", ["postgres.new-*", "postgres.new-*/PG_VERSION", "postgres", "postgres/postmaster.pid"])
def test_a_process_killed_while_the_server_is_made_or_starts_leaves_nothing_half_done(home: Path, sign: str) -> None:
    killed = opener(home)
    give_up_at = time.monotonic() + 60
    while not list(home.glob(sign)) and time.monotonic() < give_up_at:
        time.sleep(0.002)
    killed.kill()
    assert killed.communicate()[0] == ""
    for _ in range(2):
        with open_database(None, home) as database:
            database.migrate()
            assert database.revision() == HEAD
    assert list(home.glob("postgres.new-*")) == []


def test_a_path_too_long_for_a_socket_is_no_obstacle(tmp_path: Path) -> None:
    home = tmp_path / ("long" * 30)
    with open_database(None, home) as one, open_database(None, home) as two:
        assert one.url == two.url
        assert str(home) not in str(one.url.query["host"])


def test_a_socket_folder_that_a_killed_process_left_half_made_is_no_obstacle(tmp_path: Path) -> None:
    home = tmp_path / ("long" * 30)
    with open_database(None, home) as database:
        folder = Path(str(database.url.query["host"]))
    for left in folder.iterdir():
        left.unlink()
    os.chown(folder, os.geteuid(), os.getegid())
    with open_database(None, home) as database:
        assert Path(str(database.url.query["host"])) == folder


def test_a_forked_child_that_closes_does_not_let_go_for_its_parent(home: Path) -> None:
    server = EmbeddedServer(home)
    child = os.fork()
    if child == 0:
        server.close()
        os._exit(0)
    os.waitpid(child, 0)
    with open_database(None, home):
        pass
    assert server_id(home) is not None
    server.close()
    assert server_id(home) is None


def test_a_folder_that_is_a_file_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatabaseUnreachable) as refused:
        open_database(None, tmp_path / "file")
    assert refused.value.next_step


def test_a_folder_of_another_release_of_postgresql_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "PG_VERSION").write_text("16\n")
    with pytest.raises(DatabaseUnreachable, match="PostgreSQL 16"):
        open_database(None, tmp_path)
