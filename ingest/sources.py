"""What a source string means: which kind it is, what to open, and whether it is live."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from ingest.errors import SourceError
from ingest.redact import safe_url
from ingest.sim.scene_url import SceneUrlError
from ingest.sim.scene_url import parse as parse_scene

SourceKind = Literal["file", "images", "rtsp", "http", "webcam", "sim"]

# What OpenCV decodes on every platform it ships for.
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
# An HTTP address that ends so is a recording and has an end; anything else over HTTP is a live stream.
RECORDING_SUFFIXES = frozenset({".mp4", ".m4v", ".mkv", ".mov", ".avi", ".webm", ".ts", ".mpg", ".mpeg"})

_SCHEMES: dict[str, SourceKind] = {
    "rtsp": "rtsp",
    "rtsps": "rtsp",
    "http": "http",
    "https": "http",
    "sim": "sim",
    "file": "file",
}


@dataclass(frozen=True, repr=False)
class Source:
    """A parsed source. `url` is what a reader opens and may hold a password; `shown` never does."""

    kind: SourceKind
    url: str
    live: bool

    @property
    def segmented(self) -> bool:
        """Whether it is HLS: nothing comes for a while, then seconds of video at once."""
        return self.kind == "http" and urlsplit(self.url).path.lower().endswith(".m3u8")

    @property
    def shown(self) -> str:
        """The source as logs and errors may show it."""
        return safe_url(self.url)

    def __repr__(self) -> str:
        return f"Source({self.kind}, {self.shown!r}, live={self.live})"


def parse(text: str, live: bool | None = None) -> Source:
    """Understand a source string; `live` overrides the guess. Raises SourceError `bad_url`.

    Looks at the disk only to tell a folder (of images) from a file.
    """
    kind, url = _classify(text.strip())
    guess = kind in {"rtsp", "webcam", "sim"} or (kind == "http" and not _is_recording(url))
    return Source(kind, url, guess if live is None else live)


def _classify(text: str) -> tuple[SourceKind, str]:
    if not text or "\x00" in text or "\n" in text:
        raise SourceError("bad_url", "the source is empty or holds control characters")
    if re.fullmatch(r"[0-9]{1,3}", text):
        return "webcam", f"/dev/video{int(text)}"
    if re.fullmatch(r"/dev/video[0-9]+", text):
        return "webcam", text
    scheme, mark, rest = text.partition("://")
    if not mark:
        return _on_disk(Path(text))
    kind = _SCHEMES.get(scheme.lower())
    if kind is None:
        raise SourceError("bad_url", f"unknown scheme {scheme[:20]!r}")
    if kind == "file":
        return _on_disk(Path(unquote(rest.removeprefix("localhost"))))
    if kind in {"rtsp", "http"}:
        try:
            parts = urlsplit(text)
            host, _ = parts.hostname, parts.port  # `port` raises on a number out of range
        except ValueError:
            raise SourceError("bad_url", f"not a valid address: {safe_url(text)}") from None
        if not host:
            raise SourceError("bad_url", f"no host in {safe_url(text)}")
    if kind == "sim":
        try:
            parse_scene(text)
        except SceneUrlError as error:
            raise SourceError("bad_url", str(error)) from None
    return kind, f"{scheme.lower()}://{rest}"


def _on_disk(path: Path) -> tuple[SourceKind, str]:
    with suppress(RuntimeError):  # `~nobody`: no such user, so it is the file's name
        path = path.expanduser()
    images = path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES
    return ("images" if images else "file"), str(path)


def _is_recording(url: str) -> bool:
    return Path(urlsplit(url).path).suffix.lower() in RECORDING_SUFFIXES
