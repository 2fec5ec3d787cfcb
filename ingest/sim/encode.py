"""How a simulated camera compresses: x264 as a live camera's chip works, one packet a frame, no delay."""

from __future__ import annotations

from fractions import Fraction

import av
import cv2
import numpy as np
from av.codec.context import Flags
from av.video.frame import PictureType

from ingest.sim.h264 import RTP_CLOCK_HZ
from ingest.sim.scene_url import SceneSpec
from ingest.sim.sprites import Image

# Constant quality: x264's default is 23. 25 keeps a 720p keyframe near 200 kB and looks like a good camera.
_CRF = 25


def open_encoder(spec: SceneSpec) -> av.VideoCodecContext:
    """An encoder for a scene's pictures; its parameter sets are its `extradata`."""
    encoder = av.VideoCodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = spec.width, spec.height, "yuv420p"
    encoder.time_base = Fraction(1, RTP_CLOCK_HZ)
    encoder.framerate = Fraction(spec.fps).limit_denominator(1001)
    encoder.gop_size = max(1, round(spec.gop_s * spec.fps))
    encoder.thread_count = 1  # one camera must not take the machine
    encoder.flags |= Flags.global_header  # the parameter sets come as extradata
    encoder.options = {
        "preset": "ultrafast",
        "tune": "zerolatency",
        "profile": "baseline",
        "crf": str(_CRF),
        "forced-idr": "1",
        "x264-params": "scenecut=0",  # keyframes where the GOP says, not where a van drives through
    }
    encoder.open()
    return encoder


def video_frame(picture: Image, index: int, fps: float, *, keyframe: bool) -> av.VideoFrame:
    """A BGR picture as frame `index` for the encoder; `keyframe` asks for a keyframe before one is due."""
    frame = av.VideoFrame.from_ndarray(
        np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420), np.uint8), format="yuv420p"
    )
    frame.pts = round(index * RTP_CLOCK_HZ / fps)
    frame.time_base = Fraction(1, RTP_CLOCK_HZ)
    if keyframe:
        frame.pict_type = PictureType.I
    return frame
