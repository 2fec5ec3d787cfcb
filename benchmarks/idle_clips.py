"""Clips of a simulated street, one drawing encoded in several ways: what cameras send of a scene, quiet or not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from ingest.sim.scene import Street
from ingest.sim.scene_url import SceneSpec

GOP_S = 2  # what most cameras are set to


@dataclass(frozen=True)
class Encoding:
    """One way to encode: x264's options; `bits_per_pixel` where it holds a rate instead of a quality."""

    name: str
    options: dict[str, str]
    bits_per_pixel: float | None = None
    filler: bool = False


# `veryfast` and no reordering: about the tools of a camera's encoder. The rate is 4 Mbit/s for 1080p25.
_CAMERA = {"preset": "veryfast", "tune": "zerolatency", "sc_threshold": "0"}
ENCODINGS = (
    Encoding("crf", _CAMERA | {"crf": "25"}),
    Encoding("cbr", _CAMERA, bits_per_pixel=0.077),
    Encoding("cbr+filler", _CAMERA, bits_per_pixel=0.077, filler=True),
)


def encode(spec: SceneSpec, frames: int, folder: Path, encodings: Iterable[Encoding] = ENCODINGS) -> list[Path]:
    """Draw a scene once and encode it in each way; clips that are there already are kept. Returns their paths."""
    quiet = f"-quiet{spec.quiet_s:g}of{spec.period_s:g}" if spec.quiet_s else ""
    stem = f"{'empty' if not spec.objects else 'busy'}{quiet}-{spec.height}p-noise{spec.noise}-{frames}"
    paths = {folder / f"{stem}-{each.name}.mp4": each for each in encodings}
    missing = {path: each for path, each in paths.items() if not path.exists()}
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        _encode(Street(spec), frames, missing)
    return list(paths)


def _encode(street: Street, frames: int, wanted: dict[Path, Encoding]) -> None:
    spec = street.spec
    outputs: list[tuple[Any, Any]] = []
    for path, encoding in wanted.items():
        container = av.open(str(path.with_suffix(".part")), "w", format="mp4")
        stream = container.add_stream("libx264", rate=Fraction(spec.fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = spec.width, spec.height, "yuv420p"
        stream.codec_context.gop_size = round(GOP_S * spec.fps)
        stream.codec_context.thread_count = 1
        options: dict[str, object] = dict(encoding.options)
        if encoding.bits_per_pixel is not None:
            rate = round(encoding.bits_per_pixel * spec.width * spec.height * spec.fps / 1000)  # kbit/s
            stream.bit_rate = rate * 1000
            hrd = ":nal-hrd=cbr" if encoding.filler else ""
            options["x264-params"] = f"vbv-maxrate={rate}:vbv-bufsize={rate}{hrd}"
        stream.options = options
        outputs.append((container, stream))
    for index in range(frames):
        picture, _ = street.render(index)
        planes = np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420), np.uint8)
        for container, stream in outputs:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
    for container, stream in outputs:
        container.mux(stream.encode())
        container.close()
    for path in wanted:
        path.with_suffix(".part").rename(path)  # only what is whole has the name
