"""`annotate` draws what the model finds, into a video that plays at the source's speed or images of the same names."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from ingest.sources import parse
from services.commands.annotate_output import OutputError, VideoWriter, fitted, open_writer

Run = Callable[..., subprocess.CompletedProcess[str]]


def decoded(path: Path) -> tuple[list[np.ndarray], list[float]]:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return [frame.to_ndarray(format="bgr24") for frame in frames], [frame.time or 0.0 for frame in frames]


def test_a_video_is_annotated_whole(sparsecam: Run, folder: Path, moving_light: Path, bright_box_model: Path) -> None:
    output = folder / "o" / "light.mp4"
    done = sparsecam(
        *("annotate", str(bright_box_model), "--source", str(moving_light), "--output", str(output), "--json"),
        *("--engine", "onnxruntime", "--num-cores", "1", "--conf-thres", "0.5", "--image-shape", "192", "320"),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["frames"], result["skipped"], result["detections"]) == (40, 0, {"bright": 40})
    assert result["fps"] > 0
    assert 0 < result["inference_ms"] <= result["detection_ms"]
    pictures, times = decoded(output)
    assert len(pictures) == 40
    assert times == pytest.approx([index / 10 for index in range(40)], abs=0.01)
    (before, *_), _ = decoded(moving_light)
    changed = np.abs(pictures[0].astype(int) - before).max(axis=2) > 40
    assert changed[26:34, 6:14].any(), "a box round the light's corner"
    assert not changed[70:, 60:].any(), "nothing where nothing was found"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--image-shape", "0", "0"), ("--image-shape", "of 32 to 8192", "found [0, 0]")),
        (("--conf-thres", "1"), ("--conf-thres", "found 1.0", "at least 0, below 1")),
        (("--engine", "nope"), ("--engine", "'nope'", "'onnxruntime'")),
    ],
)
def test_an_option_of_no_use_is_refused_in_words(
    invoke: Run, folder: Path, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    done = invoke("annotate", "m.onnx", "-s", "v.mp4", *options)
    assert done.returncode == 2, done.stderr
    said = " ".join(done.stderr.replace("│", " ").split())
    assert all(word in said for word in words), said


def test_a_folder_keeps_its_names_and_leaves_out_what_is_broken(
    sparsecam: Run, folder: Path, bright_box_model: Path
) -> None:
    source = folder / "in"
    source.mkdir()
    picture = np.full((64, 96, 3), 60, dtype=np.uint8)
    picture[20:40, 30:60] = 255
    for name in ("a2.png", "a10.png"):
        cv2.imwrite(str(source / name), picture)
    (source / "a3.png").write_bytes(b"not a picture")
    done = sparsecam(
        *("annotate", str(bright_box_model), "-s", str(source), "-o", str(folder / "out"), "-e", "onnxruntime"),
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["a10.png", "a2.png"]
    assert "2 (1 could not be decoded)" in done.stdout
    assert "average inference" in done.stdout
    assert "2 bright" in done.stdout


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("gone.mp4", "sparsecam: gone.mp4: No such file or directory"),
        ("ftp://x/y", "unknown scheme"),
        ("rtsp://u:hunter22@127.0.0.1:1/x", "refused"),
    ],
)
def test_a_source_that_cannot_be_read_is_said_in_words(
    sparsecam: Run, bright_box_model: Path, source: str, words: str
) -> None:
    done = sparsecam("annotate", str(bright_box_model), "--source", source)
    assert done.returncode != 0
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "hunter22" not in done.stdout + done.stderr


def test_a_model_that_is_none_is_said_in_words(sparsecam: Run, folder: Path, moving_light: Path) -> None:
    (folder / "m.onnx").write_bytes(b"nothing of the kind")
    done = sparsecam("annotate", "m.onnx", "--source", str(moving_light))
    assert done.returncode != 0
    assert "m.onnx" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_source_is_never_written_over(moving_light: Path) -> None:
    before = moving_light.read_bytes()
    with pytest.raises(OutputError, match="is the source itself"):
        open_writer(parse(str(moving_light)), moving_light, 0.1)
    assert moving_light.read_bytes() == before


def test_a_video_keeps_its_size_when_the_source_changes_it(folder: Path) -> None:
    writer = VideoWriter(folder / "o.mp4", 0.1)
    sizes = [(91, 161), (91, 161), (40, 40), (300, 161), (91, 161)]
    for height, width in sizes:
        writer.write(np.full((height, width, 3), 200, dtype=np.uint8), None)
    writer.close()
    pictures, times = decoded(folder / "o.mp4")
    assert {picture.shape for picture in pictures} == {(92, 162, 3)}
    assert times == pytest.approx([0, 0.1, 0.2, 0.3, 0.4], abs=0.01)


def test_times_that_go_back_or_are_no_numbers_do_not_stop_a_video(folder: Path) -> None:
    writer = VideoWriter(folder / "o.mp4", 0.1)
    for pts_s in (5.0, 5.1, 4.0, float("nan"), None, 5.6):
        writer.write(np.zeros((16, 16, 3), dtype=np.uint8), pts_s)
    writer.close()
    _, times = decoded(folder / "o.mp4")
    assert times == sorted(times)
    assert times[0] == 0
    assert times[-1] == pytest.approx(0.6, abs=0.01)


def test_a_picture_of_another_shape_is_padded_and_not_stretched() -> None:
    picture = np.full((10, 20, 3), 255, dtype=np.uint8)
    canvas = fitted(picture, 40, 40)
    assert canvas.shape == (40, 40, 3)
    assert (canvas[10:30] == 255).all()
    assert not canvas[:10].any()
    assert not canvas[30:].any()
