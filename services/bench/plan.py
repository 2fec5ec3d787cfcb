"""The arithmetic of `sparsecam plan`: from measured costs to workers, utilisation and cameras held."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ingest.adaptive import LOOK_EVERY_S
from services.bench.costs import FrameCosts
from services.bench.decode_cost import Camera, DecodeCost, Profile, asleep_keyframes_per_s, camera_load
from services.bench.errors import PlanError

# Share of the time that cores may be busy. Beyond it frames wait longer for each other than they are worked on (at
# 85 % an arriving frame finds 0.85 / 0.15 = 6 before it in the simplest queue), and bursts become drops.
BUSY_LIMIT = 0.85
# A larger worker must save so much CPU time an item to be preferred: two runs of the same differ by 2 to 3 %, and of
# small workers less is lost when one dies or waits.
LARGER_GAIN = 0.05
# Processes that work on one thread: however many cores there are, each can fill one.
SINGLE_THREADED = ("broker", "valkey", "sink")
CAMERA_THREAD = "one camera's decoding thread"


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
    usable: float  # cores' worth of time: with a CPU quota any number, also below one
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
    """The smallest workers, unless larger ones need less CPU time an item by more than LARGER_GAIN."""
    chosen, *larger = sorted(curve, key=lambda point: point.cores_per_worker)
    for point in larger:
        if point.core_ms < (1 - LARGER_GAIN) * chosen.core_ms:
            chosen = point
    return chosen


def batched_share(inference_share: float, batch: int) -> float:
    """The share of frames that wait until `batch` are inferred at once, on a machine as busy as is planned for.

    `inference_share` is what inference has of all CPU time. A worker at work for a share p of the time finds n or more
    frames before it with a chance of p^n in the simplest queue (M/M/1); fewer than `batch` are inferred one by one.
    """
    return float((BUSY_LIMIT * inference_share) ** batch)


def make_plan(
    wish: Wish, point: Point, decode: DecodeCost, costs: FrameCosts, usable: float, *, batched: Point | None = None
) -> Plan:
    """Add up what one camera costs, and divide the machine by it.

    `batched` is the engine at the batch that workers take when so many frames wait; None where they infer one by one.
    """
    load = camera_load(decode, wish.camera, wish.profile, wish.fps, wish.busy_share)
    each = {
        "receive": load.receive,
        "decode": load.decode,
        "letterbox": load.letterbox,
        "send": load.detections_per_s * costs.send / 1e3,
        "broker": load.detections_per_s * costs.broker / 1e3,
        "engine": load.detections_per_s * point.core_ms / 1e3,
        "worker": load.detections_per_s * costs.worker / 1e3,
        "valkey": load.detections_per_s * costs.valkey / 1e3,
        "sink": load.detections_per_s * costs.sink / 1e3,
    }
    share = batched_share((each["engine"] + each["worker"]) / sum(each.values()), batched.batch) if batched else 0.0
    engine_ms = point.core_ms + share * (batched.core_ms - point.core_ms if batched else 0.0)
    each["engine"] = load.detections_per_s * engine_ms / 1e3
    limits = {"all cores": BUSY_LIMIT * usable / sum(each.values())}
    limits |= {part: BUSY_LIMIT / each[part] for part in SINGLE_THREADED if each[part]}
    thread = camera_thread(wish, decode)
    if thread > BUSY_LIMIT:  # no number of cores helps a thread
        limits[CAMERA_THREAD] = 0.0
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
        batch=batched.batch if batched else point.batch,
        cores=cores,
        used=used,
        usable=usable,
        limited_by=limited_by,
        lines=_lines(
            wish=wish,
            engine=_engine_words(point, batched, share, engine_ms),
            decode=decode,
            costs=costs,
            each=each,
            seen=load.detections_per_s,
            usable=usable,
            held=limits[limited_by],
            thread=thread,
        ),
    )


def camera_thread(wish: Wish, decode: DecodeCost) -> float:
    """Busy share of the one thread that receives, decodes and letterboxes a camera; when adaptive, while awake."""
    # Averaged with its sleep it would pass, and fall behind whenever something moves.
    awake = camera_load(decode, wish.camera, wish.profile, wish.fps, busy_share=1.0)
    return awake.receive + awake.decode + awake.letterbox


def worker_count(each: dict[str, float], cameras: int, cores_per_worker: int, usable: float) -> int:
    """Workers to start: as many as needed where all else then has cores of its own, else as many as fit."""
    inference = cameras * (each["engine"] + each["worker"])
    others = cameras * sum(share for part, share in each.items() if part not in ("engine", "worker"))
    most = max(1, int(usable) // cores_per_worker)
    needed = max(1, math.ceil(inference / BUSY_LIMIT / cores_per_worker))
    apart = needed * cores_per_worker + math.ceil(others / BUSY_LIMIT) <= usable
    return needed if apart else most


def _engine_words(point: Point, batched: Point | None, share: float, engine_ms: float) -> str:
    if batched is None or share < 0.005:
        return f"{engine_ms:.2f} ms"
    return (
        f"{engine_ms:.2f} ms ({1 - share:.0%} alone at {point.core_ms:.2f}, "
        f"{share:.0%} by {batched.batch} at {batched.core_ms:.2f})"
    )


def _lines(
    *,
    wish: Wish,
    engine: str,
    decode: DecodeCost,
    costs: FrameCosts,
    each: dict[str, float],
    seen: float,
    usable: float,
    held: float,
    thread: float,
) -> list[str]:
    camera = wish.camera
    every = f"{camera.fps:g} frames x {decode.frame_ms:.2f} ms"
    looks = min(camera.fps, 1 / LOOK_EVERY_S)
    shown_ms = decode.keyframe_ms + decode.look_ms
    how = {
        "all": every,
        "keyframes": f"{1 / camera.keyframe_s:.3g} keyframes x {decode.keyframe_ms:.2f} ms",
        "adaptive": f"{wish.busy_share:.3g} x ({every} + {looks:.3g} looks x {decode.look_ms:.2f} ms) "
        f"+ {1 - wish.busy_share:.3g} x ({asleep_keyframes_per_s(camera):.3g} keyframes x {shown_ms:.2f} ms)",
    }[wish.profile]
    overhead = costs.send + costs.broker + costs.worker + costs.valkey + costs.sink
    other = each["send"] + each["broker"] + each["worker"] + each["valkey"] + each["sink"]
    total = sum(each.values())
    several = f", at most {held:.1f} for one single-threaded process" if held < BUSY_LIMIT * usable / total else ""
    lines = [
        f"receive     {camera.fps:g} packets x {decode.packet_ms:.3f} ms = {1e3 * each['receive']:.1f} ms",
        f"decode      {how} = {1e3 * each['decode']:.1f} ms a camera and second",
        f"letterbox   {seen:.3g} frames x {decode.letterbox_ms:.2f} ms = {1e3 * each['letterbox']:.1f} ms",
        f"engine      {seen:.3g} frames x {engine} = {1e3 * each['engine']:.1f} ms",
        f"the rest    {seen:.3g} frames x {overhead:.2f} ms = {1e3 * other:.1f} ms (send {costs.send:.2f}, "
        f"broker {costs.broker:.2f}, worker {costs.worker:.2f}, valkey {costs.valkey:.2f}, sink {costs.sink:.2f}; "
        f"{costs.source})",
        f"a camera    {1e3 * total:.1f} ms of a core a second",
    ]
    if thread > BUSY_LIMIT:
        awake = " while it is awake" if wish.profile == "adaptive" else ""
        fewer = "set it to fewer keyframes" if wish.profile == "keyframes" else "decode its `keyframes` alone"
        return [
            *lines,
            f"one thread  a camera needs {thread:.2f} of it{awake} to receive, decode and letterbox; at most "
            f"{BUSY_LIMIT:g} is planned for, however many cores there are: use the camera's substream, lower its "
            f"frames a second, or {fewer}",
        ]
    return [
        *lines,
        f"cameras     {BUSY_LIMIT:g} x {usable:g} cores / {total:.4f} = {BUSY_LIMIT * usable / total:.1f}{several}",
    ]
