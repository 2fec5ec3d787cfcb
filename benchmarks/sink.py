"""`python -m benchmarks.sink`: how many detections one sink process works through, and how soon an alert follows.

A real Valkey, a real sink process; tracker, five rules (presence, zone, line, dwell, count) and incidents on. Capacity:
streams filled beforehand, until all is acknowledged. Latency: detections at a given rate; from the moment before a
detection is sent until the alert about it arrives at a subscriber of the channel, so both ends' own time is in it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import redis

from sink.camera import Plan
from sink.incident_settings import IncidentSettings
from sink.settings import CountRule, DwellRule, LineRule, PresenceRule, SceneSettings, SinkSettings, ZoneRule
from sink.sink import GROUP, run_sink
from wire.alerts import ALERTS, from_json
from wire.messages import Detection, DetectionRecord
from wire.redis_link import Link, connect
from wire.settings import RedisSettings
from wire.streams import PUBLISH_ONCE, detections_key, publish_once
from wire.valkey import EmbeddedValkey

WIDTH, HEIGHT, FPS = 1920, 1080, 10
START_US = 1_700_000_000_000_000


def plan(cameras: list[str]) -> Plan:
    """Five rules a camera, one of each common kind; no alert is kept back."""
    scene = SceneSettings(
        zones={"porch": [(0.3, 0.3), (0.7, 0.3), (0.7, 1.0), (0.3, 1.0)]}, lines={"gate": [(0.5, 0.0), (0.5, 1.0)]}
    )
    common = {"cooldown_s": 0.0}
    return Plan(
        rules={
            "presence": PresenceRule(by="track", **common),
            "zone": ZoneRule(zone="porch", **common),
            "line": LineRule(line="gate", **common),
            "dwell": DwellRule(zone="porch", dwell_s=3, **common),
            "count": CountRule(over=100, **common),
        },
        scenes=dict.fromkeys(cameras, scene),
        incidents=IncidentSettings(merge_s=10, max_per_hour=1_000_000),
    )


def record(camera: str, seq: int, objects: int) -> DetectionRecord:
    """Walkers from left to right, each with a way and a pace of its own; one comes back every 20 s or so."""
    detections = []
    for number in range(objects):
        pace_px = 10 + 3 * (number % 5)
        x = (seq * pace_px + number * 211) % (WIDTH + 400) - 200
        y = 300 + (number * 137) % 600
        if 0 <= x < WIDTH - 60:
            detections.append(Detection("person", 0, 0.8, (float(x), float(y), x + 60.0, y + 160.0)))
    captured_ns = time.monotonic_ns()
    return DetectionRecord(
        camera, "s", seq, seq, "b", "w", "m", START_US + seq * 1_000_000 // FPS,
        captured_ns, captured_ns, captured_ns, captured_ns, HEIGHT, WIDTH, detections,
    )  # fmt: skip


@contextmanager
def sink_process(url: str, cameras: list[str]) -> Iterator[psutil.Process]:
    """A sink as `sparsecam up` runs it, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    process = context.Process(target=_run_sink, args=(url, cameras, stop))
    process.start()
    try:
        assert process.pid is not None
        yield psutil.Process(process.pid)
    finally:
        stop.set()
        process.join(20)


def _run_sink(url: str, cameras: list[str], stop: threading.Event) -> None:
    run_sink(SinkSettings(), plan(cameras), cameras, RedisSettings(url=url), stop)


def publish(link: Link, records: list[DetectionRecord]) -> None:
    """In batches, as a worker's outbox does."""
    link.send(("SCRIPT", "LOAD", PUBLISH_ONCE.source))
    for begin in range(0, len(records), 128):
        for reply in link.send(*(publish_once(one, 1_000_000) for one in records[begin : begin + 128])):
            if isinstance(reply, Exception):
                raise reply


def unfinished(client: redis.Redis, cameras: list[str]) -> int:
    """Entries not acknowledged yet."""
    total = 0
    for camera in cameras:
        groups = [one for one in client.xinfo_groups(detections_key(camera)) if one["name"] == GROUP.encode()]
        total += sum(one["pending"] + one["lag"] for one in groups) if groups else client.xlen(detections_key(camera))
    return total


