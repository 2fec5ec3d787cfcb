from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from ingest.errors import SourceError
from ingest.frames import Picture
from ingest.planes import clockwise_turn
from ingest.reader import VideoReader, open_reader
from ingest.settings import CameraSettings
from ingest.sources import parse

MAX_PIXELS = 8192 * 8192


def read(
    path: Path, max_pixels: int = MAX_PIXELS, keep: bool = True, **settings: Any
) -> tuple[Counter[str], list[Picture], Any]:
    """(frames by fate, pictures, reader) of a whole file."""
    _, reader = open_reader(CameraSettings(source=str(path), **settings), max_pixels)
    fates: Counter[str] = Counter()
    pictures = []
    try:
        for delivery in reader.deliveries():
            if isinstance(delivery, Picture):
                fates["picture"] += 1
                # A long file's pictures would take gigabytes.
                pictures.append(delivery if keep else replace(delivery, image=None))
            else:
                fates[delivery.cause] += delivery.count
    finally:
        reader.close()
    return fates, pictures, reader


def error_of(path: Path, **settings: Any) -> SourceError:
    begun_s = time.monotonic()
    with pytest.raises(SourceError) as caught:
        read(path, **settings)
    assert time.monotonic() - begun_s < 5
    return caught.value


@pytest.mark.parametrize(
    ("name", "frames"),
    [
        ("pistol.mp4", 214),
        ("bikes.mp4", 250),
        ("one-by-one-person.mp4", 1394),
        ("person-bicycle-car.mp4", 459),
    ],  # its edit list hides 8 of 467
)
def test_real_files_deliver_every_frame_once(shared: Path, name: str, frames: int) -> None:
    # Frames differ in time; the count and the strictly rising times together say "each once".
    fates, pictures, reader = read(shared / "videos" / name, keep=False)
    assert fates == {"picture": frames}
    assert reader.defect is None
    times = [each.pts_s for each in pictures]
    assert all(a < b for a, b in itertools.pairwise(times))


def test_frames_reordered_by_the_codec_come_in_order_and_whole(tmp_path: Path, write_clip: Callable[..., Path]) -> None:
    path = write_clip(tmp_path / "b.mp4", frames=60, options={"bf": "3", "g": "20", "preset": "medium"})
    fates, pictures, _ = read(path)
    assert fates == {"picture": 60}
    assert [round(each.pts_s * 25) for each in pictures] == list(range(60))


def test_the_keyframe_profile_decodes_keyframes_and_counts_the_rest(
    tmp_path: Path, write_clip: Callable[..., Path]
) -> None:
    for name, options in {"a.mp4": {"g": "10"}, "b.mp4": {"g": "10", "bf": "3", "preset": "medium"}}.items():
        path = write_clip(tmp_path / name, frames=60, options=options | {"sc_threshold": "0"})
        fates, pictures, _ = read(path, profile="keyframes")
        assert fates == {"picture": 6, "not_keyframe": 54}
        assert [round(each.pts_s * 25) for each in pictures] == [0, 10, 20, 30, 40, 50]


def damage(path: Path, every: int, start: int = 2000) -> None:
    data = bytearray(path.read_bytes())
    for at in range(start, len(data) - 4000, every):
        data[at] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("suffix", ["mkv", "ts", "mp4"])
def test_corrupt_packets_are_counted_and_survived(tmp_path: Path, write_clip: Callable[..., Path], suffix: str) -> None:
    path = write_clip(tmp_path / f"a.{suffix}", frames=100, width=320, height=240)
    damage(path, every=900)
    fates, _, reader = read(path)
    assert fates["picture"] > 10
    # Each packet that was there is accounted for; damaged containers may lose some before we see them.
    assert 50 < fates["picture"] + fates["decode_error"] <= 100
    assert set(fates) <= {"picture", "decode_error"}
    assert fates["decode_error"] + reader.concealed > 0


def test_a_truncated_file_delivers_what_is_there_and_says_so(tmp_path: Path, shared: Path) -> None:
    whole = (shared / "videos" / "pistol.mp4").read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole[:200_000])
    fates, _, reader = read(path)
    assert fates["picture"] == 83
    assert fates["picture"] + fates["decode_error"] == 84
    assert reader.defect is not None and reader.defect.kind == "corrupt"
    assert "84 of 214" in str(reader.defect)


def test_files_that_are_no_video_are_typed_errors(tmp_path: Path, write_clip: Callable[..., Path]) -> None:
    (tmp_path / "zero.mp4").touch()
    (tmp_path / "junk.mp4").write_bytes(b"junk" * 5000)
    clip = write_clip(tmp_path / "a.mp4")
    (tmp_path / "headless.mp4").write_bytes(clip.read_bytes()[:300])
    with av.open(str(tmp_path / "sound.wav"), "w") as sound:
        stream = sound.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.sample_rate = 8000
        sound.mux(stream.encode(frame))
    assert error_of(tmp_path / "zero.mp4").kind == "empty"
    assert error_of(tmp_path / "junk.mp4").kind == "corrupt"
    assert error_of(tmp_path / "headless.mp4").kind == "corrupt"
    assert error_of(tmp_path / "sound.wav").kind == "no_video"
    assert error_of(tmp_path / "missing.mp4").kind == "not_found"
    assert error_of(Path("/dev/video99")).kind == "not_found"


def test_a_file_that_may_not_be_read(tmp_path: Path, write_clip: Callable[..., Path]) -> None:
    path = write_clip(tmp_path / "a.mp4")
    path.chmod(0)
    try:
        path.read_bytes()
    except PermissionError:
        assert error_of(path).kind == "permission"
    else:
        pytest.skip("this user may read everything")


