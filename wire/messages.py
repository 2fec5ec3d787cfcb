"""Message types of the frame link and of the Redis streams.

Every type is a msgspec Struct: decoding checks types and shape, so a malformed message is one `WireError` and never a
crash further in. Tags carry the version (`frame.1`); a message of another version is refused by its tag.
Units: `*_ns` are CLOCK_MONOTONIC nanoseconds, all of a message by one host's clock (whoever receives frames from
another host brings their stamps onto its own, see wire.clocks); `event_us` is wall-clock microseconds since the epoch;
boxes are pixels of the source picture.
"""

from __future__ import annotations

from typing import Literal, TypeVar

import msgspec
from msgspec import Struct

# Why a frame was not detected. One word a cause, the same in ledgers, metrics, summaries and documents.
DropCause = Literal[
    "rate_limited",  # the camera's fps limit did not want it
    "not_keyframe",  # the keyframes-only profile did not decode it
    "asleep",  # the adaptive profile did not decode it, or decoded it too late to send: nothing moved then
    "static",  # the motion gate saw nothing move
    "decode_error",  # the decoder could not make a picture of it
    "no_model",  # no detector has said which input it wants
    "overwritten",  # a newer frame of the same live camera took its slot
    "stale",  # older than the maximum age at dispatch or at the start of inference, or from before the connection
    "worker_lost",  # its worker died (live), or three workers did (file)
    "broker_lost",  # the broker, or the connection to it, died with it (live)
    "inference_error",  # the engine refused it
    "no_pixels",  # its worker does not see the shared memory they lie in (live; a file's frame is sent again with them)
    "bad_frame",  # header and pixels disagree, the message was malformed, or the picture is larger than the link takes
    "unpublished",  # detected, but shed from a full outbox while Redis was away (file)
    "stopped",  # the process was told to stop before it was detected
]
Outcome = Literal["detected"] | DropCause
PixelFormat = Literal["i420", "rgb24"]


# What msgspec raises for bytes that are no message of the wanted type: text that is not UTF-8, and depths that its
# recursion cannot follow, it does not count among its own errors.
MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class WireError(ValueError):
    """A message that cannot be understood: says what was found and what this build speaks."""


class InputSpec(Struct, frozen=True, array_like=True, tag="spec.1"):
    """The picture a detector wants. With `rectangular`, any height and width up to these, padded to `stride`."""

    height: int
    width: int
    stride: int
    rectangular: bool


class RingSlot(Struct, frozen=True, array_like=True):
    """Where a frame's pixels lie in shared memory (see wire.ring)."""

    ring: str
    offset: int  # of the slot's head (bytes)
    size: int  # of the pixels (bytes)
    stamp: int  # which frame the slot held then


class FrameHeader(Struct, frozen=True, array_like=True, tag="frame.1"):
    """One letterboxed frame; the pixels travel beside it, or lie in shared memory where `slot` says.

    Pixels are uint8: `i420` is (height * 3 / 2, width), `rgb24` is (height, width, 3), C-contiguous.
    A box (x, y) of the letterbox is ((x - pad_left) / scale, (y - pad_top) / scale) in the source picture.
    """

    camera: str
    session: str  # one run of one camera's reader; `seq` is unique in it and rises
    seq: int
    lossless: bool
    event_us: int
    captured_ns: int
    pixel_format: PixelFormat
    height: int
    width: int
    source_height: int
    source_width: int
    scale: float
    pad_left: int
    pad_top: int
    slot: RingSlot | None = None

    @property
    def pixel_bytes(self) -> int:
        """Bytes that the pixels must have."""
        plane = self.height * self.width
        return plane * 3 // 2 if self.pixel_format == "i420" else plane * 3


class FrameKey(Struct, frozen=True, array_like=True):
    """Which frame."""

    camera: str
    session: str
    seq: int


