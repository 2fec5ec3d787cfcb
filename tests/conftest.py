"""Fixtures every room's tests share."""

from __future__ import annotations

import importlib.util
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import msgspec
import pytest
import redis
import structlog
from hypothesis import HealthCheck, settings

from wire.messages import Detection, DetectionRecord
from wire.streams import detections_key
from wire.valkey import EmbeddedValkey

# A thread that outlives its test may log late: not into a stream that a capture of output closes.
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.__stderr__))

# Tests run side by side; PyTorch's threads in each would wait for one another's cores. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# An example's time says how busy the machine is, and nothing of the code; what is slow is found by benchmarks/.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session", autouse=True)
def _own_homes(tmp_path_factory: pytest.TempPathFactory, verdict_dir: Path) -> Iterator[None]:
    """Snapshots of cameras that tests run, and what was measured of their models, must not go to the user's folders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        patch.setenv("XDG_CACHE_HOME", str(verdict_dir.parent))
        yield


@pytest.fixture(scope="session")
def verdict_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default cache of verdicts in this process. Processes of one run share verdicts: a graph is tried once."""
    base = tmp_path_factory.getbasetemp()
    verdicts = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "trials"
    verdicts.mkdir(exist_ok=True)
    folder = tmp_path_factory.mktemp("cache") / "sparsecam"
    folder.mkdir()
    # Not the folder itself: it has the lock under which trials run one after the other, and tests need not wait so.
    (folder / "trials").symlink_to(verdicts)
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real videos, weights and data beside the checkout; tests that want it skip without it."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data: {SHARED} is not there")
    return SHARED


@pytest.fixture(scope="session")
def _valkey_server() -> Iterator[EmbeddedValkey]:
    # Not under tmp_path, which may be too long for a socket.
    with tempfile.TemporaryDirectory(prefix="sparsecam-") as folder, EmbeddedValkey(Path(folder) / "v") as server:
        yield server


@pytest.fixture
def valkey(_valkey_server: EmbeddedValkey) -> EmbeddedValkey:
    """A running, empty Valkey, one a test process; leave it running. Its address is `.url`."""
    with redis.Redis.from_url(_valkey_server.url) as client:
        client.flushall()
    return _valkey_server


@pytest.fixture
def own_valkey() -> Iterator[EmbeddedValkey]:
    """A running Valkey of this test alone: to kill, pause, stop and start again."""
    # "always": a kill -9 then loses nothing that was answered, however slow the disk is.
    with (
        tempfile.TemporaryDirectory(prefix="sparsecam-") as folder,
        EmbeddedValkey(Path(folder) / "v", fsync="always") as server,
    ):
        yield server


@pytest.fixture(scope="session")
def fill_with_detections() -> Callable[..., int]:
    """Fills the memory of a Redis, two megabytes more than it uses now, with entries of cameras; returns how many."""

    def fill(url: str, *cameras: str) -> int:
        number = 0
        with redis.Redis.from_url(url) as client:
            client.config_set("maxmemory", client.info("memory")["used_memory"] + 2_000_000)
            with pytest.raises(redis.exceptions.OutOfMemoryError):
                for number in itertools.count():
                    client.xadd(detections_key(cameras[number % len(cameras)]), {"v": "0", "d": b"x" * 2000})
            # What connections take counts too: without this one there would be room for a few writes.
            client.config_set("maxmemory", client.info("memory")["used_memory"] - 200_000)
        return number

    return fill


@pytest.fixture(scope="session")
def detection_record() -> Callable[..., DetectionRecord]:
    """Makes a DetectionRecord: `detection_record(seq, *labels, field=value...)`; frames are 100 ms apart."""

    def make(seq: int, *labels: str, **changes: object) -> DetectionRecord:
        captured_ns = 1_000_000_000 + seq * 100_000_000
        record = DetectionRecord(
            camera="door",
            session="s1",
            seq=seq,
            order=seq,
            broker="b1",
            worker="w1",
            model="m",
            event_us=1_700_000_000_000_000 + seq * 100_000,
            captured_ns=captured_ns,
            dispatched_ns=captured_ns + 1_000_000,
            inference_start_ns=captured_ns + 2_000_000,
            inference_end_ns=captured_ns + 12_000_000,
            source_height=1080,
            source_width=1920,
            detections=[Detection(label, 0, 0.9, (10.0, 20.0, 110.0, 220.0)) for label in labels],
        )
        return msgspec.structs.replace(record, **changes)

    return make


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    """`wait_until(condition, timeout_s=10)`: returns when the condition is true, fails when it does not come true."""

    def wait(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"did not come true in {timeout_s:g} s"
            time.sleep(0.005)

    return wait


@pytest.fixture(scope="session")
def graphs() -> ModuleType:
    """The builders of small real detectors in tests/graphs.py."""
    return _module("graphs")


@pytest.fixture(scope="session")
def cards() -> ModuleType:
    """The builders of models' cards in tests/cards.py."""
    return _module("cards")


def _module(name: str) -> ModuleType:
    """A file of this folder, which is no package."""
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"sparsecam_test_{name}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bright_box_model(graphs: ModuleType, tmp_path: Path) -> Path:
    """A real, quick ONNX detector of 320x320 and less: one box of class `bright` around whatever is bright."""
    path: Path = graphs.bright_box(tmp_path / "bright.onnx")
    return path
