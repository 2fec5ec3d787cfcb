"""How each camera is doing, as its ingest process says it once a second: the hash `sparsecam:camera:{name}`.

All times in it are the Redis server's, so that whoever compares them needs no clock in common with the writer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wire.messages import WireError
from wire.streams import camera_key

# A camera that left the configuration leaves no hash behind for longer (seconds).
STATUS_TTL_S = 86_400


@dataclass(frozen=True)
class CameraStatus:
    """One camera at one instant. Nothing in it is secret."""

    state: str  # streaming, backing_off, frozen... as ingest names it
    up: bool  # it does what it should: frames arrive, or it is a file that need not be read now
    error: str = ""  # the last error's kind, until frames arrive again
    error_text: str = ""
    wanted: int = 0  # frames offered to the detectors since ingest started whose way has ended
    detected: int = 0  # of these: detected
    same_s: int = 0  # for how long its picture has been the same
    written_us: int = 0  # when this was written; set by the server
    up_us: int = 0  # when it was last up; set by the server
    detected_us: int = 0  # when no frame was owed, or one was detected, last; set by the server
    live: bool = True  # a file's frames wait for their turn: their age says nothing of the detectors


# A writer that was silent for so long has ended, or is not there now (seconds): each writes every second.
_SILENT_S = 3

# Returns 1 where another process has just written of the same camera.
# A detector owes frames while the count of those offered grows and that of those detected does not.
_WRITE = """
local at = redis.call('TIME')
local now = at[1] * 1000000 + at[2]
local old = redis.call('HMGET', KEYS[1], 'wanted', 'detected', 'up_us', 'detected_us', 'by', 'written_us')
redis.call('HSET', KEYS[1], 'v', '1', 'state', ARGV[1], 'up', ARGV[2], 'error', ARGV[3], 'error_text', ARGV[4],
  'wanted', ARGV[5], 'detected', ARGV[6], 'same_s', ARGV[8], 'live', ARGV[9],
  'by', ARGV[10], 'written_us', string.format('%.0f', now))
if ARGV[2] == '1' or not old[3] then redis.call('HSET', KEYS[1], 'up_us', string.format('%.0f', now)) end
if ARGV[5] == old[1] or ARGV[6] ~= old[2] or not old[4] then
  redis.call('HSET', KEYS[1], 'detected_us', string.format('%.0f', now))
end
redis.call('EXPIRE', KEYS[1], ARGV[7])
if old[5] and old[5] ~= ARGV[10] and now - tonumber(old[6] or 0) < ARGV[11] * 1000000 then return 1 end
return 0
"""


def write_status(camera: str, status: CameraStatus, writer: str) -> tuple[Any, ...]:
    """The command that writes it; the server fills in the times. Its reply is 1 where another `writer` writes of this
    camera too."""
    said = (status.state, int(status.up), status.error, status.error_text, status.wanted, status.detected)
    more = (STATUS_TTL_S, status.same_s, int(status.live), writer, _SILENT_S)
    return ("EVAL", _WRITE, 1, camera_key(camera), *said, *more)


def read_status(camera: str) -> tuple[Any, ...]:
    """The command that reads it; its reply is for `status_of`."""
    return ("HGETALL", camera_key(camera))


def status_of(reply: list[bytes]) -> CameraStatus | None:
    """What the hash says; None where there is none, or none of this version. Raises WireError for rubbish."""
    fields = dict(zip(reply[::2], reply[1::2], strict=False))
    if fields.get(b"v") != b"1":
        return None
    try:
        return CameraStatus(
            state=fields[b"state"].decode(),
            up=fields[b"up"] == b"1",
            error=fields[b"error"].decode(),
            error_text=fields[b"error_text"].decode(errors="replace"),
            same_s=int(fields.get(b"same_s", 0)),  # an ingest of before says nothing of these
            live=fields.get(b"live", b"1") == b"1",
            **{name: int(fields[name.encode()]) for name in _NUMBERS},
        )
    except (KeyError, ValueError) as error:
        raise WireError(f"camera status: {error!r} is missing or no number") from error


_NUMBERS = ("wanted", "detected", "written_us", "up_us", "detected_us")
