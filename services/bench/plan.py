"""The arithmetic of `sparsecam plan`: from measured costs to workers, utilisation and cameras held."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from services.bench.costs import FrameCosts
from services.bench.decode_cost import Camera, DecodeCost, Profile, camera_load
from services.bench.errors import PlanError

# Share of the time that cores may be busy. Beyond it frames wait longer for each other than they are worked on (at
# 85 % an arriving frame finds 0.85 / 0.15 = 6 before it in the simplest queue), and bursts become drops.
BUSY_LIMIT = 0.85
# Processes that work on one thread: however many cores there are, each can fill one.
SINGLE_THREADED = ("broker", "valkey", "sink")


@dataclass(frozen=True)
class Wish:
    """What a person wants to run."""

    cameras: int
    fps: float  # detections a second and camera
    camera: Camera
    profile: Profile
    busy_share: float


@dataclass(frozen=True)
class Point:
    """One point of the engine's curve: all workers of this size at once."""

    cores_per_worker: int
    workers: int
    batch: int
    items_per_s: float  # of all of them
    latency_ms: float  # median of one run
    core_ms: float  # CPU milliseconds an item, all threads: unlike items_per_s hardly moved by what else runs


@dataclass(frozen=True)
class Plan:
    """The answer. `cores` is by part, cores' worth of time; `lines` is the arithmetic in words."""

    holds: bool
    cameras_held: int
    workers: int
    cores_per_worker: int
    batch: int
    cores: dict[str, float]
    used: float
    usable: int
    limited_by: str
    lines: list[str] = field(repr=False)

    @property
    def utilisation(self) -> float:
        """Busy share of all cores."""
        return self.used / self.usable


def check(wish: Wish, cores: int | None, usable: int) -> None:
    """Refuse what makes no sense, in words; raises PlanError."""
    if wish.cameras < 1:
        raise PlanError(f"--cameras {wish.cameras}: a plan needs at least one camera")
    if not 0 < wish.fps < math.inf:
        raise PlanError(f"--fps {wish.fps:g}: expected detections a second above 0, such as 5")
    if not 1 <= wish.camera.fps <= 240:
        raise PlanError(f"--source-fps {wish.camera.fps:g}: expected frames a second from 1 to 240")
    if wish.fps > wish.camera.fps:
        raise PlanError(
            f"--fps {wish.fps:g}: a camera of {wish.camera.fps:g} frames a second has no more to detect; "
            f"lower --fps, or say --source-fps"
        )
    if not (64 <= wish.camera.width <= 8192 and 64 <= wish.camera.height <= 8192):
        raise PlanError(f"cameras of {wish.camera.width}x{wish.camera.height}: expected 64 to 8192 pixels a side")
    if not 0 <= wish.busy_share <= 1:
        raise PlanError(f"--busy-share {wish.busy_share:g}: expected a share of the time, 0 to 1")
    if not 0.04 <= wish.camera.keyframe_s <= 60:
        raise PlanError(f"--keyframe-interval {wish.camera.keyframe_s:g}: expected 0.04 to 60 seconds")
    if wish.profile == "keyframes" and wish.fps > 1 / wish.camera.keyframe_s:
        raise PlanError(
            f"--profile keyframes: a keyframe every {wish.camera.keyframe_s:g} s gives {1 / wish.camera.keyframe_s:g} "
            f"detections a second, fewer than --fps {wish.fps:g}; set the camera to more keyframes, or another profile"
        )
    if cores is not None and not 1 <= cores <= usable:
        raise PlanError(f"--cores {cores}: this process may use {usable} cores")


def best(curve: Sequence[Point]) -> Point:
    """The point with the least CPU time an item; of two within 2 % (what a second run differs by) the quicker one."""
    least = min(point.core_ms for point in curve)
    return min((point for point in curve if point.core_ms <= 1.02 * least), key=lambda point: point.latency_ms)


