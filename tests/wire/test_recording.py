"""A recording gives back what was put in, and a file that is none is refused in words."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.messages import Detection, DetectionRecord
from wire.recording import Recorded, RecordingError, RecordingWriter, read_recording

numbers = st.integers(0, 2**53)
boxes = st.tuples(*[st.floats(-1e6, 1e6)] * 4)
detections = st.builds(Detection, st.text(max_size=8), st.integers(0, 99), st.floats(0, 1), boxes)
records = st.builds(
    DetectionRecord,
    *[st.text(max_size=8)] * 2,
    *[numbers] * 2,
    *[st.text(max_size=8)] * 3,
    *[numbers] * 7,
    st.lists(detections, max_size=4),
)


def write(path: Path, frames: list[Recorded]) -> int:
    writer = RecordingWriter(path)
    for frame in frames:
        writer.write(frame)
    writer.close()
    return writer.size


@pytest.mark.parametrize("suffix", [".jsonl", ".msgpack"])
@given(st.lists(st.builds(Recorded, st.just("1700000000000-0"), records), max_size=5))
def test_what_is_written_is_read(suffix: str, frames: list[Recorded]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"r{suffix}")
        assert write(path, frames) == path.stat().st_size
        assert list(read_recording(path)) == frames


def test_message_pack_keeps_boxes_that_are_no_numbers(
    tmp_path: Path, detection_record: Callable[..., DetectionRecord]
) -> None:
    record = detection_record(1, detections=[Detection("p", 0, 0.5, (math.nan, 1.0, math.inf, 2.0))])
    write(tmp_path / "r.msgpack", [Recorded("1-0", record)])
    (read,) = read_recording(tmp_path / "r.msgpack")
    assert math.isnan(read.record.detections[0].box[0])
    assert read.record.detections[0].box[2] == math.inf


@pytest.mark.parametrize("suffix", [".jsonl", ".msgpack"])
def test_a_recording_cut_off_anywhere_gives_the_frames_before(
    suffix: str, tmp_path: Path, detection_record: Callable[..., DetectionRecord]
) -> None:
    frames = [Recorded(f"{seq}-0", detection_record(seq, "person")) for seq in range(3)]
    path = tmp_path / f"r{suffix}"
    sizes = [write(tmp_path / f"r{count}{suffix}", frames[:count]) for count in range(4)]
    write(path, frames)
    whole = path.read_bytes()
    for length in range(sizes[0], len(whole) + 1):
        path.write_bytes(whole[:length])
        complete = max(count for count in range(4) if sizes[count] <= length)
        assert list(read_recording(path)) == frames[:complete], length


def test_a_file_that_is_there_is_replaced_only_when_told(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text("mine")
    with pytest.raises(RecordingError, match="is there already"):
        RecordingWriter(path)
    assert path.read_text() == "mine"
    RecordingWriter(path, replace=True).close()
    assert list(read_recording(path)) == []


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("r.mp4", b"", "ends in .jsonl or .msgpack"),
        ("r.jsonl", b"", "expected a recording"),
        ("r.jsonl", b"cameras: {}\n", "expected a recording"),
        ("r.jsonl", b'{"sparsecam_recording": 2}\n', "version 2"),
        ("r.jsonl", b'{"sparsecam_recording": 1}\n{"id": "1-0"}\n', "r.jsonl:2: not a frame"),
        ("r.msgpack", b"\x7fELF is a program", "a piece of"),
        ("r.msgpack", b"\0\0\0\2hi", "expected a recording"),
    ],
)
def test_a_file_that_is_no_recording_is_refused(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecordingError, match=words):
        list(read_recording(tmp_path / name))


def test_a_full_disk_is_said_in_words(detection_record: Callable[..., DetectionRecord], tmp_path: Path) -> None:
    (tmp_path / "full.jsonl").symlink_to("/dev/full")
    writer = RecordingWriter(tmp_path / "full.jsonl", replace=True)
    with pytest.raises(RecordingError, match="No space left"):
        for seq in range(1000):
            writer.write(Recorded("1-0", detection_record(seq, "person")))
    with pytest.raises(RecordingError):
        writer.close()
