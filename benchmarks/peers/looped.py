"""A clip read with OpenCV over and over, opened anew at each end, for the peers that decode with OpenCV."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2


def frames(video: Path) -> Iterator[Any]:
    """Endless BGR frames, uint8 (height, width, 3)."""
    while True:
        capture = cv2.VideoCapture(str(video))
        good, frame = capture.read()
        if not good:
            raise SystemExit(f"OpenCV reads no frame of {video}")
        while good:
            yield frame
            good, frame = capture.read()
        capture.release()
