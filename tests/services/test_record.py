"""`record` saves every frame that passes through Redis while it runs, and ends where it was told to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from wire.messages import DetectionRecord
from wire.outbox import Outbox
from wire.recording import read_recording
from wire.redis_link import connect
from wire.settings import RedisSettings
from wire.streams import detections_key
from wire.valkey import EmbeddedValkey

Run = Callable[..., subprocess.CompletedProcess[str]]


def publish(url: str, *records: DetectionRecord) -> None:
    settings = RedisSettings(url=url)
    outbox = Outbox(lambda: connect(settings), 10_000, maxlen=10_000)
    for record in records:
        outbox.put(record)
    assert outbox.close(10.0).published == len(records)


@pytest.fixture
def config(folder: Path) -> Callable[[EmbeddedValkey], Path]:
    def write(valkey: EmbeddedValkey) -> Path:
        path = folder / "sparsecam.yaml"
        cameras = "cameras: {door: {source: d.mp4}, yard: {source: y.mp4}}\n"
        path.write_text(f"{cameras}redis: {{url: '{valkey.url}', timeout_s: 0.5}}\nruntime_dir: {folder}/run\n")
        return path

    return write


def test_what_is_stored_is_saved_in_both_forms(
    invoke: Run,
    folder: Path,
    valkey: EmbeddedValkey,
    config: Callable[[EmbeddedValkey], Path],
    detection_record: Callable[..., DetectionRecord],
) -> None:
    config(valkey)
    door = [detection_record(seq, "person") for seq in range(600)]  # more than one read
    yard = [detection_record(seq, camera="yard") for seq in range(3)]
    publish(valkey.url, *door, *yard)
    with redis.Redis.from_url(valkey.url) as client:
        client.xadd(detections_key("yard"), {"v": "1", "d": b"nonsense"})
    for name in ("r.jsonl", "r.msgpack"):
        done = invoke("record", name, "--no-follow", "--json")
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert (told["frames"], told["malformed"], told["bytes"]) == (603, 1, (folder / name).stat().st_size)
        frames = list(read_recording(folder / name))
        assert [one.record for one in frames if one.record.camera == "door"] == door
        assert [one.record for one in frames if one.record.camera == "yard"] == yard
        assert all(one.published_ms > 1_600_000_000_000 for one in frames)
    done = invoke("record", "r.jsonl", "--no-follow", "--force", "--camera", "yard")
    assert "3 frames (1 unreadable left out)" in done.stdout


def test_a_recording_ends_at_its_size(
    invoke: Run,
    folder: Path,
    valkey: EmbeddedValkey,
    config: Callable[[EmbeddedValkey], Path],
    detection_record: Callable[..., DetectionRecord],
) -> None:
    config(valkey)
    publish(valkey.url, *(detection_record(seq, "person") for seq in range(300)))
    done = invoke("record", "r.msgpack", "--stored", "--max-mb", "0.02")
    assert "the limit of --max-mb" in done.stdout
    assert 20_000 <= (folder / "r.msgpack").stat().st_size < 21_000


def test_following_goes_on_over_a_restart_of_redis_until_a_signal(
    folder: Path,
    own_valkey: EmbeddedValkey,
    config: Callable[[EmbeddedValkey], Path],
    environment: dict[str, str],
    detection_record: Callable[..., DetectionRecord],
    wait_until: Callable[..., None],
) -> None:
    config(own_valkey)
    path = folder / "r.jsonl"
    publish(own_valkey.url, detection_record(0))  # before the recording, so not in it
    process = subprocess.Popen(
        [sys.executable, "-m", "services.cli", "record", "r.jsonl"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: path.is_file() and path.stat().st_size, 30)
        publish(own_valkey.url, detection_record(1))
        wait_until(lambda: path.read_bytes().count(b"\n") == 2)
        assert own_valkey.pid is not None
        os.kill(own_valkey.pid, signal.SIGKILL)
        wait_until(lambda: own_valkey.pid is None)
        own_valkey.start()
        publish(own_valkey.url, detection_record(2))
        wait_until(lambda: path.read_bytes().count(b"\n") == 3)
        process.send_signal(signal.SIGINT)
        told, _ = process.communicate(timeout=10)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert "2 frames" in told
    assert [one.record.seq for one in read_recording(path)] == [1, 2]


def test_where_nothing_came_no_file_is_written_and_none_is_lost(
    invoke: Run,
    folder: Path,
    own_valkey: EmbeddedValkey,
    config: Callable[[EmbeddedValkey], Path],
    detection_record: Callable[..., DetectionRecord],
) -> None:
    config(own_valkey)
    (folder / "old.jsonl").write_text("an earlier recording")
    for arguments in (
        ("r.jsonl", "--no-follow"),
        ("r.jsonl", "--seconds", "0.1"),
        ("old.jsonl", "--no-follow", "--force"),
    ):
        done = invoke("record", *arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert f"nothing recorded, {arguments[0]} not written: no detections of door, yard" in done.stderr
        assert "`sparsecam health`" in done.stderr
    assert not (folder / "r.jsonl").exists()
    assert (folder / "old.jsonl").read_text() == "an earlier recording"
    done = invoke("record", "r.jsonl", "--no-follow", "--json")
    assert (done.returncode, json.loads(done.stdout)["output"], json.loads(done.stdout)["frames"]) == (1, None, 0)
    publish(own_valkey.url, detection_record(1))
    assert invoke("record", "r.jsonl", "--no-follow").returncode == 0, "the next try is not in its own way"


def test_what_cannot_be_recorded_is_said_in_words(
    invoke: Run, folder: Path, valkey: EmbeddedValkey, config: Callable[[EmbeddedValkey], Path]
) -> None:
    path = config(valkey)
    (folder / "there.jsonl").write_text("mine")
    for arguments, words in [
        (("r.jsonl", "--camera", "dor"), "did you mean 'door'"),
        (("r.mp4",), "ends in .jsonl or .msgpack"),
        (("there.jsonl", "--no-follow"), "--force"),
        (("none/r.jsonl", "--no-follow"), "No such file"),
    ]:
        done = invoke("record", *arguments)
        assert done.returncode == 78, done.stderr
        assert words in done.stderr
    path.write_text("cameras: {door: {source: d.mp4}}\nredis: {url: 'redis://me:hunter22@127.0.0.1:1'}\n")
    done = invoke("record", "r.jsonl", "--seconds", "1")
    assert done.returncode == 78
    assert "does not answer" in done.stderr
    assert "hunter22" not in done.stderr
    assert not (folder / "r.jsonl").exists()
