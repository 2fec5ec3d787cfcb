"""A whole site of real processes: `sparsecam up` on a config of the test's own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import redis
import yaml

from wire.health import HealthError, HealthReport, read_health
from wire.messages import DetectionRecord, decode, decoder
from wire.streams import detections_key
from wire.valkey import embedded_url

# Five are promised on a machine that has time for it (test_site measures them); here it runs other tests beside.
STOP_LIMIT_S = 30


class Site:
    """One `sparsecam up` with its config, folder and Valkey."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder = folder
        self.runtime = folder / "rt"
        self.path = folder / "sparsecam.yaml"
        metrics = {"metrics": {"enabled": False}}
        self.path.write_text(yaml.safe_dump({"runtime_dir": str(self.runtime), **metrics, **config}))
        self.log = folder / "up.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start everything; returns at once."""
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", "-m", "services.cli", "up", "--config", str(self.path)],
                stdout=out,
                stderr=out,
            )

    def stop(self) -> float:
        """SIGTERM, wait; returns the seconds it took."""
        if self._process is None:
            return 0.0
        began_s = time.monotonic()
        self._process.terminate()
        try:
            self._process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGABRT)  # faulthandler then tells where each thread is, in the log
            self._process.wait()
            raise
        finally:
            self._process = None
        return time.monotonic() - began_s

    def reports(self, role: str) -> list[HealthReport]:
        """What the processes of a role last said."""
        found = []
        for path in sorted((self.runtime / "health").glob(f"{role}-*.json")):
            with contextlib.suppress(HealthError):
                found.append(read_health(path))
        return found

    def cameras(self) -> dict[str, dict[str, Any]]:
        """Ingest's ledger and state by camera."""
        reports = self.reports("ingest")
        return reports[0].detail.get("cameras", {}) if reports else {}

    def kill(self, role: str, pick: int = 0) -> int:
        """kill -9 a process of the role that works."""
        working = [report.pid for report in self.reports(role) if report.healthy()]
        pid = working[pick % len(working)]
        os.kill(pid, signal.SIGKILL)
        return pid

    def redis(self) -> redis.Redis:
        """A client of the embedded Valkey."""
        return redis.Redis.from_url(embedded_url(self.runtime / "valkey"))

    def detected(self, camera: str) -> Counter[tuple[str, int]]:
        """How often each (session, seq) stands in the camera's stream."""
        records = decoder(DetectionRecord)
        with self.redis() as client:
            entries = client.xrange(detections_key(camera))
        found = [decode(records, fields[b"d"]) for _, fields in entries]
        return Counter((record.session, record.seq) for record in found)


def balanced(camera: dict[str, Any]) -> bool:
    """captured = detected + dropped by cause + in flight."""
    dropped = sum(count for key, count in camera.items() if key.startswith("dropped_"))
    return bool(camera["captured"] == camera["detected"] + dropped + camera["in_flight"])


@pytest.fixture
def law() -> Callable[[dict[str, Any]], bool]:
    """The conservation law of a camera's counts as ingest reports them."""
    return balanced


@pytest.fixture
def site(bright_box_model: Path, verdict_dir: Path) -> Iterator[Callable[..., Site]]:
    """Makes and starts a site: `site(cameras={...}, detector={...}, ...)`; stops it at the end."""
    sites: list[Site] = []
    with contextlib.ExitStack() as folders:

        def make(**config: Any) -> Site:
            # Not under tmp_path, which may be too long for a socket.
            folder = Path(folders.enter_context(tempfile.TemporaryDirectory(prefix="sc-")))
            detector = {
                "model": str(bright_box_model),
                "engine": "onnxruntime",
                "workers": 2,
                "cache_dir": str(verdict_dir),
                **config.pop("detector", {}),
            }
            made = Site(folder, {"detector": detector, **config})
            sites.append(made)
            made.start()
            return made

        yield make
        for one in sites:
            with contextlib.suppress(subprocess.TimeoutExpired):
                one.stop()
            print(one.log.read_text()[-6000:])  # shown when the test fails


@pytest.fixture
def clip(tmp_path: Path) -> Callable[..., Path]:
    """Writes an H.264 clip of a bright box that moves over grey: `clip(frames, fps=25, gop=25)`."""

    def write(frames: int, *, fps: int = 25, gop: int = 25, width: int = 320, height: int = 192) -> Path:
        path = tmp_path / f"box-{frames}-{fps}-{width}x{height}.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream(
                "libx264", rate=fps, options={"preset": "ultrafast", "g": str(gop), "bf": "0"}
            )
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for index in range(frames):
                picture = np.full((height, width, 3), 90, np.uint8)
                left = 20 + (index * 4) % (width - 90)
                picture[60:120, left : left + 60] = 250
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
            container.mux(stream.encode())
        return path

    return write
