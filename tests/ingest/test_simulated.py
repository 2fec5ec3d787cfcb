"""`sim://` goes the real way: a child process draws and encodes, RTSP carries, PyAV decodes."""

from __future__ import annotations

from typing import Any

import psutil
import pytest

from ingest.errors import SourceError
from ingest.fleet import Fleet
from ingest.settings import CameraSettings, IngestSettings
from ingest.sources import parse


def simulators() -> set[int]:
    return {
        child.pid
        for child in psutil.Process().children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE and "ingest.sim" in " ".join(child.cmdline())
    }


def test_a_simulated_camera_streams_comes_back_and_leaves_no_process(link: Any, until: Any) -> None:
    before = simulators()
    settings = CameraSettings(source="sim://street?seed=1&size=320x240&fps=10")
    fleet = Fleet({"street": settings}, link, IngestSettings())
    fleet.start()
    try:
        until(lambda: len(link.frames["street"]) > 5, 30, "frames")
        header = link.frames["street"][0]
        assert (header.source_height, header.source_width, header.lossless) == (240, 320, False)
        (pid,) = simulators() - before
        psutil.Process(pid).kill()
        seen = len(link.frames["street"])
        until(lambda: len(link.frames["street"]) > seen + 5, 30, "frames of a new process")
        assert fleet.snapshots()[0].reconnects >= 1
    finally:
        fleet.stop()
    until(lambda: simulators() <= before, 5, "no process left")


def test_a_scene_that_does_not_exist_is_a_bad_url() -> None:
    with pytest.raises(SourceError) as caught:
        parse("sim://street?sed=1")
    assert caught.value.kind == "bad_url"
    assert "seed" in str(caught.value)
