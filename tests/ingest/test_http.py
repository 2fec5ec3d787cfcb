"""Live pictures over HTTP: MJPEG as cameras serve it, HLS as media servers do, a recording on a web server."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from ingest.fleet import Fleet
from ingest.settings import CameraSettings, IngestSettings


def test_mjpeg_streams_and_reconnects_when_it_ends(link: Any, serve_http: Callable[..., str], until: Any) -> None:
    connections = []

    def camera(request):  # type: ignore[no-untyped-def]
        connections.append(request.path)
        request.send_response(200)
        request.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        request.end_headers()
        for index in range(12):
            ok, jpeg = cv2.imencode(".jpg", np.full((90, 160, 3), 20 * index, np.uint8))
            assert ok
            request.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg))
            request.wfile.write(jpeg.tobytes() + b"\r\n")
            time.sleep(0.1)  # ten frames a second: the camera's own pace

    fleet = Fleet({"c": CameraSettings(source=serve_http(camera) + "/video")}, link, IngestSettings())
    fleet.start()
    until(lambda: len(connections) >= 3 and len(link.frames["c"]) > 25, 15, "two reconnections")
    fleet.stop()
    header = link.frames["c"][0]
    assert (header.source_height, header.source_width, header.pixel_format) == (90, 160, "i420")
    # MJPEG carries no time of its own: event time is arrival, so a tenth of a second apart and not a guessed 25 fps.
    events = [frame.event_us for frame in link.frames["c"][3:10]]
    steps = [b - a for a, b in itertools.pairwise(events)]
    assert 80_000 < sum(steps) / len(steps) < 140_000
    # Without a length given beforehand, FFmpeg cannot tell an end from a break.
    errors = fleet.snapshots()[0].errors
    assert set(errors) <= {"ended", "reset"} and sum(errors.values()) >= 2


def write_hls(folder: Path, clip: Path) -> None:
    with (
        av.open(str(clip)) as source,
        av.open(str(folder / "index.m3u8"), "w", format="hls", options={"hls_time": "1", "hls_list_size": "0"}) as out,
    ):
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                out.mux(packet)


def files(folder: Path) -> Callable[..., None]:
    def answer(request: Any) -> None:
        path = folder / request.path.split("?")[0].lstrip("/")
        if not path.is_file():
            request.send_error(404)
            return
        data = path.read_bytes()
        request.send_response(200)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    return answer


def test_hls_is_read(
    link: Any, serve_http: Callable[..., str], tmp_path: Path, write_clip: Callable[..., Path], until: Any
) -> None:
    write_hls(tmp_path, write_clip(tmp_path / "a.mp4", frames=75, options={"g": "25", "preset": "ultrafast"}))
    assert len(list(tmp_path.glob("*.ts"))) == 3
    address = serve_http(files(tmp_path))
    fleet = Fleet({"c": CameraSettings(source=address + "/index.m3u8?token=x")}, link, IngestSettings())
    fleet.start()
    # All but the first come as fast as they can be read: what a server had before we came is not detected.
    until(lambda: link.ports["c"].ledger.snapshot().captured >= 75)
    fleet.stop()
    ledger = link.ports["c"].ledger.snapshot()
    assert ledger.dropped.get("decode_error", 0) == 0
    assert link.frames["c"]


def test_a_live_playlist_may_be_silent_between_segments(
    link: Any, serve_http: Callable[..., str], tmp_path: Path, write_clip: Callable[..., Path], until: Any
) -> None:
    write_hls(tmp_path, write_clip(tmp_path / "a.mp4", frames=75, options={"g": "25", "preset": "ultrafast"}))
    whole = (tmp_path / "index.m3u8").read_text().replace("#EXT-X-ENDLIST\n", "")
    last = whole.rindex("#EXTINF")
    (tmp_path / "index.m3u8").write_text(whole[:last])
    camera = CameraSettings(source=serve_http(files(tmp_path)) + "/index.m3u8", read_timeout_s=0.5)
    fleet = Fleet({"c": camera}, link, IngestSettings(stop_timeout_s=0.5))
    fleet.start()

    def captured() -> int:
        # A segment comes all at once, so a busy machine may rightly let the newest frames replace others that wait.
        return link.ports["c"].ledger.snapshot().captured

    # The demuxer holds the last packet of a segment until the next begins.
    until(lambda: captured() >= 45)
    time.sleep(1.5)  # three times the limit of other sources
    (tmp_path / "longer").write_text(whole)
    (tmp_path / "longer").replace(tmp_path / "index.m3u8")  # never half a list to a reader
    until(lambda: captured() >= 70)
    assert fleet.snapshots()[0].errors == {}
    fleet.stop()


def test_a_recording_on_a_web_server_is_lossless_and_ends(
    link: Any, serve_http: Callable[..., str], tmp_path: Path, write_clip: Callable[..., Path], until: Any
) -> None:
    write_clip(tmp_path / "a.mp4", frames=60)
    fleet = Fleet({"c": CameraSettings(source=serve_http(files(tmp_path)) + "/a.mp4")}, link, IngestSettings())
    fleet.start()
    until(lambda: fleet.finished, 10, "ended")
    fleet.stop()
    ledger = link.ports["c"].ledger.snapshot()
    assert (ledger.captured, ledger.detected, fleet.snapshots()[0].state) == (60, 60, "ended")
