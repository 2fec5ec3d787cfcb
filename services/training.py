"""What the trainer needs from the live path, handed down to it as functions: it imports no room but wire."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from detector.heads import Head
from detector.nms import nms

if TYPE_CHECKING:
    from trainer.metrics import Found


class MissingExtra(Exception):
    """Training was asked for where only the live path is installed."""

    def __init__(self, error: ImportError) -> None:
        super().__init__(f"training wants the extra: pip install 'sparsecam[train]' ({error})")


# Settings that accuracy is published with.
CONF_THRES, IOU_THRES, MAX_DETECTIONS = 0.001, 0.6, 300


def network_postprocess(classes: int) -> Callable[[NDArray[np.float32]], Found]:
    """Decoded rows (n, 5 + classes) to what the live path would report of them, at published settings."""
    from trainer.metrics import Found
    from trainer.model import STRIDES

    head = Head("yolov5", (0,), classes, STRIDES, 0, 0)

    def postprocess(rows: NDArray[np.float32]) -> Found:
        some = head.decode([rows[None]], CONF_THRES)
        some = some.take((some.boxes[:, 2:] > some.boxes[:, :2]).all(axis=1))
        kept = some.take(nms(some.boxes, some.scores, some.classes, IOU_THRES, MAX_DETECTIONS))
        return Found(kept.boxes, kept.classes, kept.scores)

    return postprocess