class Hello(Struct, frozen=True, array_like=True, tag="hello.1"):
    """Ingest to broker, twice a second: it lives. With `unsure`, on the frames' own connection, it is a question."""

    unsure: list[FrameKey] = []  # sent some time ago, end not heard of: they or their ends may be lost on the way


class Settlement(Struct, frozen=True, array_like=True):
    """The end of one frame's way."""

    camera: str
    session: str
    seq: int
    outcome: Outcome


class Settled(Struct, frozen=True, array_like=True, tag="settled.1"):
    """Broker to ingest: frames whose way has ended, and (several times a second, also empty) a sign of life."""

    broker: str  # changes when the broker restarts or had given this ingest up: unsettled frames must be sent again
    spec: InputSpec | None
    frames: list[Settlement]
    missing: list[FrameKey] = []  # asked for by Hello: the broker has not got them and knows of no end


class Ready(Struct, frozen=True, array_like=True, tag="ready.1"):
    """Worker to broker, when it starts and whenever it has had no work for a while."""

    spec: InputSpec
    capacity: int  # frames it holds at once: the one in inference and those already at hand
    holding: int  # frames in its care, those included that wait for Redis


class Beat(Struct, frozen=True, array_like=True, tag="beat.1"):
    """Worker to broker, twice a second: it lives, and is to be given up only after `patience_s` of silence."""

    patience_s: float
    held: list[tuple[str, int]] | None = None  # camera and order of the frames in its care; None: too many to say
    broker: str = ""  # that gave them, as `Work` has it: orders mean other frames under another; empty: not said


class Inferred(Struct, frozen=True, array_like=True, tag="inferred.1"):
    """Worker to broker: it has room for others; these stay in its care until Redis has their detections."""

    frames: list[tuple[str, int]]  # camera and order
    broker: str = ""  # as in Beat


class Ended(Struct, frozen=True, array_like=True):
    """A frame that a worker is finished with."""

    camera: str
    order: int
    outcome: Outcome


class Done(Struct, frozen=True, array_like=True, tag="done.1"):
    """Worker to broker: these frames' ways have ended."""

    frames: list[Ended]
    broker: str = ""  # as in Beat


class Leave(Struct, frozen=True, array_like=True, tag="leave.1"):
    """Worker to broker: it stops; what it still holds goes to others."""


class Work(Struct, frozen=True, array_like=True, tag="work.1"):
    """Broker to worker: infer this. `order` rises by one for each dispatched frame of a camera under one broker."""

    broker: str
    order: int
    dispatched_ns: int
    attempts: int  # workers that died inferring it: such a frame is inferred alone
    frame: FrameHeader


class Detection(Struct, frozen=True, array_like=True, gc=False):
    """One object: `box` is (left, top, right, bottom) in pixels of the source picture, clipped to it."""

    label: str
    class_id: int
    score: float
    box: tuple[float, float, float, float]


class DetectionRecord(Struct, frozen=True, tag="detections.1"):
    """What a worker says of one frame: an entry of the stream `sparsecam:detections:{camera}`."""

    camera: str
    session: str
    seq: int
    order: int
    broker: str
    worker: str
    model: str
    event_us: int
    captured_ns: int
    dispatched_ns: int
    inference_start_ns: int
    inference_end_ns: int
    source_height: int
    source_width: int
    detections: list[Detection]


T = TypeVar("T", bound=Struct)

_encoder = msgspec.msgpack.Encoder()


def encode(message: Struct) -> bytes:
    """MessagePack of a message."""
    return _encoder.encode(message)


def decoder(kinds: type[T]) -> msgspec.msgpack.Decoder[T]:
    """A reusable decoder for one message type, or for a union of tagged ones."""
    return msgspec.msgpack.Decoder(kinds)


def decode(using: msgspec.msgpack.Decoder[T], payload: bytes | memoryview) -> T:
    """Decode one message; raises WireError naming what was wrong."""
    try:
        return using.decode(payload)
    except MALFORMED as error:
        raise WireError(f"malformed or foreign message ({len(payload)} bytes): {error}") from error
