"""How much memory the embedded Valkey gets, and whether all that cameras and alerts may leave in it has room there.

Only a limit: the server takes what it holds. Where it is reached the oldest detections make way (wire/room.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.machine import memory_limit_bytes, memory_total_bytes

if TYPE_CHECKING:
    from services.config import Config

# Measured with Valkey 9: a frame with ten objects takes 907 bytes in its stream; an alert with two objects and links
# takes 1,918 with the mark of its id.
FRAME_BYTES = 910
ALERT_BYTES = 1920
# A camera's bitmap of frames seen, twice when its reader begins anew, its state, and what a sink that catches up reads
# of it at once (512 frames, which count until it has taken them).
CAMERA_BYTES = 800 << 10
# The server itself, what its clients have on their way, training jobs, dead letters.
BESIDES_BYTES = 64 << 20
LEAST_MB = 512
# Beside it on the machine work decoders and detectors, and for a moment the copy that rewrites the append-only file.
MACHINE_SHARE = 1 / 4


def needed_mb(config: Config) -> int:
    """Memory for the longest streams that the config allows, with ten objects in every frame."""
    return _fixed_mb(config) + -(-len(config.cameras) * config.redis.detections_maxlen * FRAME_BYTES >> 20)


def memory_mb(config: Config) -> int:
    """The embedded Valkey's: as set, else what is needed within LEAST_MB and MACHINE_SHARE of this machine's memory."""
    if config.redis.memory_mb is not None:
        return config.redis.memory_mb
    needed = needed_mb(config)
    total = memory_total_bytes() or needed << 20
    machine_mb = min(total, memory_limit_bytes() or total) >> 20
    return max(LEAST_MB, min(needed, int(machine_mb * MACHINE_SHARE)))


def too_small(config: Config) -> str:
    """What to say where the embedded Valkey cannot hold what the config keeps; empty where it can, or is not used."""
    if not config.embeds_valkey or (have := memory_mb(config)) >= (needed := needed_mb(config)):
        return ""
    text = (
        f"{len(config.cameras)} cameras with {config.redis.detections_maxlen} frames kept of each, and "
        f"{config.redis.alerts_maxlen} alerts, may need {needed} MB; the embedded Valkey has {have} MB here, and when "
        "it is full the oldest detections go early"
    )
    fits = ((have - _fixed_mb(config)) << 20) // (FRAME_BYTES * max(1, len(config.cameras)))
    lower = f"lower redis.detections_maxlen to {fits}" if fits >= 10 else "lower redis.alerts_maxlen"
    return f"{text}; {lower}, or set redis.memory_mb to {needed} where the machine has that to spare"


def _fixed_mb(config: Config) -> int:
    """What does not depend on detections_maxlen."""
    return -(-(len(config.cameras) * CAMERA_BYTES + config.redis.alerts_maxlen * ALERT_BYTES + BESIDES_BYTES) >> 20)
