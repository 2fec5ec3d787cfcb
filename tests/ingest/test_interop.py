"""A server that is not ours: the reader must not only understand our own simulated camera."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ingest.fleet import Fleet
from ingest.settings import CameraSettings, IngestSettings

server_module = pytest.importorskip("aio_rtsp_toolkit.server", reason="aio-rtsp-toolkit is in the development extra")


async def shut_down(server: Any) -> None:
    await server.close()
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:  # it leaves its clients' tasks running
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)


@pytest.fixture
def foreign_server(tmp_path: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    loop = asyncio.new_event_loop()
    server = server_module.RtspServer(str(tmp_path), host="127.0.0.1", port=port)
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(server.start(), loop).result(5)
    yield f"rtsp://127.0.0.1:{port}"
    asyncio.run_coroutine_threadsafe(shut_down(server), loop).result(5)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
    loop.close()


def test_another_rtsp_server_is_read_and_its_404_understood(
    link: Any, foreign_server: str, tmp_path: Path, write_clip: Callable[..., Path], until: Any
) -> None:
    write_clip(tmp_path / "a.mp4", frames=100)
    cameras = {
        "c": CameraSettings(source=f"{foreign_server}/a.mp4"),
        "d": CameraSettings(source=f"{foreign_server}/b.mp4"),
    }
    fleet = Fleet(cameras, link, IngestSettings())
    fleet.start()
    until(lambda: len(link.frames["c"]) > 20)
    until(lambda: fleet.snapshots()[1].errors.get("not_found"))
    fleet.stop()
    assert link.frames["c"][0].source_width == 128
