"""Whether an engine computes a quantised model as its file says: on generated pictures, beside ONNX Runtime.

Engines round differently, and some read a form of quantisation wrongly, quickly and without a word; such a one would
win by its speed. The two are far apart. Measured with YOLOv5n in the INT8 forms of ours, SparseML and quantize_static,
the mean distance of the boxes' sides from ONNX Runtime's, as a share of how far those lie from their mean: 0.00 to 0.25
where objects are found, 0.47 to 4.4 where they are not.
"""

from __future__ import annotations

import numpy as np

from detector.engines import Array, Engine, engine_class, installed
from detector.errors import EngineRefused
from detector.heads import Head
from detector.model import Model

JUDGE = "onnxruntime"
_FAR = 0.4
# A scene and noise of each: one engine answered a scene rightly, and noise with the same boxes as everything else.
_SEEDS = (0, 1)


def strays(engine: Engine, model: Model, head: Head, batch: int) -> str:
    """What is wrong with an engine's boxes; empty where nothing is, or nothing can be compared.

    Raises EngineRefused where this engine cannot run the model; one that ONNX Runtime cannot run is not judged.
    """
    # Here, in the trial's child: a worker needs none of it.
    from detector.prepare.integer_convs import is_quantised
    from detector.prepare.verify import Form, generated_pictures

    if model.format != "onnx" or not head.strides or not is_quantised(model.data) or JUDGE not in installed():
        return ""
    data = model.with_shape(batch, head.height, head.width)
    try:
        judge = engine_class(JUDGE).load(data, 1)
    except EngineRefused:
        return ""
    form = Form(data, model.input_name, model.dtype, model.layout == "nchw", ())
    for seed in _SEEDS:
        for picture in generated_pictures(head.height, head.width, batch, seed)[:2]:
            tensor = form.tensor(picture)
            try:
                wanted = _sides(head, judge.infer(tensor)[head.outputs[0]])
            except EngineRefused:
                return ""
            found = _sides(head, engine.infer(tensor)[head.outputs[0]])
            spread = float(np.abs(wanted - wanted.mean()).mean())
            apart = float(np.abs(found - wanted).mean())
            if not apart <= _FAR * spread:  # also where it is no number
                return (
                    f"it computes this quantised model otherwise than {JUDGE}: the sides of its boxes are off by "
                    f"{apart:.3g} pixels where they differ by {spread:.3g} among each other; expected at most "
                    f"{_FAR:g} times that. Quantise with unsigned activations and signed weights, or use {JUDGE}"
                )
    return ""


def _sides(head: Head, rows: Array) -> Array:
    """(predictions, 2) width and height of the first picture's boxes."""
    first = rows[0].T if head.kind == "yolov8" else rows[0]
    sides: Array = first[:, 2:4].astype(np.float64)
    return sides
