"""Frames inferred at once give what each alone gives, and a bad one among them spoils no other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from detector.choose import batch_pays
from detector.detector import Detector
from detector.errors import BadFrame, EngineRefused
from detector.settings import DetectorSettings
from wire.messages import FrameHeader

Settings = Callable[..., DetectorSettings]
Header = Callable[..., FrameHeader]


def spots(count: int) -> list[np.ndarray]:
    pictures = []
    for number in range(count):
        picture = np.full((192, 320, 3), 90, np.uint8)
        picture[64:96, 32 * number : 32 * number + 32] = 250
        pictures.append(picture)
    return pictures


@pytest.mark.parametrize("pixel_format", ["rgb24", "i420"])
def test_a_batch_finds_in_each_frame_what_the_frame_alone_gives(
    cells_model: Path, settings: Settings, header: Header, pixel_format: str
) -> None:
    detector = Detector.load(settings(cells_model, batch=3))
    assert detector.batch == 3
    frames = []
    for number, picture in enumerate(spots(3)):
        grey = np.full((288, 320), 128, np.uint8)  # I420 with neutral colour
        grey[:192] = picture[:, :, 0]
        pixels = picture if pixel_format == "rgb24" else grey
        frames.append((header(192, 320, seq=number, pixel_format=pixel_format), pixels))
    alone = [detector.detect(*frame) for frame in frames]
    together = detector.detect_batch(frames)
    assert [len(found) for found in alone] == [1, 1, 1]
    assert len({found[0].box for found in alone}) == 3
    for (one,), (other,) in zip(alone, together, strict=True):
        assert one.box == pytest.approx(other.box, abs=0.01) and one.score == pytest.approx(other.score, abs=1e-4)


def test_fewer_frames_than_a_batch_are_inferred_one_by_one(
    cells_model: Path, settings: Settings, header: Header
) -> None:
    detector = Detector.load(settings(cells_model, batch=4))
    frames = [(header(192, 320, seq=number), picture) for number, picture in enumerate(spots(2))]
    assert detector.detect_batch(frames) == [detector.detect(*frame) for frame in frames]


def test_a_bad_frame_in_a_batch_is_an_error_of_the_batch(cells_model: Path, settings: Settings, header: Header) -> None:
    detector = Detector.load(settings(cells_model, batch=2))
    whole, cut = spots(2)
    with pytest.raises(BadFrame):
        detector.detect_batch([(header(192, 320), whole), (header(192, 320), cut[:-1])])


@pytest.mark.parametrize("four_outputs", [False, True])
def test_a_model_with_nms_inside_infers_one_by_one_whatever_the_config_asks(
    graphs: ModuleType, tmp_path: Path, settings: Settings, header: Header, four_outputs: bool
) -> None:
    path = graphs.bright_box(tmp_path / "m.onnx", one_picture=True, four_outputs=four_outputs)
    frames = [(header(192, 320, seq=number), picture) for number, picture in enumerate(spots(4))]
    for batch, because in (("auto", "the model has NMS inside"), (4, "detector.batch 4 is not followed: the model")):
        detector = Detector.load(settings(path, batch=batch))
        assert detector.batch == 1 and detector.describe()["batch_because"].startswith(because)
        assert [len(found) for found in detector.detect_batch(frames)] == [1, 1, 1, 1]


def test_outputs_of_fewer_pictures_than_the_batch_are_no_empty_scenes(
    graphs: ModuleType, tmp_path: Path, settings: Settings, header: Header
) -> None:
    detector = Detector.load(
        settings(graphs.cells(tmp_path / "m.onnx", image_size=(320, 320), one_picture=True), batch=4)
    )
    frames = [(header(192, 320, seq=number), picture) for number, picture in enumerate(spots(4))]
    assert [len(found) for found in detector.detect_batch(frames)] == [1, 1, 1, 1]
    assert detector.batch == 1 and "are not of 4 pictures" in detector.describe()["batch_because"]
    with pytest.raises(EngineRefused, match=r"output 0 is \[1, 3780, 7\], expected 4 first"):
        detector._compile(192, 320, 4)


def test_auto_says_what_it_measured(cells_model: Path, settings: Settings) -> None:
    told = Detector.load(settings(cells_model)).describe()
    assert told["batch"] in (1, 2, 4) and "one alone" in told["batch_because"]


@pytest.mark.parametrize(
    ("size", "each_ms", "alone_ms", "pays"),
    [
        (4, 1.80, 1.72, True),  # the reference model on a CPU whose pipeline made 548 FPS in fours and 488 one by one
        (4, 3.20, 2.99, True),  # the same, square: 394 and 339
        (4, 2.10, 1.72, False),
        (2, 1.90, 1.72, True),
        (2, 1.95, 1.72, False),  # two share less than four do
        (4, 30.0, 30.0, True),
        (4, 31.0, 30.0, False),  # what is shared weighs little beside a large model
    ],
)
def test_a_batch_pays_where_it_saves_more_beside_the_engine_than_it_costs_in_it(
    size: int, each_ms: float, alone_ms: float, pays: bool
) -> None:
    assert batch_pays(size, each_ms, alone_ms) is pays
