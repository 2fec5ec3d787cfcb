"""`sparsecam demo`: everything on one source with an embedded Valkey; alerts as they happen, a summary at the end."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import typer
import yaml
from rich.table import Table

from ingest.redact import safe_url
from ingest.sources import parse
from services.commands.alerts import line
from services.commands.demo_street import is_street, street_model, street_rules
from services.commands.tables import table_console
from services.config import Config, load
from services.model_names import model_file
from services.process import LogOptions, catch_signals, die_with_parent, report_path
from services.supervisor import Supervisor
from services.workers import worker_count
from wire.alerts import Alert, follow_alerts
from wire.health import HealthError, read_health
from wire.logs import redact, setup_logs
from wire.redis_link import connect

# The street that the simulated cameras show; the seeds differ, and with them what happens.
SIMULATED = {"street-1": "sim://street?seed=1", "street-2": "sim://street?seed=2"}
WITHOUT_MODEL_S = 10.0  # long enough to see both cameras stream, short enough to wait for
DRAIN_S = 10.0  # a file's frames on their way when the time is up: 16 of them at a slow two a second
STARTING_S = 300.0  # what trying and compiling a large model on a slow machine may take before the first frame
TELL_S = 15.0  # a silence that makes people think of Ctrl-C
STOP_S = 10.0  # nobody waits for a container here, and a summary of processes that ended by themselves is better
ALERTS_S = 3.0  # for the last detections to become alerts, and those to be read
# Easy to set off, so that a newcomer sees alerts; three frames of five keep single false boxes out.
RULE: dict[str, Any] = {"min_score": 0.4, "confirm_frames": 3, "window_frames": 5, "cooldown_s": 5}

_ENDING = ("file", "images")  # kinds of sources that are read once, each frame exactly once

NO_MODEL = """\
No model was given{besides}, so nothing can be detected: for {seconds:g} s the cameras
run through the real capture path, and every frame is counted as dropped for want of a model. For alerts give a model:

    make demo SOURCE=video.mp4 MODEL=model.onnx       or       sparsecam demo --source video.mp4 --model model.onnx
"""


@dataclass(frozen=True)
class Options:
    """What the person asked for."""

    source: str
    model: str
    labels: list[str] | None
    seconds: float  # 0: a file once, anything else until Ctrl-C
    logs: LogOptions


@dataclass
class Summary:
    """What came of it."""

    captured: int = 0
    detected: int = 0
    in_flight: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0  # from the first frame to the last
    fps: float = 0.0  # frames detected (without a model: captured) a second
    alerts: dict[str, int] = field(default_factory=dict)  # by label
    cameras: dict[str, str] = field(default_factory=dict)  # name: state, and its error


class DemoError(ValueError):
    """The demo cannot run as asked."""


def demo(options: Options, *, as_json: bool) -> int:
    """Run it and print the summary; the exit code is that of the first process that could not run, else 0."""
    stop = threading.Event()
    die_with_parent()
    catch_signals(stop)
    setup_logs(options.logs.level, options.logs.format)
    options, classes = _with_model(options)
    seconds = options.seconds
    if not options.model:
        seconds = min(seconds, WITHOUT_MODEL_S) if seconds else WITHOUT_MODEL_S
        besides = " and none for the street is there" if is_street(options.source) else ""
        typer.echo(NO_MODEL.format(besides=besides, seconds=seconds), err=True)
    # The demo's own Valkey, whatever Redis the shell may know of: nothing of it should land in a real one.
    os.environ.pop("REDIS_URL", None)
    os.environ.pop("SPARSECAM__REDIS__URL", None)
    with tempfile.TemporaryDirectory(prefix="sparsecam-demo-") as folder:
        path = Path(folder) / "sparsecam.yaml"
        path.write_text(yaml.safe_dump(demo_config(options, Path(folder), classes, loops=seconds > 0), sort_keys=False))
        path.chmod(0o600)  # the source may hold a password
        config = load(path)
        _announce(options, config)
        code, summary = _Run(config, path, options.logs).until(stop, seconds, as_json=as_json)
    _print(summary, as_json)
    return code


def _with_model(options: Options) -> tuple[Options, list[str]]:
    """The file of the model that was asked for; else, for the street, that of the street's model, with its classes."""
    if options.model:
        path = model_file(options.model)
        if not path.is_file():
            raise DemoError(f"the model {options.model} is not there; MODEL= wants the path of an ONNX file, or a name")
        return replace(options, model=str(path)), []
    if not is_street(options.source):
        if options.source and parse(options.source).kind in _ENDING:
            raise DemoError(
                "a file waits until a detector takes its frames, and no model was given; expected one, such as "
                "MODEL=model.onnx or --model NAME (`sparsecam models list` has the names)"
            )
        return options, []
    entry, problems = street_model()
    for problem in problems:
        typer.echo(f"not used: {problem}", err=True)
    if entry is None or entry.card is None:
        return options, []
    return replace(options, model=str(entry.path)), entry.card.classes


