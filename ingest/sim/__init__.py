"""Simulated cameras: scenes drawn by our own code, or video files, as H.264 over real RTSP.

Enters: `sim://street?seed=1&...` (see scene_url) or a video file. Leaves: an RTSP stream on loopback, and ground truth
for every frame index (`Street.truth`, `python -m ingest.sim truth`). A decoded frame names its index: `frame_index`.
`launch` runs a camera in a process of its own; `rtsp_server.RtspServer` serves, and fails on demand, in this one.
Imported by `ingest` and by tests; this file imports nothing heavy.
"""

from __future__ import annotations

from ingest.sim.launch import SimulatedCamera, SimulatedCameraError, launch
from ingest.sim.scene_url import SceneSpec, SceneUrlError, parse

__all__ = ["SceneSpec", "SceneUrlError", "SimulatedCamera", "SimulatedCameraError", "launch", "parse"]
