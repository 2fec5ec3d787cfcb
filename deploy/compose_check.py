"""What `make compose-test` expects of the running containers; compose_test.sh starts this and cleans up after it.

prepare WORK ROOT            a video, a model and a config into WORK
check PROJECT DETECTORS      alerts on the host, health, closed containers, cores, a killed detector
stopped PROJECT              every process ended by itself, in time
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import av
import numpy as np
import redis

CHANNEL = "sparsecam:alerts"
OURS = ("broker", "ingest", "detector", "sink")
# The first alert waits for containers to start and a model to be tried and compiled, on two busy cores.
FIRST_ALERT_S = 300.0
SETTLE_S = 60.0  # until every health check says healthy; until a killed worker is back at work
POLL_S = 0.02  # a killed detector is away for about a second: often enough to see it

T = TypeVar("T")


def fail(text: str) -> NoReturn:
    """End the test with the reason."""
    sys.exit(f"compose-test: FAILED: {text}")


def say(text: str) -> None:
    """One line of progress."""
    print(f"compose-test: {text}", flush=True)


def wait_for(what: str, within_s: float, look: Callable[[], T | None]) -> T:
    """The first answer of `look` that is not None; fails after `within_s`."""
    deadline = time.monotonic() + within_s
    while True:
        found = look()
        if found is not None:
            return found
        if time.monotonic() > deadline:
            fail(f"{what}: not within {within_s:g} s")
        time.sleep(POLL_S)


# --- prepare ----------------------------------------------------------------------------------------------------------


def prepare(work: Path, root: Path) -> None:
    """Write media/clip.mp4, models/model.onnx and sparsecam.yaml.

    The reference article's video and model where they lie beside the checkout, else drawn and built on the spot.
    """
    (work / "media").mkdir()
    (work / "models").mkdir()
    clip, model = work / "media" / "clip.mp4", work / "models" / "model.onnx"
    video = root.parent / "shared" / "videos" / "pistol.mp4"
    weights = root.parent / "shared" / "weights" / "reference-pistols-yolov5n-int8-hardswish.onnx"
    real = video.is_file() and weights.is_file() and not os.environ.get("COMPOSE_TEST_DRAWN")
    if real:
        shutil.copyfile(video, clip)
        shutil.copyfile(weights, model)
        label = "pistol"
    else:
        draw_clip(clip)
        build_model(root, model)
        label = "bright"
    (work / "sparsecam.yaml").write_text(
        f"""cameras:
  clip: {{ source: /media/clip.mp4, loop: true, pace: realtime }}
detector: {{ model: /models/model.onnx, labels: [{label}] }}
rules:
  seen: {{ labels: [{label}], min_score: 0.3, confirm_frames: 2, window_frames: 5, cooldown_s: 1 }}
"""
    )
    # Owned by root here and read by user 10001 there.
    for path in (work, clip.parent, model.parent):
        path.chmod(0o755)
    for path in (clip, model, work / "sparsecam.yaml"):
        path.chmod(0o644)
    say(f"watches {'the reference video for' if real else 'a drawn video for'} {label!r}")


def draw_clip(path: Path) -> None:
    """Four seconds of H.264: a white square that wanders over dark grey."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for number in range(100):
            picture = np.full((240, 320, 3), 40, np.uint8)
            left = 20 + 2 * number
            picture[80:160, left : left + 60] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def build_model(root: Path, path: Path) -> None:
    """The tests' detector of bright boxes."""
    spec = importlib.util.spec_from_file_location("graphs", root / "tests" / "graphs.py")
    if spec is None or spec.loader is None:
        fail("tests/graphs.py cannot be loaded")
    graphs = importlib.util.module_from_spec(spec)
    sys.modules["graphs"] = graphs  # its dataclasses look their module up
    spec.loader.exec_module(graphs)
    graphs.bright_box(path)


# --- what runs --------------------------------------------------------------------------------------------------------


class Engine:
    """Podman's own view of the project, beside compose's. compose_test.sh has set which storage podman uses."""

    def __init__(self, project: str) -> None:
        self._program = shutil.which("podman") or fail("podman is not installed")
        self._project = project

    def run(self, *args: str, limit_s: float = 30.0) -> subprocess.CompletedProcess[str]:
        """One podman command."""
        return subprocess.run([self._program, *args], capture_output=True, text=True, timeout=limit_s, check=False)

    def containers(self, service: str) -> list[dict[str, Any]]:
        """The `podman inspect` of each container of a service, by number."""
        label = "com.docker.compose"
        filters = [f"label={label}.project={self._project}", f"label={label}.service={service}"]
        ids = self.run("ps", "--all", "--quiet", *(part for one in filters for part in ("--filter", one)))
        if not ids.stdout.split():
            return []
        found: list[dict[str, Any]] = json.loads(self.run("inspect", *ids.stdout.split()).stdout)
        return sorted(found, key=lambda one: str(one["Name"]))

    def healthy(self, name: str) -> bool | None:
        """Run the container's health check now, since systemd, which does it for podman, may be absent."""
        return True if self.run("healthcheck", "run", name).returncode == 0 else None

    def volume(self, name: str) -> Path:
        """Where a volume of the project is mounted on this host."""
        found = self.run("volume", "inspect", "--format", "{{.Mountpoint}}", f"{self._project}_{name}")
        return Path(found.stdout.strip())


