"""Raw heads give what the decoded output gives; where they do not, the decoded output is used."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import msgspec
import numpy as np
import psutil
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from detector import heads
from detector.choose import Trials, choose
from detector.detector import Detector
from detector.errors import EngineRefused
from detector.find_raw import NoRawHeads, find
from detector.model import read_model
from detector.raw_heads import RawHead, RawHeads
from detector.settings import DetectorSettings
from detector.trial import Verdict, try_model
from wire.messages import Detection, FrameHeader

Array = np.ndarray[Any, Any]
Settings = Callable[..., DetectorSettings]

STRIDES = [8, 16, 32]
ANCHORS = [[(10, 13), (16, 30), (33, 23)], [(30, 61), (62, 45), (59, 119)], [(116, 90), (156, 198), (373, 326)]]


class Decoded(Trials):
    """Trials after which the decoded output is used."""

    def at(self, *asked: Any, **facts: Any) -> Verdict:
        return msgspec.structs.replace(super().at(*asked, **facts), raw=None)


class Raw(Trials):
    """Raw heads also where they took longer in the trial: here they must be right, and the machine may be busy."""

    def at(self, engine: str, batch: int, height: int, width: int, *asked: Any, **facts: Any) -> Verdict:
        verdict = super().at(engine, batch, height, width, *asked, **facts)
        if verdict.raw is not None or "raw heads take" not in verdict.raw_because:
            return verdict
        head = heads.Head("yolov5", (0,), verdict.class_count, tuple(STRIDES), height, width)
        return msgspec.structs.replace(verdict, raw=find(self.model, head, batch, height, width))


def both(wanted: DetectorSettings) -> tuple[Detector, Detector]:
    """The same model on raw heads, and on its decoded output."""
    model = read_model(Path(wanted.model))
    cut, whole = (kind(model, wanted, wanted.cores_per_worker) for kind in (Raw, Decoded))
    return Detector(cut, choose(cut)), Detector(whole, choose(whole))


def decoded(logits: list[Array], classes: int) -> Array:
    """YOLOv5's published decoding, cell by cell in double precision: (batch, predictions, 5 + classes)."""
    levels = []
    for level, stride, anchors in zip(logits, STRIDES, ANCHORS, strict=True):
        batch, _, height, width = level.shape
        s = 1 / (1 + np.exp(-level.astype(np.float64).reshape(batch, 3, 5 + classes, height, width)))
        rows = np.empty((batch, 3, height, width, 5 + classes))
        for y, x, anchor in np.ndindex(height, width, 3):
            share = s[:, anchor, :, y, x]
            rows[:, anchor, y, x, 0] = (2 * share[:, 0] - 0.5 + x) * stride
            rows[:, anchor, y, x, 1] = (2 * share[:, 1] - 0.5 + y) * stride
            rows[:, anchor, y, x, 2] = (2 * share[:, 2]) ** 2 * anchors[anchor][0]
            rows[:, anchor, y, x, 3] = (2 * share[:, 3]) ** 2 * anchors[anchor][1]
            rows[:, anchor, y, x, 4:] = share[:, 4:]
        levels.append(rows.reshape(batch, -1, 5 + classes))
    return np.concatenate(levels, axis=1).astype(np.float32)


def random_logits(seed: int, raw: RawHeads, batch: int, height: int, width: int, spread: float) -> list[Array]:
    random = np.random.default_rng(seed)
    return [random.normal(0, spread, shape).astype(np.float32) for shape in raw.shapes(batch, height, width)]