def capacity(url: str, cameras: list[str], objects: int, frames: int) -> None:
    """Records a second when there is always more to do."""
    client = redis.Redis.from_url(url)
    client.flushall()
    link = Link(connect(RedisSettings(url=url)))
    for camera in cameras:
        publish(link, [record(camera, seq, objects) for seq in range(frames)])
    link.close()
    total = frames * len(cameras)
    with sink_process(url, cameras) as process:
        while not client.keys("sparsecam:lease:*"):  # until then it starts
            time.sleep(0.002)
        began_s, left, cpu = time.monotonic(), unfinished(client, cameras), process.cpu_times()
        while unfinished(client, cameras):
            time.sleep(0.01)
        took_s = time.monotonic() - began_s
        now = process.cpu_times()
    cpu_s = now.user + now.system - cpu.user - cpu.system
    print(
        f"{len(cameras)} cameras, {objects} objects: {left / took_s:.0f} records/s in wall time, "
        f"{left / cpu_s:.0f} a CPU second; {client.xlen(ALERTS)} alerts of {total} records"
    )


def latency(url: str, cameras: list[str], objects: int, rate: float, seconds: float) -> None:
    """From a detection sent to its alert received."""
    client = redis.Redis.from_url(url)
    client.flushall()
    arrived: list[tuple[str, int, float]] = []
    with sink_process(url, cameras) as process, client.pubsub() as channel:
        channel.subscribe(ALERTS)
        while not client.keys("sparsecam:lease:*"):
            time.sleep(0.01)
        time.sleep(1)
        # A process of its own: beside the sending, this one's receiving would be late.
        context = multiprocessing.get_context("spawn")
        sent: multiprocessing.Queue[dict[tuple[str, int], float]] = context.Queue()
        feeder = context.Process(target=_feed, args=(url, cameras, objects, rate, seconds, sent))
        cpu, began_s = process.cpu_times(), time.monotonic()
        feeder.start()
        while feeder.is_alive() and sent.empty():
            message = channel.get_message(timeout=0.5)
            if message and message["type"] == "message":
                now_s = time.monotonic()
                alert = from_json(message["data"])
                if alert.seq is not None:
                    arrived.append((alert.camera, alert.seq, now_s))
        past_s, now = time.monotonic() - began_s, process.cpu_times()
        share = (now.user + now.system - cpu.user - cpu.system) / past_s
        sent_s = sent.get(timeout=10)
        feeder.join()
    took_ms = [(now_s - sent_s[camera, seq]) * 1000 for camera, seq, now_s in arrived]
    places = statistics.quantiles(took_ms, n=1000)
    print(
        f"{len(cameras)} cameras, {objects} objects, {rate:.0f} records/s: {len(took_ms)} alerts; "
        f"p50 {places[499]:.1f} ms, p99 {places[989]:.1f} ms, longest {max(took_ms):.1f} ms; "
        f"sink {share:.0%} of a core"
    )


def _feed(
    url: str,
    cameras: list[str],
    objects: int,
    rate: float,
    seconds: float,
    sent: multiprocessing.Queue[dict[tuple[str, int], float]],
) -> None:
    sent_s: dict[tuple[str, int], float] = {}
    link = Link(connect(RedisSettings(url=url)))
    link.send(("SCRIPT", "LOAD", PUBLISH_ONCE.source))
    began_s = time.monotonic()
    for number in range(int(rate * seconds)):
        due_s = began_s + number / rate
        if (wait_s := due_s - time.monotonic()) > 0:
            time.sleep(wait_s)
        camera, seq = cameras[number % len(cameras)], number // len(cameras)
        command = publish_once(record(camera, seq, objects), 1_000_000)
        sent_s[camera, seq] = time.monotonic()
        link.send(command)
    time.sleep(0.5)
    sent.put(sent_s)
    link.close()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cameras", type=int, default=20)
    parser.add_argument("--objects", type=int, default=3, help="walkers a camera (default %(default)s)")
    parser.add_argument("--frames", type=int, default=1000, help="frames a camera, for capacity")
    parser.add_argument("--rate", type=float, default=200, help="records a second, for latency")
    parser.add_argument("--seconds", type=float, default=30, help="for latency")
    chosen = parser.parse_args()
    cameras = [f"camera-{number}" for number in range(chosen.cameras)]
    with tempfile.TemporaryDirectory() as folder, EmbeddedValkey(Path(folder) / "v") as server:
        capacity(server.url, cameras, chosen.objects, chosen.frames)
        latency(server.url, cameras, chosen.objects, chosen.rate, chosen.seconds)


if __name__ == "__main__":
    main()
