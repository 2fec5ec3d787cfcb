"""A folder short enough for unix sockets, and the running of commands as a person would."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import structlog
from typer.testing import CliRunner

from services.cli import app

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder() -> Iterator[Path]:
    """As tmp_path, but with a path that leaves room for a socket's name."""
    path = Path(tempfile.mkdtemp(prefix="sc-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def config_file(folder: Path) -> Path:
    """A config without cameras or model, whose processes meet in `folder`."""
    path = folder / "sparsecam.yaml"
    path.write_text(f"runtime_dir: {folder}/run\nmetrics: {{enabled: false}}\n")
    return path


@pytest.fixture
def sparsecam(folder: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command to its end, in an environment that knows nothing of this machine's own Sparsecam."""

    def run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "services.cli", *arguments],
            cwd=folder,
            env={**clean_environment(), "XDG_RUNTIME_DIR": str(folder), **(env or {})},
            capture_output=True,
            text=True,
            timeout=180,  # nothing takes a tenth of it on an idle machine
            check=False,
        )

    return run


@pytest.fixture
def invoke(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """As `sparsecam`, inside this process: for commands that end by themselves and start nothing."""
    monkeypatch.chdir(folder)
    for name in set(os.environ) - set(clean_environment()):
        monkeypatch.delenv(name)
    for name, value in {**clean_environment(), "XDG_RUNTIME_DIR": str(folder)}.items():
        monkeypatch.setenv(name, value)
    root = logging.getLogger()
    handlers, level, config = list(root.handlers), root.level, structlog.get_config()

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        result = CliRunner().invoke(app, arguments)
        return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)

    yield run
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**config)


@pytest.fixture
def environment() -> dict[str, str]:
    """This process's environment without Sparsecam's own variables."""
    return clean_environment()


def clean_environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SPARSECAM", "REDIS_URL"))}
    return {**kept, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb", "PYTHONPATH": str(ROOT)}


@pytest.fixture
def moving_light(folder: Path) -> Path:
    """A real H.264 video of 40 frames, 160x90 at 10 fps: a white square on grey that wanders to the right."""
    path = folder / "light.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 160, 90, "yuv420p"
        for index in range(40):
            picture = np.full((90, 160, 3), 60, dtype=np.uint8)
            picture[30:60, 10 + 2 * index : 40 + 2 * index] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        container.mux(stream.encode(None))
    return path
