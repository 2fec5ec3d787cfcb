"""The embedded Valkey: private, durable, never left behind, never two on the same data."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import redis

from wire.valkey import EmbeddedValkey, ValkeyError, embedded_url


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sparsecam-") as path:
        yield Path(path) / "v"


def client(server: EmbeddedValkey) -> redis.Redis:
    return redis.Redis.from_url(server.url)


def test_data_survives_a_stop_and_a_start(folder: Path) -> None:
    server = EmbeddedValkey(folder)
    server.start()
    client(server).set("a", "1")
    begun = time.monotonic()
    server.stop()
    assert time.monotonic() - begun < 3
    assert server.pid is None
    assert not server.socket_path.exists()
    with server:
        assert client(server).get("a") == b"1"


def test_data_survives_kill_9(own_valkey: EmbeddedValkey, wait_until: Callable[..., None]) -> None:
    client(own_valkey).set("a", "1")
    assert own_valkey.pid is not None
    os.kill(own_valkey.pid, signal.SIGKILL)
    wait_until(lambda: own_valkey.pid is None)
    own_valkey.start()
    assert client(own_valkey).get("a") == b"1"


def test_a_frozen_server_is_killed_when_it_does_not_stop(folder: Path) -> None:
    server = EmbeddedValkey(folder)
    server.start()
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    begun = time.monotonic()
    server.stop(timeout_s=0.3)
    assert time.monotonic() - begun < 2
    assert server.pid is None


def test_a_second_server_on_the_same_data_is_refused(folder: Path) -> None:
    with EmbeddedValkey(folder) as first:
        with pytest.raises(ValkeyError, match="another Valkey already runs on"):
            EmbeddedValkey(folder).start(timeout_s=0.2)
        assert client(first).ping()


def test_the_server_dies_when_its_parent_is_killed(folder: Path, wait_until: Callable[..., None]) -> None:
    program = (
        "import sys, time; from pathlib import Path; from wire.valkey import EmbeddedValkey\n"
        "server = EmbeddedValkey(Path(sys.argv[1])); server.start()\n"
        "print('pid', server.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as parent:
        assert parent.stdout is not None
        pid = next(int(line.split()[1]) for line in parent.stdout if line.startswith("pid "))
        assert psutil.pid_exists(pid)
        parent.kill()
        wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    # and its data is free for the next one
    with EmbeddedValkey(folder) as server:
        assert client(server).ping()


def test_the_server_outlives_the_thread_that_started_it(folder: Path) -> None:
    server = EmbeddedValkey(folder)
    starter = threading.Thread(target=server.start)
    starter.start()
    starter.join()
    time.sleep(0.2)  # the kernel would send the signal at once
    assert client(server).ping()
    server.stop()


def test_a_path_too_long_for_a_socket_is_refused_before_anything_starts(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    with pytest.raises(ValkeyError, match=r"107.*shorter folder"):
        EmbeddedValkey(long)
    assert not long.exists()


def test_only_the_owner_can_enter_the_folder(folder: Path) -> None:
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    with EmbeddedValkey(folder) as server:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE(server.socket_path.stat().st_mode) & 0o077 == 0


def test_a_folder_that_someone_else_may_control_is_refused(folder: Path, tmp_path: Path) -> None:
    folder.symlink_to(tmp_path)
    with pytest.raises(ValkeyError, match="not a folder of user"):
        EmbeddedValkey(folder).start()


@pytest.mark.parametrize("name", ["a b", 'a"b', "a\\b", "a%20b", "a#b?c", "ä"])
def test_any_folder_name_works(folder: Path, name: str) -> None:
    odd = folder / name
    with EmbeddedValkey(odd) as server:
        assert server.url == embedded_url(odd)
        assert client(server).set("a", "1")
        assert (odd / "appendonlydir").is_dir()


def test_dangerous_commands_are_off(own_valkey: EmbeddedValkey) -> None:
    with client(own_valkey) as connection:
        for command in (("DEBUG", "SEGFAULT"), ("CONFIG", "SET", "dir", "/"), ("MODULE", "LOAD", "/x.so")):
            with pytest.raises(redis.ResponseError):
                connection.execute_command(*command)
        assert connection.ping()


def test_a_full_server_refuses_writes_and_forgets_nothing(folder: Path) -> None:
    with EmbeddedValkey(folder, max_memory_mb=4) as server, client(server) as connection:
        connection.set("first", "1")
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            for number in range(100):
                connection.set(f"fill-{number}", b"x" * 100_000)
        assert connection.get("first") == b"1"


def test_a_server_that_cannot_start_says_why(folder: Path) -> None:
    with EmbeddedValkey(folder):
        pass
    next((folder / "appendonlydir").glob("*.manifest")).write_text("rubbish\n")
    with pytest.raises(ValkeyError, match=r"ended at once; the end of .*valkey.log:(.|\n)*rubbish"):
        EmbeddedValkey(folder).start()