def demo_config(options: Options, folder: Path, street: list[str], *, loops: bool) -> dict[str, Any]:
    """The config that a newcomer would write; a file repeats when the demo has a fixed length.

    `street` has the classes of a model of the simulated street: with them there are rules for what happens there.
    """
    sources = {"demo": options.source} if options.source else SIMULATED
    cameras: dict[str, Any] = {}
    for name, text in sources.items():
        source = parse(text)
        ends = source.kind in _ENDING
        cameras[name] = {
            # Relative paths are meant from where the command was given; the processes run there too, but this is clear.
            "source": str(Path(text).expanduser().resolve()) if ends and "://" not in text else text,
            **({"loop": loops} if ends else {}),
        }
    detector: dict[str, Any] = {"model": str(Path(options.model).resolve())} if options.model else {}
    if labels := options.labels:
        detector["labels"] = labels
    return {
        "runtime_dir": str(folder / "run"),
        "cameras": cameras,
        "detector": detector,
        "rules": {"anything": RULE},
        # While a model is tried for the first time no detector answers, and here that is nothing to tell of. On a slow
        # machine compiling leaves the cameras little: a minute until their first frame is no camera down either.
        "incidents": {"system": {"detector_slow_s": STARTING_S, "camera_down_s": 60}},
        "metrics": {f"{role}_port": 0 for role in ("broker", "ingest", "sink", "detector")},
        **street_rules(sources, street, RULE["min_score"]),
    }


def _announce(options: Options, config: Config) -> None:
    shown = ", ".join(safe_url(camera.source) for camera in config.cameras.values())
    typer.echo(f"source  {shown}", err=True)
    if options.model:
        typer.echo(f"model   {options.model} on {worker_count(config)} workers", err=True)
        typer.echo("the first start tries the model on each engine (20 s to 2 minutes); the verdict is kept", err=True)
        typer.echo("alerts follow; Ctrl-C ends with a summary\n", err=True)


