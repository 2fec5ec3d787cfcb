"""Which records wait to be published with others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detector.detector import Detector
from detector.settings import DetectorSettings
from detector.worker import Worker
from wire.consumer import Item
from wire.messages import DetectionRecord, FrameHeader, Work


class Waiting:
    """A source that has given frames at hand, as many at once as the worker asks for."""

    name = "w1"

    def __init__(self, items: list[Item], stop: threading.Event) -> None:
        self._items, self._stop = items, stop

    @property
    def has_more(self) -> bool:
        return bool(self._items)

    def next_batch(self, _: float, most: int) -> list[Item]:
        batch, self._items = self._items[:most], self._items[most:]
        if not self._items:
            self._stop.set()
        return batch

    def done(self, *_: Work, **__: Any) -> None: ...

    def inferred(self, *_: Work) -> None: ...


class Published:
    """What was handed over, and whether at once."""

    def __init__(self) -> None:
        self.hurried: list[bool] = []

    def put(self, _: DetectionRecord, *, hurry: bool) -> None:
        self.hurried.append(hurry)

    def hurry(self) -> None: ...


@pytest.mark.parametrize(
    ("batch", "lossless", "hurried"),
    [
        (1, False, [True, True, True, True]),  # another live frame at hand does not mean that the worker is behind
        (2, False, [False, False, False, True]),  # two more at hand do
        (1, True, [False, False, False, True]),  # a file is never late
    ],
)
def test_live_frames_inferred_one_by_one_are_published_at_once(
    cells_model: Path,
    settings: Callable[..., DetectorSettings],
    header: Callable[..., FrameHeader],
    monkeypatch: pytest.MonkeyPatch,
    batch: int,
    lossless: bool,
    hurried: list[bool],
) -> None:
    detector = Detector.load(settings(cells_model, batch=batch))
    picture = np.full((192, 320, 3), 90, np.uint8)
    now_ns = time.monotonic_ns()
    items = [
        (
            Work("b", number, now_ns, 0, header(192, 320, seq=number, lossless=lossless, captured_ns=now_ns)),
            picture.reshape(-1).data,
        )
        for number in range(4)
    ]
    stop = threading.Event()
    worker = Worker(
        detector,
        Waiting(items, stop),  # type: ignore[arg-type]  # what the loop uses of it
        max_age_ms=60_000,
        compile_s=60,
        observe=lambda *_: None,
    )
    # Machines that take long over a frame publish it at once anyway.
    monkeypatch.setattr("detector.worker.LINGER_S", 60.0)
    published = Published()
    worker.run(published, stop)
    assert published.hurried == hurried
