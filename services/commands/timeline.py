"""The picture of a replay: time to the right, a row for each camera's objects and one for each rule's incidents."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from wire.alerts import Alert
from wire.messages import DetectionRecord

WIDTH, ROW, EDGE = 1280, 30, 16  # pixels
_FONT, _SIZE = cv2.FONT_HERSHEY_SIMPLEX, 0.45
# BGR. Colours of incidents that people with colour blindness also tell apart (Okabe and Ito, 2008).
_PAPER, _INK, _FAINT, _OBJECTS = (255, 255, 255), (40, 40, 40), (225, 225, 225), (150, 150, 150)
_INCIDENTS = [(178, 114, 0), (0, 94, 213), (115, 158, 0), (167, 121, 204), (0, 159, 230), (233, 180, 86)]
_STEPS_S = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21_600, 86_400, 604_800)
_TICK_PX = 90  # room for one time
_LEAST_PX = 4  # of an incident: also an instant is to be seen


class TimelineError(ValueError):
    """The picture cannot be written: says why."""


@dataclass
class _Span:
    began_us: int
    ended_us: int


@dataclass
class Timeline:
    """Give it each frame and each alert; then `write`. Event times are microseconds since the epoch."""

    first_us: int = -1
    last_us: int = -1
    _most: dict[str, dict[int, int]] = field(default_factory=dict)  # camera: second: most objects of a frame
    _spans: dict[tuple[str, str], dict[str, _Span]] = field(default_factory=dict)  # camera, rule: incident: span

    def saw(self, record: DetectionRecord) -> None:
        """A frame was played."""
        self.first_us = record.event_us if self.first_us < 0 else min(self.first_us, record.event_us)
        self.last_us = max(self.last_us, record.event_us)
        seconds = self._most.setdefault(record.camera, {})
        second = record.event_us // 1_000_000
        seconds[second] = max(seconds.get(second, 0), len(record.detections))

    def told(self, alert: Alert) -> None:
        """An alert was raised."""
        incidents = self._spans.setdefault((alert.camera, alert.rule), {})
        began_us, event_us = microseconds(alert.opened_time), microseconds(alert.event_time)
        span = incidents.setdefault(alert.incident, _Span(began_us, event_us))
        span.ended_us = max(span.ended_us, event_us)

    def draw(self) -> NDArray[np.uint8]:
        """BGR (height, width, 3)."""
        rows = self._rows()
        names = [f"{camera}  {rule}" if rule else camera for camera, rule in rows]
        left = EDGE + max((cv2.getTextSize(name, _FONT, _SIZE, 1)[0][0] for name in names), default=0) + EDGE
        scale = _Scale(self.first_us, max(self.last_us, self.first_us + 1), left, WIDTH - EDGE)
        picture = np.full((2 * EDGE + ROW * (len(rows) + 1), WIDTH, 3), 255, dtype=np.uint8)
        bottom = EDGE + ROW * len(rows)
        for at_us, text in scale.ticks():
            x = scale.x(at_us)
            cv2.line(picture, (x, EDGE), (x, bottom), _FAINT, 1)
            cv2.putText(picture, text, (x + 2, bottom + ROW // 2), _FONT, _SIZE, _INK, 1, cv2.LINE_AA)
        for number, (row, name) in enumerate(zip(rows, names, strict=True)):
            top = EDGE + ROW * number
            cv2.putText(picture, name, (EDGE, top + ROW * 2 // 3), _FONT, _SIZE, _INK, 1, cv2.LINE_AA)
            if row[1]:
                colour = _INCIDENTS[number % len(_INCIDENTS)]
                for span in self._spans[row].values():
                    across = scale.x(span.began_us), scale.x(span.ended_us)
                    _bar(picture, across, (top + 6, top + ROW - 6), colour, least=_LEAST_PX)
            else:
                cv2.line(picture, (EDGE, top), (WIDTH - EDGE, top), _INK, 1)
                self._draw_objects(picture, scale, row[0], top + ROW - 4)
        return picture

    def write(self, path: Path) -> None:
        """Raises TimelineError."""
        if self.first_us < 0:
            raise TimelineError(f"--timeline {path}: not one frame was played, so there is nothing to draw")
        _, png = cv2.imencode(".png", self.draw())
        try:
            path.write_bytes(png.tobytes())
        except OSError as error:
            raise TimelineError(f"--timeline {path}: cannot be written: {error.strerror}") from error

    def _rows(self) -> list[tuple[str, str]]:
        """Each camera (its rule is empty: the row of its objects), and after it its rules, by name."""
        cameras = sorted({*self._most, *(camera for camera, _ in self._spans)})
        return [
            row for camera in cameras for row in [(camera, ""), *sorted(one for one in self._spans if one[0] == camera)]
        ]

    def _draw_objects(self, picture: NDArray[np.uint8], scale: _Scale, camera: str, foot: int) -> None:
        """Columns as high as there were objects."""
        seconds = self._most.get(camera, {})
        most = max(seconds.values(), default=0)
        for second, count in seconds.items():
            if count:
                begun, ended = scale.x(second * 1_000_000), scale.x((second + 1) * 1_000_000)
                height = max(2, round((ROW - 10) * count / most))
                _bar(picture, (begun, ended), (foot - height, foot), _OBJECTS, least=1)


@dataclass(frozen=True)
class _Scale:
    """From event time to columns."""

    first_us: int
    last_us: int
    left: int
    right: int

    def x(self, at_us: int) -> int:
        within = min(max(at_us, self.first_us), self.last_us) - self.first_us
        return self.left + round((self.right - self.left) * within / (self.last_us - self.first_us))

    def ticks(self) -> list[tuple[int, str]]:
        """Times since the beginning, as many as there is room for."""
        length_s = (self.last_us - self.first_us) / 1e6
        room = max(1, (self.right - self.left) // _TICK_PX)
        step_s = next((step for step in _STEPS_S if length_s / step <= room), None) or int(length_s / room)
        # The last would be cut off at the edge.
        count = int(max(0.0, length_s - step_s / 2) / step_s) + 1
        return [(self.first_us + n * step_s * 1_000_000, elapsed(n * step_s * 1_000_000)[:-4]) for n in range(count)]


def _bar(
    picture: NDArray[np.uint8],
    across: tuple[int, int],
    down: tuple[int, int],
    colour: tuple[int, int, int],
    *,
    least: int,
) -> None:
    right = min(max(across[1], across[0] + least), WIDTH - EDGE)
    left = min(across[0], right - least)
    cv2.rectangle(picture, (left, down[0]), (right - 1, down[1]), colour, cv2.FILLED)


def check_name(path: Path) -> None:
    """Raises TimelineError for a name that is not one of a PNG file in a folder that is there."""
    if path.suffix.lower() != ".png":
        raise TimelineError(f"--timeline {path}: expected a name that ends in .png")
    if not path.parent.is_dir():
        raise TimelineError(f"--timeline {path}: no folder {path.parent}")


def microseconds(time: str) -> int:
    """An alert's time as microseconds since the epoch."""
    since = datetime.fromisoformat(time.replace("Z", "+00:00")) - datetime(1970, 1, 1, tzinfo=timezone.utc)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def elapsed(length_us: int) -> str:
    """A length of time, h:mm:ss.mmm."""
    milliseconds = length_us // 1000
    seconds, milliseconds = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}.{milliseconds:03d}"