class _Run:
    """One demo under way. Reads ingest's ledgers from its health report."""

    def __init__(self, config: Config, path: Path, logs: LogOptions) -> None:
        self._config = config
        self._workers = worker_count(config)
        roles = ("broker", "ingest", "detector", "sink") if self._workers else ("broker", "ingest")
        self._supervisor = Supervisor(config, path, workers=self._workers, roles=roles, logs=logs)
        self._report = report_path(config.health_dir, "ingest", 0)
        self._detail: dict[str, Any] = {}
        self._begun_s = time.monotonic()
        self._first_s = self._last_s = 0.0
        self._tell_at_s = self._begun_s + TELL_S
        self._counted = 0
        self._alerts: Counter[str] = Counter()
        self._alerts_read = threading.Event()

    def until(self, stop: threading.Event, seconds: float, *, as_json: bool) -> tuple[int, Summary]:
        """Run until `stop`, the end of all files, or `seconds` after the first frame; then drain and stop."""

        def look() -> None:
            self._look()
            self._tell_of_waiting()
            if self._detail.get("finished") or (seconds and self._is_over(seconds)):
                stop.set()

        follower = threading.Thread(target=self._follow, args=(as_json,), name="alerts", daemon=True)
        try:
            self._supervisor.start()
            follower.start()
            code = self._supervisor.run(stop, look)
            # Cameras first, so that what they captured is detected; then the alerts of that.
            self._supervisor.stop_roles(["ingest"], DRAIN_S)
            self._look()
            if self._workers and code == 0:
                self._wait_for_alerts()
        finally:
            self._alerts_read.set()
            self._supervisor.stop(STOP_S)
        if follower.ident is not None:
            follower.join(timeout=1.0)
        return code, self._summary()

    def _is_over(self, seconds: float) -> bool:
        """The time counts from the first frame; without any from the start, once no camera can be waited for."""
        now_s = time.monotonic()
        if self._first_s:
            return now_s - self._first_s >= seconds
        return now_s - self._begun_s >= (seconds if self._no_camera_works() else seconds + STARTING_S)

    def _no_camera_works(self) -> bool:
        cameras = self._detail.get("cameras", {}).values()
        return bool(cameras) and all(camera.get("error") for camera in cameras)

    def _tell_of_waiting(self) -> None:
        """A first start is silent for as long as engines compile."""
        now_s = time.monotonic()
        if self._first_s or not self._workers or now_s < self._tell_at_s or self._no_camera_works():
            return
        self._tell_at_s = now_s + TELL_S
        waited_s = now_s - self._begun_s
        typer.echo(f"        {waited_s:.0f} s: the model is being tried or compiled, no frame detected yet", err=True)

    def _look(self) -> None:
        """Note what ingest says, and when frames were counted first and last."""
        try:
            self._detail = read_health(self._report).detail
        except HealthError:
            return
        counted = int(self._detail.get("detected" if self._workers else "captured", 0))
        if counted > self._counted:
            now_s = time.monotonic()
            self._first_s = self._first_s or now_s
            self._last_s = now_s
            self._counted = counted

    def _wait_for_alerts(self) -> None:
        """Until the sink has read all detections and its alerts have come here, or ALERTS_S have passed."""
        sink = report_path(self._config.health_dir, "sink", 0)
        until_s = time.monotonic() + ALERTS_S
        while time.monotonic() < until_s:
            try:
                detail = read_health(sink).detail
            except HealthError:
                return
            all_read = int(detail.get("read", 0)) >= int(self._detail.get("detected", 0))
            none_waits = not int(detail.get("alerts_waiting", 0))
            if all_read and none_waits and self._alerts.total() >= int(detail.get("alerts", 0)):
                return
            time.sleep(0.05)

    def _follow(self, as_json: bool) -> None:
        """Print alerts as they come; ends when told, or with the Valkey that it reads."""
        stream = follow_alerts(lambda: connect(self._config.redis, self._config.redis_url), "0", self._alerts_read)
        for _, alert in stream:
            if alert.event == "opened":
                self._alerts[alert.label or alert.rule] += 1
            self._print_alert(alert, as_json)

    def _print_alert(self, alert: Alert, as_json: bool) -> None:
        stream = sys.stderr if as_json else sys.stdout
        stream.write(f"ALERT  {line(alert)}\n")
        stream.flush()

    def _summary(self) -> Summary:
        detail = self._detail
        seconds = self._last_s - self._first_s
        cameras = detail.get("cameras", {})
        return Summary(
            captured=int(detail.get("captured", 0)),
            detected=int(detail.get("detected", 0)),
            in_flight=int(detail.get("in_flight", 0)),
            dropped={
                name.removeprefix("dropped_"): int(count)
                for name, count in detail.items()
                if name.startswith("dropped_") and count
            },
            seconds=round(seconds, 2),
            fps=round(self._counted / seconds, 1) if seconds > 0 else 0.0,
            alerts=dict(self._alerts),
            cameras={
                name: f"{camera['state']}{': ' + camera['error'] if camera.get('error') else ''}"
                for name, camera in cameras.items()
            },
        )


def _print(summary: Summary, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(asdict(summary)))
        return
    table = Table(show_header=False, title="summary", title_justify="left")
    table.add_row("frames captured", str(summary.captured))
    table.add_row("frames detected", str(summary.detected))
    dropped = "\n".join(f"{count} {cause}" for cause, count in sorted(summary.dropped.items()))
    table.add_row("frames dropped", dropped or "0")
    if summary.in_flight:
        table.add_row("frames not accounted for yet", str(summary.in_flight))
    table.add_row("FPS", f"{summary.fps:.1f} over {summary.seconds:.1f} s")
    alerts = ", ".join(f"{count} {label}" for label, count in sorted(summary.alerts.items()))
    table.add_row("alerts", alerts or "0")
    for name, state in summary.cameras.items():
        table.add_row(f"camera {name}", redact(state))
    table_console().print(table)