@settings(max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 80]),
    st.integers(1, 3),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.sampled_from([0.001, 0.25, 0.6]),
    st.sampled_from([1.0, 4.0, 40.0]),  # the last has logits that float32's exp would overflow at
)
def test_raw_heads_decode_to_what_the_decoded_output_does(
    seed: int, classes: int, batch: int, strides: tuple[int, int], conf_thres: float, spread: float
) -> None:
    height, width = strides[0] * 32, strides[1] * 32
    raw = RawHeads(["a", "b", "c"], STRIDES, ANCHORS, classes)
    logits = random_logits(seed, raw, batch, height, width, spread)
    rows = decoded(logits, classes)
    best = (rows[..., 5:] * rows[..., 4:5]).max(axis=2)
    assume((np.abs(best - conf_thres) > 1e-6).all())
    head = heads.recognise([rows], height, width, classes)
    for pictures in {1, batch}:
        ours, theirs = (
            RawHead(raw, batch, height, width).decode(logits, conf_thres, pictures),
            head.decode([rows], conf_thres, pictures),
        )
        for picture in range(pictures):
            one, other = ours.take(ours.pictures == picture), theirs.take(theirs.pictures == picture)
            told = rows[picture, best[picture] > conf_thres, 5:]
            assert len(one.scores) == len(other.scores) == len(told)
            assert np.allclose(one.boxes, other.boxes, rtol=1e-5, atol=1e-3)
            assert np.allclose(one.scores, other.scores, atol=1e-6)
            # Where two classes are alike to float32, either is the best.
            shares = np.take_along_axis(told, np.stack([one.classes, other.classes], axis=1), axis=1)
            assert np.allclose(shares[:, 0], shares[:, 1], atol=1e-6)


