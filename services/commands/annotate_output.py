"""Where `sparsecam annotate` writes: one H.264 video, or one image for each image read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from ingest.images import natural_key
from ingest.sources import IMAGE_SUFFIXES, Source

Image = NDArray[np.uint8]  # (height, width, 3) BGR

OUTPUT_DIR = Path("out")
VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov")
# x264's constant quality: 23 is its own default and looks like the source; veryfast costs a third of its default.
ENCODER_OPTIONS = {"crf": "23", "preset": "veryfast"}
TIME_BASE = Fraction(1, 90_000)  # the usual clock of video; every usual frame rate is whole in it


class OutputError(ValueError):
    """The annotated pictures cannot be written: says where and why."""


class Writer(Protocol):
    """Takes annotated pictures in order."""

    def write(self, picture: Image, pts_s: float | None) -> None:
        """One picture and its time in the source (seconds); raises OutputError."""

    def skip(self) -> None:
        """One picture of the source could not be decoded."""

    def close(self) -> None:
        """Finish what is written."""


def open_writer(source: Source, output: Path | None, frame_s: float) -> tuple[Writer, Path]:
    """The writer for a source, and where it writes; `frame_s` is the usual time between frames. Raises OutputError."""
    images = source.kind == "images"
    path = output or OUTPUT_DIR / _default_name(source)
    suffix = path.suffix.lower()
    if not images and suffix not in VIDEO_SUFFIXES:
        raise OutputError(f"--output {path}: expected a name that ends in {', '.join(VIDEO_SUFFIXES)} for a video")
    if images and suffix and suffix not in IMAGE_SUFFIXES:
        raise OutputError(f"--output {path}: expected a folder, or an image file for a single image")
    if Path(source.url).resolve() == path.resolve():
        raise OutputError(f"--output {path} is the source itself; choose another")
    try:
        (path.parent if suffix else path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"--output {path}: {error.strerror}") from error
    return (ImageWriter(source, path), path) if images else (VideoWriter(path, frame_s), path)


def _default_name(source: Source) -> str:
    name = Path(source.url).stem if source.kind in ("file", "images") else source.kind
    return f"{name}-annotated" + ("" if source.kind == "images" else ".mp4")


class ImageWriter:
    """Keeps the names of the images read; they are delivered one by one in natural order."""

    def __init__(self, source: Source, path: Path) -> None:
        self._path = path
        self._names = _names(Path(source.url))

    def write(self, picture: Image, pts_s: float | None) -> None:  # noqa: ARG002  # images have no time
        """Write one image; raises OutputError."""
        name = next(self._names)
        target = self._path if self._path.suffix else self._path / name
        try:
            written = cv2.imwrite(str(target), picture)
        except cv2.error as error:
            raise OutputError(f"{target}: cannot be written as an image: {error.err}") from error
        if not written:
            raise OutputError(f"{target}: cannot be written; check the folder's permissions and the disk's room")

    def skip(self) -> None:
        """Leave one name out."""
        next(self._names, None)

    def close(self) -> None:
        """Nothing is held open."""


def _names(root: Path) -> Iterator[str]:
    if root.is_dir():
        found = [path for path in root.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
        yield from (path.name for path in sorted(found, key=natural_key))
    else:
        yield root.name


class VideoWriter:
    """H.264 with the source's own times. The first picture fixes the size; later ones of another are fitted into it."""

    def __init__(self, path: Path, frame_s: float) -> None:
        self._path = path
        self._frame_s = frame_s
        self._last_pts: int | None = None
        self._offset_s: float | None = None
        self._stream: av.VideoStream | None = None
        try:
            self._container = av.open(str(path), "w")
        except (av.error.FFmpegError, OSError) as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error

    def write(self, picture: Image, pts_s: float | None) -> None:
        """Encode one picture; raises OutputError."""
        try:
            stream = self._stream or self._begin(picture)
            frame = av.VideoFrame.from_ndarray(fitted(picture, stream.height, stream.width), format="bgr24")
            frame.pts = self._pts(pts_s)
            frame.time_base = TIME_BASE
            self._container.mux(stream.encode(frame))
        except (av.error.FFmpegError, OSError) as error:
            raise OutputError(f"{self._path}: writing failed: {error.strerror or error}") from error

    def skip(self) -> None:
        """The times of the others show the gap."""

    def close(self) -> None:
        """Write what the encoder holds, and the index."""
        try:
            if self._stream is not None:
                self._container.mux(self._stream.encode(None))
            self._container.close()
        except (av.error.FFmpegError, OSError) as error:
            raise OutputError(f"{self._path}: writing failed: {error.strerror or error}") from error

    def _begin(self, picture: Image) -> av.VideoStream:
        height, width = picture.shape[:2]
        rate = Fraction(1 / self._frame_s).limit_denominator(1001)
        stream = self._container.add_stream("libx264", rate=rate, options=ENCODER_OPTIONS)
        # 4:2:0 colour, which every player shows, needs even sides.
        stream.height, stream.width = height + height % 2, width + width % 2
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = TIME_BASE
        self._stream = stream
        return stream

    def _pts(self, pts_s: float | None) -> int:
        """The source's time from its first frame on; one frame after the last where it gives none or goes back."""
        if pts_s is not None and not math.isfinite(pts_s):
            pts_s = None
        if self._offset_s is None:
            self._offset_s = pts_s or 0.0
        least = 0 if self._last_pts is None else self._last_pts + 1
        wanted = least - 1 if pts_s is None else round((pts_s - self._offset_s) / TIME_BASE)
        if wanted < least:
            wanted = 0 if self._last_pts is None else self._last_pts + max(1, round(self._frame_s / TIME_BASE))
        self._last_pts = wanted
        return wanted


def fitted(picture: Image, height: int, width: int) -> Image:
    """`picture` at this size: scaled alike in both directions and padded with black where it is of another shape."""
    own_height, own_width = picture.shape[:2]
    if (own_height, own_width) == (height, width):
        return picture
    if 0 <= height - own_height <= 1 and 0 <= width - own_width <= 1:  # made even: the edge is repeated
        edges = (0, height - own_height, 0, width - own_width)
        return np.asarray(cv2.copyMakeBorder(picture, *edges, cv2.BORDER_REPLICATE), dtype=np.uint8)
    scale = min(height / own_height, width / own_width)
    inner_height, inner_width = max(1, round(own_height * scale)), max(1, round(own_width * scale))
    canvas: Image = np.zeros((height, width, 3), dtype=np.uint8)
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    inner = cv2.resize(picture, (inner_width, inner_height), interpolation=cv2.INTER_AREA)
    canvas[top : top + inner_height, left : left + inner_width] = inner
    return canvas
