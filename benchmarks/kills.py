"""`python -m benchmarks.kills`: does every incident reach its receiver, whatever dies meanwhile?

A real Valkey, a real sink process (`sparsecam run sink`) with a webhook, a real HTTP receiver. While the incidents
happen Valkey and the sink are killed and started again, and the receiver is away for a minute. What has to come is
worked out beforehand from the same frames without any of this. Exit code 1 when an incident was not delivered, or was
delivered under a key that is not its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import redis

from services.config import Config
from services.sink import sink_plan
from sink.camera import CameraWork
from wire.alerts import ALERTS, from_json
from wire.messages import Detection, DetectionRecord
from wire.redis_link import Link, RedisAway, connect
from wire.settings import RedisSettings
from wire.streams import PUBLISH_ONCE, publish_once
from wire.valkey import EmbeddedValkey

ROOT = Path(__file__).resolve().parents[1]
START_US = 1_700_000_000_000_000
# Half a second seen, then gone for longer than the merge window of a second (10 frames a second).
SEEN_FRAMES, CYCLE_FRAMES = 5, 20
BATCH = 40  # records sent at once: a worker's outbox after a pause
PATIENCE_S = 120.0  # after the last frame


@dataclass(frozen=True)
class Outcome:
    """What became of it all."""

    incidents: int
    seconds: float
    valkey_kills: int
    sink_kills: int
    receiver_away_s: float
    in_stream: int  # alerts in the stream
    twice_in_stream: int
    delivered: int  # incidents whose opening the receiver has
    lost: int
    repeated: int  # deliveries of an alert beyond its first, all under its own key
    foreign: int  # deliveries under a key that no alert has

    @property
    def good(self) -> bool:
        """Every incident was delivered, and nothing came that is none."""
        return self.delivered == self.incidents and not (self.lost or self.foreign or self.twice_in_stream)


class Receiver:
    """Takes POSTs and counts their keys; away, its port is closed."""

    def __init__(self) -> None:
        self.keys: Counter[str] = Counter()
        self.wrong = 0  # the key of the header is not that of the alert
        self._server: ThreadingHTTPServer | None = None
        self.port = 0

    def come(self) -> None:
        """Be there."""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                alert = from_json(self.rfile.read(int(self.headers["content-length"])))
                receiver.keys[alert.id] += 1
                receiver.wrong += self.headers["webhook-id"] != alert.id
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def go(self) -> None:
        """Be away."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


def configuration(cameras: int, url: str, port: int, folder: Path) -> dict[str, Any]:
    """Of the sink under test."""
    return {
        "runtime_dir": str(folder),
        "redis": {"url": url, "timeout_s": 1},
        "cameras": {f"camera-{number}": {"source": "sim://street"} for number in range(cameras)},
        "rules": {"person": {"confirm_frames": 2, "window_frames": 3, "cooldown_s": 0}},
        "incidents": {"merge_s": 1, "max_per_hour": 1_000_000, "system": {"enabled": False}},
        "outputs": {
            "receiver": {
                "kind": "webhook",
                "url": f"http://127.0.0.1:{port}/",
                "allow_private": True,
                "retry_first_s": 0.2,
                "retry_most_s": 2,
            }
        },
        "media": {"snapshots": False},
        "metrics": {"enabled": False},
    }


def frames(camera: str, incidents: int) -> Iterator[DetectionRecord]:
    """Somebody comes and goes, `incidents` times."""
    for seq in range(incidents * CYCLE_FRAMES):
        seen = seq % CYCLE_FRAMES < SEEN_FRAMES
        detections = [Detection("person", 0, 0.9, (100.0, 100.0, 160.0, 260.0))] if seen else []
        yield DetectionRecord(
            camera, "s", seq, seq, "b", "w", "m", START_US + seq * 100_000, 0, 0, 0, 0, 1080, 1920, detections
        )


class Feeder(threading.Thread):
    """A worker's outbox: sends every record until Redis has it, in about `seconds` for all."""

    def __init__(self, url: str, records: list[DetectionRecord], seconds: float) -> None:
        super().__init__(name="feeder", daemon=True)
        self._url = url
        self._records = records
        self._step_s = seconds / len(records)

    def run(self) -> None:
        """Send them all."""
        link: Link | None = None
        begun_s, sent = time.monotonic(), 0
        while sent < len(self._records):
            time.sleep(max(0.0, begun_s + sent * self._step_s - time.monotonic()))
            batch = [publish_once(one, 1_000_000) for one in self._records[sent : sent + BATCH]]
            try:
                link = link or Link(connect(RedisSettings(url=self._url, timeout_s=1)))
                replies = link.send(("SCRIPT", "LOAD", PUBLISH_ONCE.source), *batch)
            except (redis.RedisError, RedisAway, OSError):
                link = None
                time.sleep(0.05)
                continue
            if not any(isinstance(reply, Exception) for reply in replies):
                sent += BATCH