def test_a_threshold_of_nothing_lets_everything_pass() -> None:
    raw = RawHeads(["a", "b", "c"], STRIDES, ANCHORS, 1)
    found = RawHead(raw, 2, 32, 64).decode(random_logits(3, raw, 2, 32, 64, 1.0), 0.0, 2)
    assert len(found.scores) == 2 * 3 * (4 * 8 + 2 * 4 + 1 * 2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_broken_inference_is_an_error_and_no_empty_scene(value: float) -> None:
    raw = RawHeads(["a", "b", "c"], STRIDES, ANCHORS, 2)
    head = RawHead(raw, 2, 64, 64)
    logits = [np.full(shape, -9, np.float32) for shape in raw.shapes(2, 64, 64)]
    assert not len(head.decode(logits, 0.25, 2).scores)
    logits[1][1, 4, 2, 2] = value
    with pytest.raises(EngineRefused, match="not finite"):
        head.decode(logits, 0.25, 2)
    for number, broken in ((4, [9, np.nan, np.nan]), (0, [np.nan, 0, 0, 0, 9, 9]), (3, [np.nan, 9, 9])):
        logits[1][1, :7, 2, 2] = 0
        logits[1][1, number : number + len(broken), 2, 2] = broken
        with pytest.raises(EngineRefused, match="not finite"):
            head.decode(logits, 0.25, 2)


@pytest.mark.parametrize(("classes", "batch", "dtype"), [(1, 1, "uint8"), (80, 2, "float32")])
def test_heads_and_anchors_are_found_by_their_numbers(
    graphs: ModuleType, tmp_path: Path, classes: int, batch: int, dtype: str
) -> None:
    model = read_model(graphs.convolved(tmp_path / "m.onnx", classes=classes, dtype=dtype))
    head = heads.Head("yolov5", (0,), classes, (8, 16, 32), 96, 128)
    raw = find(model, head, batch, 96, 128)
    assert (raw.strides, raw.class_count) == (STRIDES, classes)
    assert np.allclose(raw.anchors, ANCHORS, rtol=1e-4)


def test_a_head_that_decodes_otherwise_is_used_decoded(graphs: ModuleType, tmp_path: Path, settings: Settings) -> None:
    told = Detector.load(settings(graphs.convolved(tmp_path / "m.onnx", size_power=3.0))).describe()
    assert not told["raw_heads"]
    assert "decoded from its raw heads, the output on onnxruntime is off by" in told["raw_heads_because"]


def test_a_graph_without_raw_heads_says_so(graphs: ModuleType, tmp_path: Path) -> None:
    model = read_model(graphs.cells(tmp_path / "m.onnx"))
    with pytest.raises(NoRawHeads, match="no tensors of shapes"):
        find(model, heads.Head("yolov5", (0,), 2, (8, 16, 32), 96, 96), 1, 96, 96)


def overlap(one: Detection, other: Detection) -> float:
    width = min(one.box[2], other.box[2]) - max(one.box[0], other.box[0])
    height = min(one.box[3], other.box[3]) - max(one.box[1], other.box[1])
    both = max(width, 0) * max(height, 0)
    return both / (sum((d.box[2] - d.box[0]) * (d.box[3] - d.box[1]) for d in (one, other)) - both)


def assert_same(ours: list[Detection], theirs: list[Detection]) -> None:
    assert [found.class_id for found in ours] == [found.class_id for found in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert overlap(one, other) >= 0.999
        assert one.score == pytest.approx(other.score, abs=1e-4)


def test_every_engine_detects_the_same_through_raw_heads(
    graphs: ModuleType, tmp_path: Path, settings: Settings, engine: str, header: Callable[..., FrameHeader]
) -> None:
    """Alone and in batches; at a smaller shape too, where that is quick to compile."""
    smaller = engine == "onnxruntime"
    raw, plain = both(settings(graphs.convolved(tmp_path / "m.onnx"), engine=engine, batch=3, rectangular=smaller))
    assert raw.describe()["raw_heads"], raw.describe()["raw_heads_because"]
    assert not plain.describe()["raw_heads"]
    random = np.random.default_rng(1)
    for height, width in ((128, 128), (64, 128)) if smaller else ((128, 128),):
        frames = []
        for seq in range(3):
            soft = cv2.resize(random.integers(0, 256, (4, 4, 3), np.uint8), (width, height))
            frames.append((header(height, width, seq=seq), soft))
        expected = [plain.detect(*frame) for frame in frames]
        assert sum(map(len, expected)) > 3
        heads_used = [raw._at(height, width).single.head, raw._at(height, width).several.head]
        assert [type(head) for head in heads_used] == [RawHead, RawHead]
        for frame, found, together in zip(frames, expected, raw.detect_batch(frames), strict=True):
            assert_same(raw.detect(*frame), found)
            assert_same(together, found)


@pytest.mark.parametrize("activation", ["hardswish", pytest.param("silu", marks=pytest.mark.slow)])
def test_reference_models_detect_the_same_through_raw_heads(
    shared: Path, settings: Settings, engine: str, activation: str
) -> None:
    if activation == "silu" and engine != "deepsparse":
        pytest.skip("a minute an engine; DeepSparse is the one that aborts on some graphs")
    path = shared / f"weights/reference-pistols-yolov5n-int8-{activation}.onnx"
    raw, plain = both(settings(path, engine=engine, batch=1, conf_thres=0.05, rectangular=False))
    assert raw.choice.verdict.raw is not None
    found = 0
    for picture in sorted((shared / "datasets/pistols/valid/images").iterdir())[::50]:
        bgr = cv2.imread(str(picture))
        ours = raw.detect_image(bgr)
        assert_same(ours, plain.detect_image(bgr))
        found += len(ours)
    assert found >= 10


def test_a_child_that_ends_on_the_raw_heads_leaves_the_verdict_on_the_decoded_output(
    graphs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = read_model(graphs.convolved(tmp_path / "m.onnx"))
    verdicts: list[Verdict] = []

    def attempt() -> None:
        # A large picture, so that timing the raw heads takes long enough to be caught at it.
        facts: dict[str, Any] = {"batch": 4, "height": 1280, "width": 1280, "classes": 2, "timeout_s": 60}
        verdicts.append(try_model(model, "onnxruntime", num_cores=1, cache_dir=tmp_path / "cache", **facts))

    trying = threading.Thread(target=attempt)
    trying.start()
    while not list(tmp_path.glob("sparsecam-trial-*/verdict.json")):
        assert trying.is_alive()
        time.sleep(0.001)
    (child,) = [child for child in psutil.Process().children() if "detector.trial" in child.cmdline()]
    child.kill()
    trying.join()
    (verdict,) = verdicts
    assert verdict.accepted and verdict.raw is None
    assert "died of SIGKILL" in verdict.raw_because
    assert not list((tmp_path / "cache").glob("trials/*.json"))  # a kill is nothing to keep


def test_an_engine_slower_by_far_need_not_show_its_raw_heads_until_it_stands_alone(
    graphs: ModuleType, tmp_path: Path
) -> None:
    model = read_model(graphs.convolved(tmp_path / "m.onnx"))
    facts: dict[str, Any] = {"batch": 1, "height": 96, "width": 128, "classes": 2, "timeout_s": 60, "num_cores": 1}
    facts["cache_dir"] = tmp_path / "cache"
    beaten = try_model(model, "onnxruntime", **facts, beat_ms=1e-6)
    assert beaten.accepted and beaten.raw_skipped
    assert try_model(model, "onnxruntime", **facts, beat_ms=1e-6) == beaten  # kept
    alone = try_model(model, "onnxruntime", **facts)
    assert not alone.raw_skipped
    assert alone.raw is not None or "raw heads take" in alone.raw_because
    assert try_model(model, "onnxruntime", **facts, beat_ms=1e-6) == alone


@pytest.fixture
def attempt(graphs: ModuleType, tmp_path: Path) -> Callable[..., Verdict]:
    """Tries a graph with raw heads on ONNX Runtime, at a width of 128."""
    model = read_model(graphs.convolved(tmp_path / "m.onnx"))

    def make(height: int, **changes: Any) -> Verdict:
        facts = {"batch": 1, "num_cores": 1, "width": 128, "classes": 2, "timeout_s": 60, "cache_dir": tmp_path / "c"}
        return try_model(model, "onnxruntime", height=height, **{**facts, **changes})

    return make


@pytest.fixture
def raw(graphs: ModuleType, tmp_path: Path) -> RawHeads:
    """Where that graph has them: whether they were quicker in a trial is left to the machine."""
    model = read_model(graphs.convolved(tmp_path / "m.onnx"))
    return find(model, heads.Head("yolov5", (0,), 2, (8, 16, 32), 128, 128), 1, 128, 128)


def test_another_shape_is_tried_in_the_form_that_won(attempt: Callable[..., Verdict], raw: RawHeads) -> None:
    full = attempt(128)
    less = attempt(64, like=msgspec.structs.replace(full, raw=None, raw_because="slower"))
    assert less.accepted and less.raw is None and less.raw_because == "as at 128x128, batch 1: slower"
    assert less.outputs == [[1, 3 * (8 * 16 + 4 * 8 + 2 * 4), 7]]
    several = attempt(64, batch=2, like=msgspec.structs.replace(full, raw=raw, raw_because="quicker"))
    assert several.accepted and several.raw == raw and several.raw_because == "as at 128x128, batch 1: quicker"
    assert several.outputs == [[2, 21, 8, 16], [2, 21, 4, 8], [2, 21, 2, 4]]
    assert (several.height, several.batch, several.head) == (64, 2, full.head) and several.ms > 0


def test_raw_heads_that_fail_at_one_shape_leave_it_the_decoded_output(
    attempt: Callable[..., Verdict], raw: RawHeads
) -> None:
    gone = msgspec.structs.replace(raw, tensors=["not", "in", "there"])
    less = attempt(64, like=msgspec.structs.replace(attempt(128), raw=gone))
    assert less.accepted and less.raw != gone and "as at" not in less.raw_because


def test_a_form_taken_over_from_another_shape_is_no_answer_where_one_is_to_be_chosen(
    attempt: Callable[..., Verdict], raw: RawHeads
) -> None:
    full = attempt(128)
    other = msgspec.structs.replace(full, raw=None if full.raw else raw, raw_because="so it was there")
    less = attempt(64, like=other)
    assert less.inherited and (less.raw is None) == (other.raw is None)
    assert attempt(64, like=full) == less  # kept
    chosen = attempt(64)
    assert not chosen.inherited and "so it was there" not in chosen.raw_because
    assert attempt(64, like=other) == chosen


def test_what_follows_from_a_time_out_is_not_kept(attempt: Callable[..., Verdict], tmp_path: Path) -> None:
    late = msgspec.structs.replace(attempt(128), raw=None, raw_because="not ready after 120 s", lasting=False)
    kept = set((tmp_path / "c/trials").iterdir())
    assert attempt(64, like=late).accepted
    assert set((tmp_path / "c/trials").iterdir()) == kept
