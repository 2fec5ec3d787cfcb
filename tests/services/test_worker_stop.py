"""A worker that is told to stop amid a frame that will not end leaves in time, and its frame goes to another."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from services.config import Config, load
from wire.broker import Broker
from wire.messages import FrameHeader
from wire.producer import FrameLink
from wire.valkey import EmbeddedValkey

ROOT = Path(__file__).parents[2]
# An engine that compiles a new shape can be interrupted as little; how long a real one takes is the machine's affair.
STUCK_WORKER = f"""
import sys, time
sys.path[:0] = [{str(ROOT)!r}]
from detector.detector import Detector
Detector.detect_batch = lambda *_: time.sleep(600)
from services.cli import main
main()
"""


@pytest.fixture
def config(bright_box_model: Path, valkey: EmbeddedValkey) -> Iterator[Config]:
    with tempfile.TemporaryDirectory(prefix="sc-") as folder:  # short: Unix sockets lie in it
        path = Path(folder) / "sparsecam.yaml"
        facts = {
            "runtime_dir": f"{folder}/rt",
            "redis": {"url": valkey.url},
            "metrics": {"enabled": False},
            "detector": {"model": str(bright_box_model), "engine": "onnxruntime"},
        }
        path.write_text(yaml.safe_dump(facts))
        yield load(path, {})


@pytest.fixture
def broker(config: Config) -> Iterator[Broker]:
    config.runtime_dir.mkdir(mode=0o700)
    broker = Broker(config.frames_endpoint, config.workers_endpoint, max_age_ms=500)
    stop = threading.Event()
    thread = threading.Thread(target=broker.run, args=(stop,))
    thread.start()
    yield broker
    stop.set()
    thread.join()


def test_it_ends_within_five_seconds_and_says_goodbye(
    config: Config, broker: Broker, wait_until: Callable[..., None]
) -> None:
    command = [
        sys.executable,
        "-c",
        STUCK_WORKER,
        "run",
        "detector",
        "-c",
        str(config.runtime_dir.parent / "sparsecam.yaml"),
    ]
    worker = subprocess.Popen(command, cwd=config.runtime_dir.parent, env=dict(os.environ))
    link = FrameLink(config.frames_endpoint, lossless_window=2)
    link.start()
    try:
        spec = link.wait_spec(threading.Event(), 120)
        assert spec is not None
        port = link.camera("c", lossless=True)
        port.ledger.captured()
        pixels = np.zeros((spec.height * 3 // 2, spec.width), np.uint8)
        size = spec.height, spec.width
        port.send(
            FrameHeader("c", port.session, 1, True, 0, time.monotonic_ns(), "i420", *size, *size, 1.0, 0, 0), pixels
        )
        wait_until(lambda: broker.stats.dispatched["c"] == 1)
        told_s = time.monotonic()
        worker.terminate()
        assert worker.wait(30) == 0
        assert time.monotonic() - told_s < 5
        wait_until(lambda: broker.stats.redispatched == 1)
        assert broker.stats.workers_lost == 0  # it left in good order
    finally:
        worker.kill()
        worker.wait()
        link.close(0)