def test_a_codec_without_a_decoder_is_named(tmp_path: Path, write_clip: Callable[..., Path]) -> None:
    path = write_clip(tmp_path / "a.avi", codec="mjpeg", pix_fmt="yuvj420p")
    path.write_bytes(path.read_bytes().replace(b"MJPG", b"ZzZ9"))
    assert error_of(path).kind in {"codec_unsupported", "no_video"}


def test_a_picture_over_the_limit_is_refused_before_decoding(tmp_path: Path, write_clip: Callable[..., Path]) -> None:
    path = write_clip(tmp_path / "a.mp4", width=640, height=480)
    with pytest.raises(SourceError) as caught:
        read(path, max_pixels=640 * 480 - 1)
    assert caught.value.kind == "too_large"
    assert read(path, max_pixels=640 * 480 + 100_000)[0]["picture"] == 30


@pytest.mark.parametrize(
    ("width", "height", "codec", "pix_fmt"),
    [
        (1, 1, "ffv1", "yuv420p"),
        (33, 17, "ffv1", "yuv420p"),
        (7680, 4320, "mjpeg", "yuvj420p"),
        (65, 63, "ffv1", "bgra"),
        (64, 48, "ffv1", "gray"),
    ],
)
def test_odd_sizes_8k_grey_and_alpha_are_read(
    tmp_path: Path, write_clip: Callable[..., Path], width: int, height: int, codec: str, pix_fmt: str
) -> None:
    path = write_clip(tmp_path / "a.mkv", frames=2, width=width, height=height, codec=codec, pix_fmt=pix_fmt)
    fates, pictures, _ = read(path)
    assert fates == {"picture": 2}
    assert (pictures[0].image.width, pictures[0].image.height) == (width, height)


def changing_size(path: Path) -> Path:
    """A transport stream that grows in its middle, as cameras do when someone changes their settings."""
    with path.open("wb") as out:
        for index, (width, height) in enumerate([(160, 120), (320, 240), (96, 64)]):
            part = path.with_suffix(f".{index}.h264")
            with av.open(str(part), "w", format="h264") as container:
                stream = container.add_stream("libx264", rate=25)
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                for _ in range(20):
                    grey = np.full((height, width, 3), 90, np.uint8)
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(grey)))
                container.mux(stream.encode())
            out.write(part.read_bytes())
    return path


def test_a_change_of_resolution_midway_loses_nothing(tmp_path: Path) -> None:
    fates, pictures, _ = read(changing_size(tmp_path / "grow.h264"))
    assert fates == {"picture": 60}
    assert Counter(each.image.width for each in pictures) == {160: 20, 320: 20, 96: 20}


def test_growing_over_the_limit_midway_is_counted(tmp_path: Path) -> None:
    fates, _, _ = read(changing_size(tmp_path / "grow.h264"), max_pixels=160 * 120 + 20_000)
    assert fates["picture"] == 40
    assert fates["decode_error"] == 20


@pytest.mark.parametrize(
    ("matrix", "turn"), [((1, 0, 0, 1), 0), ((0, 1, -1, 0), 90), ((-1, 0, 0, -1), 180), ((0, -1, 1, 0), 270)]
)
def test_a_phones_rotation_mark_is_understood(
    tmp_path: Path, write_clip: Callable[..., Path], matrix: tuple[int, ...], turn: int
) -> None:
    path = write_clip(tmp_path / "phone.mp4", frames=3)
    data = bytearray(path.read_bytes())
    # ISO 14496-12, track header version 0: the matrix begins 40 bytes into the box's body; a b u c d v x y w.
    at = data.index(b"tkhd") + 4 + 40
    for slot, value in zip((0, 1, 3, 4), matrix, strict=True):
        data[at + 4 * slot : at + 4 * slot + 4] = (value * 65536).to_bytes(4, "big", signed=True)
    path.write_bytes(data)
    _, pictures, _ = read(path)
    assert [clockwise_turn(each.image) for each in pictures] == [turn] * 3


@pytest.mark.parametrize("options", [{"preset": "ultrafast"}, {"bf": "3", "preset": "medium"}])
def test_nothing_is_decoded_while_no_model_is_there_and_waking_needs_no_keyframe(
    tmp_path: Path, write_clip: Callable[..., Path], options: dict[str, str]
) -> None:
    path = write_clip(tmp_path / "a.mp4", frames=60, options=options | {"g": "50", "sc_threshold": "0"})
    fed = 0

    def wanted() -> bool:
        nonlocal fed
        fed += 1
        return fed > 30

    reader = VideoReader(parse(str(path), live=True), CameraSettings(source=str(path)), MAX_PIXELS, wanted)
    fates: Counter[str] = Counter()
    with pytest.raises(SourceError) as caught:  # a live source never simply ends
        for each in reader.deliveries():
            if isinstance(each, Picture):
                fates["picture"] += 1
                assert not each.image.is_corrupt
            else:
                fates[each.cause] += each.count
    reader.close()
    assert caught.value.kind == "ended"
    assert fates == {"no_model": 30, "picture": 30}
    assert reader.concealed == 0


def test_a_playlist_on_disk_does_not_reach_into_the_network(
    tmp_path: Path, serve_http: Callable[..., str], write_clip: Callable[..., Path]
) -> None:
    asked: list[str] = []
    address = serve_http(lambda request: asked.append(request.path))
    (tmp_path / "list.m3u8").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{address}/x.ts\n#EXT-X-ENDLIST\n"
    )
    error_of(tmp_path / "list.m3u8")
    assert asked == []