def make_plan(wish: Wish, point: Point, decode: DecodeCost, costs: FrameCosts, usable: int) -> Plan:
    """Add up what one camera costs, and divide the machine by it."""
    load = camera_load(decode, wish.camera, wish.profile, wish.fps, wish.busy_share)
    each = {
        "decode": load.decode,
        "letterbox": load.letterbox,
        "send": load.detections_per_s * costs.send / 1e3,
        "broker": load.detections_per_s * costs.broker / 1e3,
        "engine": load.detections_per_s * point.core_ms / 1e3,
        "worker": load.detections_per_s * costs.worker / 1e3,
        "valkey": load.detections_per_s * costs.valkey / 1e3,
        "sink": load.detections_per_s * costs.sink / 1e3,
    }
    limits = {"all cores": BUSY_LIMIT * usable / sum(each.values())}
    limits |= {part: BUSY_LIMIT / each[part] for part in SINGLE_THREADED if each[part]}
    limited_by = min(limits, key=lambda part: limits[part])
    held = int(limits[limited_by])
    cores = {part: round(share * wish.cameras, 4) for part, share in each.items()}
    used = sum(share * wish.cameras for share in each.values())
    workers = worker_count(each, wish.cameras, point.cores_per_worker, usable)
    return Plan(
        holds=held >= wish.cameras,
        cameras_held=held,
        workers=workers,
        cores_per_worker=point.cores_per_worker,
        batch=point.batch,
        cores=cores,
        used=used,
        usable=usable,
        limited_by=limited_by,
        lines=_lines(
            wish=wish,
            point=point,
            decode=decode,
            costs=costs,
            each=each,
            seen=load.detections_per_s,
            usable=usable,
            held=limits[limited_by],
        ),
    )


def worker_count(each: dict[str, float], cameras: int, cores_per_worker: int, usable: int) -> int:
    """Workers to start: as many as needed where all else then has cores of its own, else as many as fit."""
    inference = cameras * (each["engine"] + each["worker"])
    others = cameras * sum(share for part, share in each.items() if part not in ("engine", "worker"))
    most = max(1, usable // cores_per_worker)
    needed = max(1, math.ceil(inference / BUSY_LIMIT / cores_per_worker))
    apart = needed * cores_per_worker + math.ceil(others / BUSY_LIMIT) <= usable
    return needed if apart else most


def _lines(
    *,
    wish: Wish,
    point: Point,
    decode: DecodeCost,
    costs: FrameCosts,
    each: dict[str, float],
    seen: float,
    usable: int,
    held: float,
) -> list[str]:
    camera = wish.camera
    kept = 1 / camera.keyframe_s
    asleep = f"{camera.fps:g} packets x {decode.packet_ms:.3f} ms + {kept:g} keyframes x {decode.keyframe_ms:.2f} ms"
    awake = f"{camera.fps:g} frames x {decode.frame_ms:.2f} ms"
    how = {
        "all": awake,
        "keyframes": asleep,
        "adaptive": f"{wish.busy_share:.3g} x ({awake}) + {1 - wish.busy_share:.3g} x ({asleep})",
    }[wish.profile]
    overhead = costs.send + costs.broker + costs.worker + costs.valkey + costs.sink
    other = each["send"] + each["broker"] + each["worker"] + each["valkey"] + each["sink"]
    total = sum(each.values())
    return [
        f"decode      {how} = {1e3 * each['decode']:.1f} ms a camera and second",
        f"letterbox   {seen:.3g} frames x {decode.letterbox_ms:.2f} ms = {1e3 * each['letterbox']:.1f} ms",
        f"engine      {seen:.3g} frames x {point.core_ms:.2f} ms = {1e3 * each['engine']:.1f} ms",
        f"the rest    {seen:.3g} frames x {overhead:.2f} ms = {1e3 * other:.1f} ms (send {costs.send:.2f}, "
        f"broker {costs.broker:.2f}, worker {costs.worker:.2f}, valkey {costs.valkey:.2f}, sink {costs.sink:.2f}; "
        f"{costs.source})",
        f"a camera    {1e3 * total:.1f} ms of a core a second",
        f"cameras     {BUSY_LIMIT:g} x {usable} cores / {total:.4f} = {BUSY_LIMIT * usable / total:.1f}"
        + (f", at most {held:.1f} for one single-threaded process" if held < BUSY_LIMIT * usable / total else ""),
    ]
