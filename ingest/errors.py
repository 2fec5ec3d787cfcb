"""What can be wrong with a source: one stable word a kind, what was seen, and how to mend it."""

from __future__ import annotations

from typing import Literal, get_args

ErrorKind = Literal[
    "bad_url",  # the source string is not one we understand
    "not_found",  # no such file, stream path or device
    "permission",  # the operating system forbids it
    "auth_failed",  # the camera wants other credentials
    "refused",  # nothing listens there, or the server turned us away
    "unreachable",  # no such host, no route
    "timeout",  # nothing answered in time
    "tls_failed",  # no trusted encrypted connection
    "bad_reply",  # something answers, but not with a stream
    "server_error",  # the server says that it failed
    "no_video",  # opened, but there is no video in it
    "codec_unsupported",  # this build cannot decode it
    "too_large",  # more pixels than the configured limit
    "empty",  # not one picture in it
    "corrupt",  # damaged beyond reading on
    "device_busy",  # another program holds the webcam
    "frozen",  # connected, and nothing came for read_timeout_s
    "ended",  # a live source closed the stream
    "reset",  # the connection broke
    "hung",  # the reader did not come back; the watchdog gave it up
    "simulator_failed",  # the simulated camera did not start
    "internal",  # a bug of ours; the log has the traceback
]
KINDS: tuple[str, ...] = get_args(ErrorKind)

# Kinds that a person has to mend. Trying these every second would fill the camera's log, and many cameras lock an
# account after a handful of failed logins.
STUBBORN: frozenset[ErrorKind] = frozenset(
    {"bad_url", "auth_failed", "permission", "codec_unsupported", "no_video", "too_large", "tls_failed", "internal"}
)

_MEND: dict[ErrorKind, str] = {
    "bad_url": "write a file, a folder, rtsp://, rtsps://, http://, https://, a webcam number, /dev/videoN or sim://",
    "not_found": "check the path; for a camera, its manual names the stream path",
    "permission": "let this user read it (for a webcam: membership of the group `video`)",
    "auth_failed": "check user and password; special characters in a URL are written %40 for @, %3A for :",
    "refused": "check host and port, and that the camera's stream service is on",
    "unreachable": "check the host's name, the network and the firewall",
    "timeout": "check that the camera is on; on a slow network raise open_timeout_s",
    "tls_failed": "check the port and the certificate; tls_verify: false accepts self-signed ones",
    "bad_reply": "check that this address serves a stream and not a web page",
    "server_error": "look at the camera's or media server's own log; too many viewers is a common cause",
    "no_video": "choose a stream with a video track",
    "codec_unsupported": "set the camera to H.264, H.265 or MJPEG",
    "too_large": "choose a smaller stream, or raise ingest.max_pixels",
    "empty": "check that the recording was finished, or the folder is the right one",
    "corrupt": "play it with another player, or record it again",
    "device_busy": "close the program that uses the webcam",
    "frozen": "check the camera; if it sends less often than read_timeout_s, raise that",
    "ended": "nothing, if the camera restarts; otherwise see its log",
    "reset": "check the network between here and the camera",
    "hung": "look at the storage or driver below the source; the camera got a fresh reader",
    "simulator_failed": "see the error above; the sim:// parameters are in the documentation",
    "internal": "please report it with the traceback from the log",
}

# `not_found` of what lies on this machine: no camera has a say in it.
CHECK_PATH = "check the path; a relative one begins at the folder that Sparsecam is started in"


class SourceError(Exception):
    """A source that cannot be read (on). `what` must hold no secret: build it with `redact.hide`."""

    def __init__(self, kind: ErrorKind, what: str, mend: str = "") -> None:
        """`mend`: what a person can do about it, where more is known than its kind says."""
        self.mend = mend or _MEND[kind]
        super().__init__(f"{kind}: {what} ({self.mend})")
        self.kind: ErrorKind = kind
        self.what = what

    @property
    def words(self) -> str:
        """What is wrong and how to mend it, for a person: without the word for its kind, which is for programs."""
        return f"{self.what} ({self.mend})"

    @property
    def stubborn(self) -> bool:
        """Whether trying again soon is of no use."""
        return self.kind in STUBBORN
