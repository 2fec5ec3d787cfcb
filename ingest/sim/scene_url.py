"""`sim://street?seed=1&size=1280x720&...`: which scene a simulated camera shows. Imports nothing heavy."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args
from urllib.parse import parse_qsl, urlsplit

Light = Literal["day", "dusk", "night"]
SCENES = ("street",)


class SceneUrlError(ValueError):
    """A sim:// URL that cannot be shown: says which part, what was expected and the nearest valid name."""


@dataclass(frozen=True)
class SceneSpec:
    """A parsed sim:// URL. Two equal specs draw the same pictures."""

    scene: str = "street"
    seed: int = 0  # 0 to 2**32 - 1
    width: int = 1280  # pixels, even, 160 to 3840
    height: int = 720  # pixels, even, 96 to 2160
    fps: float = 25.0  # 1 to 60
    objects: int = 6  # on their way at once, 0 to 60; a rider and a bicycle count as one
    quiet_s: float = 0.0  # nothing moves for this long at the end of every `period_s`; 0: never
    period_s: float = 0.0
    light: Light = "day"
    noise: int = 2  # sensor noise, peak in grey levels, 0 to 20
    gop_s: float = 2.0  # between keyframes of the encoded stream, 0.1 to 60

    def __str__(self) -> str:
        """The URL that parses to this spec."""
        quiet = f"&quiet={self.quiet_s:g}/{self.period_s:g}" if self.quiet_s else ""
        return (
            f"sim://{self.scene}?seed={self.seed}&size={self.width}x{self.height}&fps={self.fps:g}"
            f"&objects={self.objects}{quiet}&light={self.light}&noise={self.noise}&gop={self.gop_s:g}"
        )


def parse(url: str) -> SceneSpec:
    """Parse a sim:// URL; raises SceneUrlError."""
    parts = urlsplit(url)
    if parts.scheme != "sim" or parts.path not in ("", "/"):
        raise SceneUrlError(f"{url!r} is not sim://SCENE?KEY=VALUE&..., for example sim://street?seed=1")
    if parts.netloc not in SCENES:
        raise SceneUrlError(f"no scene {parts.netloc!r} in {url!r}{_nearest(parts.netloc, SCENES)}")
    try:
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query), max_num_fields=50)
    except ValueError as error:
        raise SceneUrlError(f"{url!r}: after the ? KEY=VALUE&KEY=VALUE is expected") from error
    spec = SceneSpec(scene=parts.netloc)
    seen: set[str] = set()
    for key, value in pairs:
        if key not in _KEYS:
            raise SceneUrlError(f"unknown key {key!r} in {url!r}{_nearest(key, tuple(_KEYS))}")
        if key in seen:
            raise SceneUrlError(f"key {key!r} is given twice in {url!r}")
        seen.add(key)
        read, expected = _KEYS[key]
        try:
            spec = replace(spec, **read(value))
        except ValueError:
            raise SceneUrlError(f"{key}={value!r} in {url!r}: expected {expected}") from None
    return spec


def _nearest(name: str, valid: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, valid, n=1)
    meant = f"; did you mean {close[0]!r}?" if close else ""
    return f"{meant} (valid: {', '.join(valid)})"


def _integer(name: str, low: int, high: int) -> Callable[[str], dict[str, Any]]:
    def read(text: str) -> dict[str, Any]:
        if not re.fullmatch(r"[0-9]{1,10}", text) or not low <= int(text) <= high:
            raise ValueError
        return {name: int(text)}

    return read


def _number(text: str, low: float, high: float) -> float:
    value = float(text)
    if not math.isfinite(value) or not low <= value <= high:
        raise ValueError
    return value


def _size(text: str) -> dict[str, Any]:
    match = re.fullmatch(r"([0-9]{2,4})x([0-9]{2,4})", text)
    if not match:
        raise ValueError
    width, height = int(match[1]), int(match[2])
    if width % 2 or height % 2 or not 160 <= width <= 3840 or not 96 <= height <= 2160:
        raise ValueError
    if not 0.5 <= width / height <= 2.5:  # beyond, the street is nearly all sky or nearly all road
        raise ValueError
    return {"width": width, "height": height}


def _quiet(text: str) -> dict[str, Any]:
    still, _, period = text.partition("/")
    length = _number(period, 0.2, 86_400)
    return {"quiet_s": _number(still, 0.1, length), "period_s": length}


def _light(text: str) -> dict[str, Any]:
    if text not in get_args(Light):
        raise ValueError
    return {"light": cast(Light, text)}


_KEYS: dict[str, tuple[Callable[[str], dict[str, Any]], str]] = {
    "seed": (_integer("seed", 0, 2**32 - 1), "a whole number from 0 to 4294967295"),
    "size": (_size, "WIDTHxHEIGHT in even pixels, from 160x96 to 3840x2160, WIDTH/HEIGHT from 0.5 to 2.5"),
    "fps": (lambda text: {"fps": _number(text, 1, 60)}, "frames a second from 1 to 60"),
    "objects": (_integer("objects", 0, 60), "a whole number from 0 to 60"),
    "quiet": (_quiet, "STILL/PERIOD in seconds, for example 6/10: still for 6 s at the end of every 10 s"),
    "light": (_light, "day, dusk or night"),
    "noise": (_integer("noise", 0, 20), "grey levels from 0 to 20"),
    "gop": (lambda text: {"gop_s": _number(text, 0.1, 60)}, "seconds between keyframes from 0.1 to 60"),
}