@contextmanager
def sink(config: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """A sink process, in a list of one so that it can be replaced; ended on the way out."""
    running = [start_sink(config)]
    try:
        yield running
    finally:
        running[0].kill()
        running[0].wait()


def start_sink(config: Path) -> subprocess.Popen[bytes]:
    """As a service manager does."""
    command = [sys.executable, "-m", "services.cli", "run", "sink", "-c", str(config), "--log-level", "error"]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)


def play(incidents: int, cameras: int, kills: int, seconds: float, away_s: float, folder: Path) -> Outcome:
    """The whole course. `seconds` is how long the frames take; the kills are spread over them."""
    receiver = Receiver()
    receiver.come()
    each = incidents // cameras
    # "always": what Valkey has answered must survive its being killed, however slow the disk is.
    with EmbeddedValkey(folder / "v", fsync="always") as server:
        config = configuration(cameras, server.url, receiver.port, folder / "run")
        path = folder / "sparsecam.yaml"
        path.write_text(json.dumps(config))  # JSON is YAML
        plan = sink_plan(Config.model_validate(config))
        by_camera = {name: list(frames(name, each)) for name in config["cameras"]}
        expected = {
            alert.id: alert.event
            for name, records in by_camera.items()
            for work in [CameraWork(name, plan)]
            for record in records
            for alert in work.step(record)
        }
        records = [one for together in zip(*by_camera.values(), strict=True) for one in together]
        begun_s = time.monotonic()
        with sink(path) as running:
            # An output is told of what happens from its first start on.
            _wait(lambda: bool(_try(server, lambda client: client.xinfo_groups(ALERTS))), PATIENCE_S)
            feeder = Feeder(server.url, records, seconds)
            feeder.start()
            away = threading.Thread(target=_away, args=(receiver, seconds * 0.2, away_s))
            away.start()
            for _ in range(kills):
                time.sleep(seconds / (2 * kills + 1))
                running[0].kill()
                running[0].wait()
                running[0] = start_sink(path)
                time.sleep(seconds / (2 * kills + 1))
                _kill_valkey(server)
            feeder.join()
            away.join()
            opened = {key for key, event in expected.items() if event == "opened"}
            _wait(lambda: opened <= receiver.keys.keys() and len(_told(server)) >= len(expected), PATIENCE_S)
            told = _told(server)
        taken_s = time.monotonic() - begun_s
    receiver.go()
    keys = receiver.keys
    return Outcome(
        incidents=len(opened),
        seconds=round(taken_s, 1),
        valkey_kills=kills,
        sink_kills=kills,
        receiver_away_s=away_s,
        in_stream=len(told),
        twice_in_stream=len(told) - len(set(told)),
        delivered=len(opened & keys.keys()),
        lost=len(opened - keys.keys()) + len(expected.keys() - set(told)),
        repeated=sum(count - 1 for count in keys.values()),
        foreign=len(keys.keys() - expected.keys()) + receiver.wrong,
    )


def _away(receiver: Receiver, from_s: float, for_s: float) -> None:
    time.sleep(from_s)
    receiver.go()
    time.sleep(for_s)
    receiver.come()


def _kill_valkey(server: EmbeddedValkey) -> None:
    pid = server.pid
    assert pid is not None
    subprocess.run(["kill", "-9", str(pid)], check=True)
    _wait(lambda: server.pid is None, 10)
    server.start()


def _told(server: EmbeddedValkey) -> list[str]:
    entries = _try(server, lambda client: client.xrange(ALERTS)) or []
    return [from_json(fields[b"d"]).id for _, fields in entries]


def _try(server: EmbeddedValkey, ask: Any) -> Any:
    try:
        with redis.Redis.from_url(server.url) as client:
            return ask(client)
    except (redis.RedisError, OSError):
        return None


def _wait(condition: Any, at_most_s: float) -> None:
    """Until it is true, or not any longer."""
    until_s = time.monotonic() + at_most_s
    while not condition() and time.monotonic() < until_s:
        time.sleep(0.1)


def main(arguments: list[str] | None = None) -> int:
    """See the module's description."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--incidents", type=int, default=1000)
    parser.add_argument("--cameras", type=int, default=10)
    parser.add_argument("--kills", type=int, default=5, help="of the sink, and of Valkey")
    parser.add_argument("--seconds", type=float, default=100, help="how long the incidents take")
    parser.add_argument("--away", type=float, default=60, help="seconds in which the receiver is away")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="sparsecam-") as folder:
        outcome = play(chosen.incidents, chosen.cameras, chosen.kills, chosen.seconds, chosen.away, Path(folder))
    print(json.dumps(asdict(outcome) | {"good": outcome.good}, indent=2))
    return 0 if outcome.good else 1


if __name__ == "__main__":
    sys.exit(main())