def worker_pid(container: dict[str, Any]) -> int | None:
    """Host's number of the process that `init` started in a container; None while there is none."""
    init = int(container["State"]["Pid"])
    try:
        children = Path(f"/proc/{init}/task/{init}/children").read_text().split() if init else []
    except OSError:
        return None
    return int(children[0]) if children else None


def pinned_cpus(container: dict[str, Any]) -> set[int] | None:
    """The processors a detector has pinned itself to; None while it has not."""
    pid = worker_pid(container)
    try:
        cpus = os.sched_getaffinity(pid) if pid else set()
    except ProcessLookupError:
        return None
    every = os.sched_getaffinity(0)
    return set(cpus) if cpus and (cpus != every or len(every) == 1) else None


def lock_holders(folder: Path) -> dict[str, int]:
    """Core's lock file below `folder` -> the host's number of the process that has it, as the kernel says."""
    files = {}
    for path in folder.rglob("core-*.lock"):
        stat = path.stat()
        files[f"{os.major(stat.st_dev):02x}:{os.minor(stat.st_dev):02x}:{stat.st_ino}"] = path.stem
    held = {}
    for row in Path("/proc/locks").read_text().splitlines():
        fields = row.split()  # 1: FLOCK ADVISORY WRITE <pid> <major>:<minor>:<inode> 0 EOF
        if fields[1] == "FLOCK" and fields[5] in files:
            held[files[fields[5]]] = int(fields[4])
    return held


# --- check ------------------------------------------------------------------------------------------------------------


def check(project: str, detectors: int) -> None:
    """Everything that is promised of a running project."""
    engine = Engine(project)
    client = redis.Redis.from_url(os.environ["COMPOSE_TEST_REDIS"], socket_timeout=2, socket_connect_timeout=2)
    listener: Any = client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]  # redis-py's own
    wait_for("Redis on the host's port", SETTLE_S, lambda: _subscribed(listener))
    alert = next_alert(listener, FIRST_ALERT_S)
    say(f"alert on the host: {json.dumps(alert)}")
    if alert["camera"] != "clip" or not client.xlen(CHANNEL):
        fail(f"expected an alert of camera clip, in the stream {CHANNEL} too")
    check_redis_is_closed(client)
    check_health(engine, detectors)
    check_containers_are_closed(engine)
    check_cores(engine, detectors)
    kill_a_detector(engine, detectors)
    while listener.get_message():
        pass  # from before the detector was back
    next_alert(listener, SETTLE_S)
    say("alerts go on")


def _subscribed(listener: Any) -> bool | None:
    try:
        listener.subscribe(CHANNEL)
    except (redis.ConnectionError, redis.TimeoutError):
        return None
    return True


def next_alert(listener: Any, within_s: float) -> dict[str, Any]:
    """The next message of the channel."""
    message = wait_for("an alert", within_s, lambda: listener.get_message(timeout=0.5))
    found: dict[str, Any] = json.loads(message["data"])
    return found


def check_redis_is_closed(client: redis.Redis) -> None:
    """Nobody without the password, no administration and no other keys with it."""
    at = client.connection_pool.connection_kwargs
    stranger = redis.Redis(host=at["host"], port=at["port"], socket_timeout=2, protocol=2)
    attempts: dict[str, Callable[[], object]] = {
        "a stranger's PING": stranger.ping,
        "CONFIG GET": lambda: client.config_get("*"),
        "a foreign key": lambda: client.set("other:key", "1"),
        "a foreign channel": lambda: client.publish("other", "1"),
    }
    for name, attempt in attempts.items():
        try:
            attempt()
        except (redis.AuthenticationError, redis.ResponseError) as error:
            if any(word in str(error) for word in ("NOAUTH", "permission", "Authentication required")):
                continue
            fail(f"{name}: {error}")
        fail(f"{name} was let through")
    say("redis: refuses strangers, administration, foreign keys and channels")


