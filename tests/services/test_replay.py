"""`replay` tells what the rules would have told: the same each time, and the same as the live sink."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import pytest

from services.config import load
from services.sink import sink_plan
from sink.sink import Sink
from wire.alerts import ALERTS
from wire.messages import Detection, DetectionRecord
from wire.outbox import Outbox
from wire.recording import Recorded, RecordingWriter
from wire.redis_link import connect
from wire.valkey import EmbeddedValkey

Run = Callable[..., subprocess.CompletedProcess[str]]
Alert = dict[str, object]

CONFIG = """
cameras:
  yard: {source: yard.mp4}
  door: {source: door.mp4}
scenes:
  yard:
    zones: {right: [[0.5, 0.0], [1.0, 0.0], [1.0, 1.0], [0.5, 1.0]]}
detector: {engine: onnxruntime}
rules:
  any: {kind: presence, labels: [bright], cooldown_s: 0}
  on-the-right: {kind: zone, cameras: [yard], labels: [bright], zone: right}
"""


def alerts_of(done: subprocess.CompletedProcess[str]) -> list[Alert]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def config(folder: Path) -> Path:
    path = folder / "sparsecam.yaml"
    path.write_text(CONFIG)
    return path


def walk(make: Callable[..., DetectionRecord], camera: str, count: int) -> list[DetectionRecord]:
    """Something bright that goes from the left to the right and stays away now and then, at 10 frames a second."""
    records = []
    for seq in range(count):
        left = 10 + seq % 400 * 4.0
        seen = [Detection("bright", 0, 0.9, (left, 400.0, left + 100, 700.0))] if seq % 400 < 250 else []
        records.append(make(seq, camera=camera, detections=seen))
    return records


def save(path: Path, records: list[DetectionRecord]) -> Path:
    writer = RecordingWriter(path, replace=True)
    for number, record in enumerate(records):
        writer.write(Recorded(f"{1_700_000_000_000 + number * 10}-0", record))
    writer.close()
    return path


def test_a_video_gives_the_same_alerts_and_picture_byte_for_byte(
    sparsecam: Run, folder: Path, config: Path, moving_light: Path, bright_box_model: Path
) -> None:
    def play(*options: str) -> subprocess.CompletedProcess[str]:
        command = ("replay", f"yard={moving_light}", "-m", str(bright_box_model), "--timeline", "t.png", *options)
        done = sparsecam(*command)
        assert done.returncode == 0, done.stderr
        return done

    first = play("--json")
    picture = (folder / "t.png").read_bytes()
    (folder / "t.png").unlink()
    again = play("--json")
    assert (again.stdout, (folder / "t.png").read_bytes()) == (first.stdout, picture)
    opened = [one for one in alerts_of(first) if one["event"] == "opened"]
    assert {one["rule"] for one in opened} == {"any", "on-the-right"}
    assert {one["camera"] for one in opened} == {"yard"}
    # The square's foot is in the middle of the picture (x = 80) in frame 28 of 10 a second.
    (entered,) = [one for one in opened if one["rule"] == "on-the-right"]
    assert "2001-01-01T12:00:02.7" < str(entered["event_time"]) < "2001-01-01T12:00:03.3"
    assert entered["detection_ms"] is None and entered["latency_ms"] is None
    assert "40 frames" in first.stderr
    assert cv2.imread(str(folder / "t.png")).shape[1] == 1280


def test_a_recording_tells_what_the_live_sink_told(
    invoke: Run,
    folder: Path,
    config: Path,
    valkey: EmbeddedValkey,
    detection_record: Callable[..., DetectionRecord],
    wait_until: Callable[..., None],
) -> None:
    config.write_text(f"{CONFIG}\nredis: {{url: '{valkey.url}'}}\n")
    loaded = load(config, {})
    records = walk(detection_record, "yard", 900) + walk(detection_record, "door", 500)
    outbox = Outbox(lambda: connect(loaded.redis), 10_000, maxlen=10_000)
    for record in records:
        outbox.put(record)
    outbox.close(10.0)
    sink = Sink(loaded.sink, sink_plan(loaded), loaded.cameras, loaded.redis)
    stop = threading.Event()
    thread = threading.Thread(target=sink.run, args=(stop,))
    thread.start()
    wait_until(lambda: sink.snapshot().read == len(records) and not sink.snapshot().alerts_waiting, 20)
    stop.set()
    thread.join(10)
    with connect(loaded.redis) as client:
        live = [json.loads(fields[b"d"]) for _, fields in client.xrange(ALERTS)]
    assert invoke("record", "r.msgpack", "--no-follow").returncode == 0
    replayed = alerts_of(invoke("replay", "r.msgpack", "--json"))
    of_cameras = [one for one in live if not str(one["rule"]).startswith("system.")]
    assert len(of_cameras) > 10
    for camera in ("yard", "door"):
        # Nobody takes pictures of a replay, and it is not late.
        apart = {"latency_ms": None, "snapshot": None, "clip": None}
        told = [{**one, **apart} for one in of_cameras if one["camera"] == camera]
        would = [one for one in replayed if one["camera"] == camera]
        assert would[: len(told)] == told
        # The replay knows that this was all, and closes what the live sink leaves open.
        assert {one["event"] for one in would[len(told) :]} <= {"closed"}


@pytest.mark.parametrize("name", ["r.jsonl", "r.msgpack"])
def test_a_recording_gives_the_same_alerts_in_whatever_order_workers_finished(
    name: str, invoke: Run, folder: Path, config: Path, detection_record: Callable[..., DetectionRecord]
) -> None:
    records = walk(detection_record, "yard", 600)
    in_order = invoke("replay", str(save(folder / name, records)), "--json")
    lots = random.Random(1)
    shuffled = [one for _, one in sorted((record.seq + lots.uniform(0, 5), record) for record in records)]
    again = invoke("replay", str(save(folder / name, [*shuffled, *shuffled[-3:]])), "--json")
    assert again.stdout == in_order.stdout
    assert len(alerts_of(in_order)) >= 6
    assert "3 twice" in again.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("replay", "light.mp4"),
        ("bench", "pipeline", "-m", "m.onnx", "-s", "light.mp4"),
        ("plan", "-m", "m.onnx", "--cameras", "1", "--fps", "5"),
    ],
)
def test_an_unknown_engine_is_refused_with_those_there_are(
    invoke: Run, folder: Path, config: Path, command: tuple[str, ...]
) -> None:
    done = invoke(*command, "--engine", "nope")
    assert done.returncode == 2, done.stderr
    said = " ".join(done.stderr.replace("│", " ").split())
    assert all(word in said for word in ("--engine", "'nope'", "'auto'", "'torch'")), said


def test_lines_stand_in_the_order_in_which_they_were_told(
    invoke: Run, folder: Path, config: Path, detection_record: Callable[..., DetectionRecord]
) -> None:
    recording = str(save(folder / "r.msgpack", walk(detection_record, "yard", 900)))
    lines = [line for line in invoke("replay", recording).stdout.splitlines() if line[:2] == "0:"]
    told = [line.split()[0] for line in lines]
    assert told == sorted(told)
    closed = [line for line in lines if line.split()[1] == "closed"]
    assert len(closed) > 2
    # The incident was seen last in frame 249, and is over when the merge window of 30 s is.
    assert closed[0].startswith("0:00:55.000  closed ") and closed[0].endswith("  last seen 0:00:24.900")
    assert not any("last seen" in line for line in lines if line not in closed)
    # What subscribers get has the time of the event itself, in either form the same alerts.
    alerts = alerts_of(invoke("replay", recording, "--json"))
    assert [str(one["event"]) for one in alerts] == [line.split()[1] for line in lines]
    (first, *_) = (str(one["event_time"]) for one in alerts if one["event"] == "closed")
    assert first == "2023-11-14T22:13:44.900000Z"


def test_a_terminal_is_shown_how_far_it_has_come(
    folder: Path, config: Path, detection_record: Callable[..., DetectionRecord]
) -> None:
    recording = str(save(folder / "r.msgpack", walk(detection_record, "yard", 600)))
    command = [sys.executable, "-m", "services.cli", "replay", recording, "--json"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    ours, theirs = pty.openpty()
    on_terminal = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that a terminal has no other end any more
        while piece := os.read(ours, 4096):
            shown += piece
    os.close(ours)
    told, _ = on_terminal.communicate()
    assert b" played, 1 frame" in shown
    in_a_log = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=True)
    assert b"played" not in in_a_log.stderr
    assert told == in_a_log.stdout and on_terminal.returncode == 0


def test_what_cannot_be_used_of_a_recording_is_counted(
    invoke: Run, folder: Path, config: Path, detection_record: Callable[..., DetectionRecord]
) -> None:
    records = walk(detection_record, "yard", 50)
    del records[10:13]  # lost: their numbers are missing
    records += [detection_record(0, camera="shed"), detection_record(60, camera="yard", source_width=0)]
    told = invoke("replay", str(save(folder / "r.jsonl", records))).stdout
    assert "47 frames" in told
    assert "3 missing" in told
    assert "1 implausible" in told
    assert "1 of 'shed', which the config lacks" in told


def test_the_start_decides_what_a_schedule_arms(
    sparsecam: Run, folder: Path, config: Path, moving_light: Path, bright_box_model: Path
) -> None:
    config.write_text(
        "cameras: {yard: {source: light.mp4, fps: 5}}\ndetector: {engine: onnxruntime}\n"
        "rules: {night: {labels: [bright], schedule: {time_zone: Europe/Berlin, arm: [{hours: '22:00-06:00'}]}}}\n"
    )

    def play(start: str) -> subprocess.CompletedProcess[str]:
        arguments = ("replay", str(moving_light), "-m", str(bright_box_model), "--start", start)
        return sparsecam(*arguments)

    night = play("2026-07-01T23:00:00+02:00").stdout
    assert "yard  night: 1 incident\n" in night
    assert "20 frames" in night, "the camera's fps limit is kept"
    assert "20 passed over" in night
    assert "nothing would have fired" in play("2026-07-01T12:00:00+02:00").stdout


def test_clips_of_one_camera_follow_one_another(
    sparsecam: Run, folder: Path, config: Path, moving_light: Path, bright_box_model: Path
) -> None:
    arguments = [f"yard={moving_light}", f"yard={moving_light}", f"door={moving_light}"]
    done = sparsecam("replay", *arguments, "-m", str(bright_box_model), "--json")
    opened = [one for one in alerts_of(done) if one["event"] == "opened" and one["rule"] == "on-the-right"]
    assert next(one["session"] for one in opened if one["camera"] == "yard") == "replay-1"
    last = max(str(one["event_time"]) for one in alerts_of(done) if one["camera"] == "yard")
    assert "2001-01-01T12:00:07" < last < "2001-01-01T12:00:08.1"
    assert max(str(one["event_time"]) for one in alerts_of(done) if one["camera"] == "door") < "2001-01-01T12:00:04.1"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("light.mp4",), "Write yard=light.mp4"),
        (("yrd=light.mp4",), "did you mean 'yard'"),
        (("door=gone.mp4", "-m", "MODEL"), "sparsecam: gone.mp4: No such file or directory (check the path"),
        (("door=rtsp://me:hunter22@127.0.0.1:1/x",), "sparsecam record"),
        (("door=light.mp4",), "no model"),
        (("r.jsonl", "door=light.mp4"), "expected it alone"),
        (("none.jsonl",), "No such file"),
        (("door=light.mp4", "--start", "noon"), "not a time"),
        (("door=light.mp4", "--timeline", "t.jpg"), "ends in .png"),
        (("door=light.mp4", "--timeline", "none/t.png"), "no folder none"),
    ],
)
def test_what_cannot_be_replayed_is_said_in_words(
    arguments: tuple[str, ...],
    words: str,
    invoke: Run,
    folder: Path,
    config: Path,
    moving_light: Path,
    bright_box_model: Path,
) -> None:
    done = invoke("replay", *(str(bright_box_model) if one == "MODEL" else one for one in arguments))
    assert done.returncode not in (0, 70)
    assert words in done.stderr
    assert "hunter22" not in done.stderr


def test_an_empty_recording_is_said_to_be_empty(invoke: Run, folder: Path, config: Path) -> None:
    save(folder / "r.jsonl", [])
    done = invoke("replay", "r.jsonl")
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith("sparsecam: r.jsonl is empty: a recording without a frame")


def test_a_class_that_the_model_lacks_is_refused_at_its_line(
    invoke: Run, folder: Path, config: Path, moving_light: Path, bright_box_model: Path
) -> None:
    config.write_text("cameras: {yard: {source: light.mp4}}\nrules:\n  any: {labels: [brihgt]}\n")
    done = invoke("replay", "light.mp4", "-m", str(bright_box_model), "-e", "onnxruntime")
    assert done.returncode == 78
    assert "sparsecam.yaml:3" in done.stderr
    assert "did you mean 'bright'" in done.stderr


@pytest.mark.slow
def test_the_example_finds_real_people(sparsecam: Run, folder: Path, shared: Path) -> None:
    video, weights = shared / "videos" / "one-by-one-person.mp4", shared / "weights" / "yolov5n.pt"
    if not (video.is_file() and weights.is_file()):
        pytest.skip("the video or the weights are not there")
    pytest.importorskip("torch")
    _first_seconds(video, folder / "one-by-one-person.mp4", 9.0)
    example = Path(__file__).resolve().parents[2] / "docs" / "examples" / "replay.yaml"
    done = sparsecam(
        *("replay", "one-by-one-person.mp4", "-c", str(example), "-m", str(weights), "-e", "torch", "--json"),
    )
    opened = [one for one in alerts_of(done) if one["event"] == "opened"]
    assert sorted(str(one["rule"]) for one in opened) == ["person-crosses", "person-in-picture", "person-in-the-middle"]


def _first_seconds(source: Path, target: Path, seconds: float) -> None:
    """The beginning of a video, its packets as they are."""
    with av.open(str(source)) as video, av.open(str(target), "w") as cut:
        stream = video.streams.video[0]
        copy = cut.add_stream_from_template(stream)
        for packet in video.demux(stream):
            if packet.dts is None or packet.dts * packet.time_base > seconds:
                break
            packet.stream = copy
            cut.mux(packet)
