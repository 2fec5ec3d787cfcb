"""Each alert of a real site has the picture of its own frame, and a clip; a lost folder costs those and no alert."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from ingest.sim.file_source import FileSource
from ingest.sim.rtsp_server import RtspServer
from wire.alerts import Alert, from_json
from wire.media import media_path

# The box passes over and over again, as another object each time: an incident every few seconds.
SCENE = {"lines": {"middle": [[0.5, 0.0], [0.5, 1.0]]}}
PASSES = {
    "box": {
        "kind": "line",
        "line": "middle",
        "labels": ["bright"],
        "min_score": 0.4,
        "confirm_frames": 1,
        "cooldown_s": 0,
    }
}


def opened(one: Any) -> list[Alert]:
    with one.redis() as client:
        alerts = [from_json(fields[b"d"]) for _, fields in client.xrange("sparsecam:alerts")]
    return [alert for alert in alerts if alert.event == "opened"]


def event_us(alert: Alert) -> int:
    return int(np.datetime64(alert.opened_time.removesuffix("Z"), "us").astype(np.int64))


def test_each_alert_has_its_own_frame_and_a_clip_and_a_lost_folder_costs_no_alert(
    site: Any, clip: Callable[..., Path], wait_until: Callable[..., None], law: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "media"
    media = {"dir": str(folder), "boxes": False, "clips": True, "pre_roll_s": 1, "clip_max_s": 1, "min_free_gb": 0}
    # Keyframes a second apart: the box has moved by 100 pixels between them.
    with RtspServer(FileSource(clip(500))) as server:
        cameras = {"door": {"source": server.url, "profile": "all"}}
        one = site(cameras=cameras, scenes={"door": SCENE}, rules=PASSES, media=media)
        wait_until(lambda: len(list(folder.rglob("*.mp4"))) >= 4, timeout_s=60)
        alerts = opened(one)
        # Now nothing can be written any more.
        folder.rename(tmp_path / "before")
        folder.write_text("a file where the folder was")
        wait_until(lambda: len(opened(one)) >= len(alerts) + 3)
        wait_until(lambda: "why=disk" in one.log.read_text())
        assert law(one.cameras()["door"])
    folder = tmp_path / "before"
    for alert in alerts[:4]:
        picture = folder / media_path("door", alert.incident, event_us(alert), "jpg")
        bright = cv2.imread(str(picture), cv2.IMREAD_GRAYSCALE)[90] > 170
        left, right = np.flatnonzero(bright)[[0, -1]]
        assert alert.box is not None
        # It moves by 4 pixels a frame.
        assert abs((left + right + 1) / 2 - (alert.box.left + alert.box.right) / 2) < 2
    made = next(folder.rglob("*.mp4"))
    with av.open(str(made)) as container:
        assert sum(1 for _ in container.decode(video=0)) >= 25
