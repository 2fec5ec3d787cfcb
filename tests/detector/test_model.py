"""Reading ONNX files: what they say of themselves, and every way they can be broken."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from detector import model as module
from detector.errors import ModelError
from detector.model import Model, parse_model, read_model


def tiny(
    dims: list[object], kind: int = TensorProto.FLOAT, inputs: int = 1, metadata: dict[str, str] | None = None
) -> bytes:
    names = [f"in{number}" for number in range(inputs)]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["in0"], ["out"])],
        "tiny",
        [helper.make_tensor_value_info(name, kind, dims) for name in names],
        [helper.make_tensor_value_info("out", kind, None)],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    helper.set_model_props(proto, metadata or {})
    return bytes(proto.SerializeToString())


def with_metadata(**metadata: str) -> Model:
    return parse_model(tiny([1, 3, 64, 64], metadata=metadata), "m")


def test_a_model_tells_its_input_and_metadata(graphs: ModuleType, tmp_path: Path) -> None:
    model = read_model(graphs.cells(tmp_path / "m.onnx", dtype="uint8", size=(320, 416)))
    assert (model.dtype, model.layout, model.batch) == ("uint8", "nchw", None)
    assert (model.height, model.width, model.stride) == (320, 416, 32)
    assert model.labels == {0: "red", 1: "blue"}


def test_a_model_with_channels_last_is_recognised() -> None:
    model = parse_model(tiny([1, 320, 416, 3]), "m")
    assert (model.layout, model.height, model.width) == ("nhwc", 320, 416)


def test_open_sizes_stay_open() -> None:
    model = parse_model(tiny(["batch", 3, "h", "w"]), "m")
    assert (model.batch, model.height, model.width) == (None, None, None)


def test_a_new_shape_removes_what_the_graph_recorded_of_the_old_one(graphs: ModuleType, tmp_path: Path) -> None:
    path = graphs.cells(tmp_path / "m.onnx", dtype="float32", size=(320, 320))
    stale = onnx.shape_inference.infer_shapes(onnx.load(str(path)))
    assert stale.graph.value_info
    model = parse_model(stale.SerializeToString(), "m")
    session = onnxruntime.InferenceSession(model.with_shape(2, 160, 320), providers=["CPUExecutionProvider"])
    (rows,) = session.run(None, {"images": np.zeros((2, 3, 160, 320), np.float32)})
    assert rows.shape == (2, 3 * (20 * 40 + 10 * 20 + 5 * 10), 7)


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("{0: 'person', 2: 'car'}", {0: "person", 2: "car"}),
        ('{"0": "person"}', {0: "person"}),
        ("['a', 'b']", {0: "a", 1: "b"}),
        ("", None),
        ("{}", None),
        ("{'person': 0}", None),
        ("__import__('os').abort()", None),
        ("(" * 5000, None),
    ],
)
def test_class_names_are_read_as_data_and_never_run(text: str, labels: dict[int, str] | None) -> None:
    assert with_metadata(names=text).labels == labels


@given(st.text(max_size=60), st.text(max_size=20), st.text(max_size=20))
def test_no_metadata_can_break_reading(names: str, stride: str, imgsz: str) -> None:
    model = with_metadata(names=names, stride=stride, imgsz=imgsz)
    assert 8 <= model.stride <= 256


def test_stride_and_picture_size_come_from_metadata_where_they_make_sense() -> None:
    model = with_metadata(stride="[8, 16, 64]", imgsz="[480, 640]")
    assert (model.stride, model.image_size) == (64, (480, 640))
    model = with_metadata(stride="-1", imgsz="[0, 640]")
    assert (model.stride, model.image_size) == (32, None)


@given(st.floats(0.01, 0.99))
def test_a_file_cut_anywhere_is_refused_in_words(part: float) -> None:
    whole = tiny([1, 3, 64, 64])
    with pytest.raises(ModelError, match=r"cut short|expected one picture"):
        parse_model(whole[: max(1, int(len(whole) * part))], "cut.onnx")


def nested(depth: int) -> bytes:
    """A model's graph whose node has a graph whose node has a graph...; up to 2 MiB, as lengths have three bytes."""
    data = b""
    for field in [6, 5, 1] * depth + [7]:  # graph in attribute in node; the model's graph
        length = len(data)
        data = bytes([field << 3 | 2, length & 127 | 128, length >> 7 & 127 | 128, length >> 14]) + data
    return data


@given(st.binary(min_size=1, max_size=200))
@example(b"\x12\x02\x00\x80")  # a producer whose name is no text
@example(nested(1000))
def test_garbage_is_refused_in_words(garbage: bytes) -> None:
    with pytest.raises(ModelError):
        parse_model(garbage, "garbage.onnx")


def test_files_that_cannot_be_a_model_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="No such file"):
        read_model(tmp_path / "absent.onnx")
    with pytest.raises(ModelError, match="cannot read"):
        read_model(tmp_path)
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(ModelError, match="empty"):
        read_model(tmp_path / "empty.onnx")
    monkeypatch.setattr(module, "MAX_MODEL_BYTES", 10)
    (tmp_path / "big.onnx").write_bytes(b"x" * 11)
    with pytest.raises(ModelError, match="more than"):
        read_model(tmp_path / "big.onnx")


def test_networks_that_take_no_picture_are_refused() -> None:
    for data, words in [
        (tiny([1, 3, 64, 64], inputs=2), "2 inputs"),
        (tiny([1, 64]), "shape"),
        (tiny([1, 4, 64, 64]), "shape"),
        (tiny([1, 3, 64, 64], kind=TensorProto.INT64), "int64"),
    ]:
        with pytest.raises(ModelError, match=words):
            parse_model(data, "m")


def test_weights_in_another_file_are_refused(graphs: ModuleType, tmp_path: Path) -> None:
    path = graphs.bright_box(tmp_path / "m.onnx")
    proto = onnx.load(str(path))
    onnx.save(proto, str(path), save_as_external_data=True, size_threshold=0, location="weights")
    with pytest.raises(ModelError, match="another file"):
        read_model(path)