def check_health(engine: Engine, detectors: int) -> None:
    """The health check of each service says healthy."""
    for service in ("valkey", *OURS):
        names = [str(container["Name"]) for container in engine.containers(service)]
        if not names:
            fail(f"no container of {service}")
        for name in names:
            wait_for(f"{name} healthy", SETTLE_S, partial(engine.healthy, name))
    if len(engine.containers("detector")) != detectors:
        fail(f"{len(engine.containers('detector'))} detectors, not {detectors}")
    say("health: every container is healthy")
    wrong = engine.run("exec", engine.containers("sink")[0]["Name"], "sparsecam", "health", "broker")
    if wrong.returncode == 0:
        fail(f"the sink's container calls the broker healthy, which does not run in it: {wrong.stdout}")


def check_containers_are_closed(engine: Engine) -> None:
    """As the processes themselves see it: user, capabilities, what can be written."""
    # Not among the places: /run and /var/tmp, where podman of itself puts memory over a read-only root.
    probe = (
        "import os\n"
        "status = dict(row.split(':', 1) for row in open('/proc/1/status').read().splitlines())\n"
        "def writable(path):\n"
        "    try: open(path + '/probe', 'w').close()\n"
        "    except OSError: return False\n"
        "    os.unlink(path + '/probe'); return True\n"
        "places = ['/', '/etc', '/opt/sparsecam', '/usr', '/var/lib', '/models', '/media', '/tmp']\n"
        "facts = os.getuid(), int(status['CapBnd'], 16), int(status['NoNewPrivs'])\n"
        "print(*facts, [place for place in places if writable(place)])\n"
    )
    for service in OURS:
        name = engine.containers(service)[0]["Name"]
        seen = engine.run("exec", name, "python", "-c", probe)
        if seen.stdout.strip() != "10001 0 1 ['/tmp']":
            fail(f"{name}: expected user 10001, no capabilities, only /tmp writable; found {seen.stdout}{seen.stderr}")
    say("closed: user 10001, no capabilities, no new privileges, nothing writable but /tmp")


def check_cores(engine: Engine, detectors: int) -> dict[str, set[int]]:
    """Each detector has pinned itself, and no two to the same processor."""

    def pins() -> dict[str, set[int]] | None:
        found = {one["Name"]: pinned_cpus(one) for one in engine.containers("detector")}
        pinned = {name: cpus for name, cpus in found.items() if cpus}
        return pinned if len(pinned) == detectors else None

    found = wait_for("every detector pinned", SETTLE_S, pins)
    for name, cpus in found.items():
        others = set().union(*(other for key, other in found.items() if key != name))
        if cpus & others:
            fail(f"detectors share processors: {found}")
    say("cores: " + ", ".join(f"{name} on {sorted(cpus)}" for name, cpus in found.items()))
    return found


def kill_a_detector(engine: Engine, detectors: int) -> None:
    """kill -9 one: the kernel gives its locks back at once, and its replacement takes cores that are free."""
    folder = engine.volume("runtime")
    victim = engine.containers("detector")[0]
    pid = worker_pid(victim)
    before = lock_holders(folder)
    cores = {name for name, holder in before.items() if holder == pid}
    if pid is None or not cores:
        fail(f"{victim['Name']} (process {pid}) holds no lock below {folder}: {before}")
    os.kill(pid, signal.SIGKILL)
    killed_at = time.monotonic()

    def freed() -> bool | None:
        return None if pid in lock_holders(folder).values() else True

    wait_for(f"locks {sorted(cores)} of the killed process free", 5, freed)
    took_ms = 1000 * (time.monotonic() - killed_at)
    say(f"killed {victim['Name']}: {', '.join(sorted(cores))} free after {took_ms:.0f} ms")

    def back() -> int | None:
        one = engine.containers("detector")[0]
        new = worker_pid(one)
        return new if new not in (None, pid) and new in lock_holders(folder).values() else None

    wait_for(f"{victim['Name']} restarted with cores of its own", SETTLE_S, back)
    say(f"its replacement claimed cores {time.monotonic() - killed_at:.1f} s after the kill")
    check_cores(engine, detectors)


def stopped(project: str) -> None:
    """Nobody had to be killed at the end."""
    engine = Engine(project)
    for service in ("valkey", *OURS):
        for container in engine.containers(service):
            code = container["State"]["ExitCode"]
            if container["State"]["Running"] or code != 0:
                fail(f"{container['Name']} did not stop by itself: exit code {code}")
    say("stopped: every process ended by itself with exit code 0")


def main(words: list[str]) -> None:
    """See the module's text."""
    match words:
        case ["prepare", work, root]:
            prepare(Path(work), Path(root))
        case ["check", project, detectors]:
            check(project, int(detectors))
        case ["stopped", project]:
            stopped(project)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
