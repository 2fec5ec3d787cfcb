"""`sparsecam check [FILE]`: every problem of a config; with --probe also of its cameras and its model."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from ingest.redact import safe_url
from services.commands.tables import print_table, table_console
from services.config import Config, check_classes, find_config, load, no_config, places
from services.config_errors import ConfigError
from services.config_incidents import short_merges
from services.config_on_disk import gaps, refuse_missing_model, unchecked_classes
from services.model_classes import model_classes
from services.model_names import detector_settings, refuse_unknown_model
from services.process import stdout_to_stderr
from services.yaml_source import Problem
from wire.logs import redact, redact_value

# Cameras opened at once: opening mostly waits for the network, decoding one picture takes milliseconds.
PROBES_AT_ONCE = 8


@dataclass(frozen=True)
class Probe:
    """What became of opening one camera or loading the model."""

    name: str
    works: bool
    found: str


def check(given: Path | None, *, probe: bool, as_json: bool) -> int:
    """0 when the config can be used (and, with `probe`, every camera and the model work), else 1.

    Without a file that of every other command; raises ConfigError where there is none.
    """
    file = find_config(given)
    if file is None:
        raise no_config()
    warnings: list[Problem] = []
    try:
        config = load(file)
        warnings += gaps(config, file)
        warnings += short_merges(config, places(file))
        refuse_unknown_model(config, file)
        refuse_missing_model(config, file)
        classes = model_classes(config)
        if classes is None:
            warnings += unchecked_classes(config, file)
        else:
            check_classes(file, config, classes)
    except ConfigError as error:
        _print_problems(error, warnings, as_json)
        return 1
    probes = list(_probes(config)) if probe else []
    works = all(one.works for one in probes)
    if as_json:
        report = {
            "valid": True,
            "problems": [],
            "warnings": _plain(warnings),
            "probes": [asdict(one) for one in probes],
            "config": _shown(config),
        }
        typer.echo(json.dumps(report, indent=2))
        return 0 if works else 1
    _print_config(config, file, warnings)
    if probe:
        _print_probes(probes)
    _print_warnings(warnings)
    return 0 if works else 1


def _shown(config: Config) -> object:
    shown = config.model_dump(mode="json")
    for camera in shown["cameras"].values():
        camera["source"] = safe_url(camera["source"])  # finds more than what looks like a password in any text
    return redact_value(shown)


def _print_problems(error: ConfigError, warnings: list[Problem], as_json: bool) -> None:
    if as_json:
        report = {"valid": False, "problems": _plain(error.problems), "warnings": _plain(warnings), "probes": []}
        typer.echo(json.dumps(report, indent=2))
        return
    typer.echo(str(error), err=True)
    _print_warnings(warnings)
    typer.echo(f"\n{_counted(error.problems, 'problem')}", err=True)


def _print_warnings(warnings: list[Problem]) -> None:
    for one in warnings:
        typer.echo(f"{one.place}: warning: {one.text}", err=True)


def _plain(problems: list[Problem]) -> list[dict[str, object]]:
    return [
        {
            "source": one.place.source,
            "line": one.place.line or None,
            "column": one.place.column or None,
            "text": one.text,
        }
        for one in problems
    ]


def _counted(found: list[Problem], what: str) -> str:
    return f"{len(found)} {what}{'' if len(found) == 1 else 's'}"


def _print_config(config: Config, file: Path, warnings: list[Problem]) -> None:
    console = table_console()
    with_warnings = f", with {_counted(warnings, 'warning')}" if warnings else ""
    console.print(f"{file} is valid{with_warnings}.", highlight=False, soft_wrap=True)
    if config.cameras:
        print_table(console, ("camera", "source", "detected", "gate"), _camera_rows(config))
    else:
        console.print("No cameras.")
    if config.rules:
        headers = ("rule", "kind", "cameras", "labels", "from score", "confirmed by", "cooldown")
        print_table(console, headers, _rule_rows(config))
    else:
        console.print("No rules: no alerts.")
    console.print(f"model  {config.detector.model or 'none: nothing is detected'}", highlight=False)
    redis = "embedded Valkey" if config.embeds_valkey else redact(config.redis_url)
    console.print(f"redis  {redis}", highlight=False)


def _camera_rows(config: Config) -> Iterator[tuple[str, ...]]:
    for name, camera in config.cameras.items():
        rate = f"at most {camera.fps:g} fps" if camera.fps else "every frame"
        rate = "keyframes" if camera.profile == "keyframes" else rate
        gate = "motion" if camera.motion.enabled else "none"
        yield name, safe_url(camera.source) if camera.enabled else "(off)", rate, gate


def _rule_rows(config: Config) -> Iterator[tuple[str, ...]]:
    for name, rule in config.rules.items():
        watched = "all" if rule.cameras == "*" else ", ".join(rule.cameras)
        labels = ", ".join(rule.labels) or "all"
        confirmed = f"{rule.confirm_frames} of {rule.window_frames} frames"
        yield name, rule.kind, watched, labels, f"{rule.min_score:g}", confirmed, f"{rule.cooldown_s:g} s"


def _print_probes(probes: list[Probe]) -> None:
    rows = [(one.name, "yes" if one.works else "NO", one.found) for one in probes]
    print_table(table_console(), ("probe", "works", "found"), rows)


def _probes(config: Config) -> Iterator[Probe]:
    """Try each camera (several at once) and the model."""
    wanted = [name for name, camera in config.cameras.items() if camera.enabled]
    bar = Progress(
        SpinnerColumn(),
        TextColumn("probing"),
        BarColumn(),
        MofNCompleteColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar, ThreadPoolExecutor(PROBES_AT_ONCE) as pool:
        task = bar.add_task("", total=len(wanted) + 1)
        for done in pool.map(lambda name: _probe_camera(name, config), wanted):
            bar.advance(task)
            yield done
        yield _probe_model(config)
        bar.advance(task)


def _probe_camera(name: str, config: Config) -> Probe:
    from ingest.errors import SourceError
    from ingest.frames import Picture
    from ingest.reader import open_reader

    settings = config.cameras[name]
    begun_s = time.monotonic()
    try:
        _, reader = open_reader(settings, config.ingest.max_pixels)
        try:
            picture = next((one for one in reader.deliveries() if isinstance(one, Picture)), None)
        finally:
            reader.close()
    except SourceError as error:
        return Probe(f"camera {name}", False, error.words)
    if picture is None:
        return Probe(f"camera {name}", False, "opened, but no picture could be decoded")
    image = picture.image
    height, width = image.shape[:2] if isinstance(image, np.ndarray) else (image.height, image.width)
    return Probe(f"camera {name}", True, f"{width}x{height}, first picture after {time.monotonic() - begun_s:.1f} s")


def _probe_model(config: Config) -> Probe:
    if not config.detector.model:
        return Probe("model", False, "none: set detector.model to an ONNX file")
    from detector.detector import Detector
    from detector.errors import DetectorError

    try:
        with stdout_to_stderr():
            facts = Detector.load(detector_settings(config)).describe()
    except DetectorError as error:
        return Probe("model", False, str(error))
    classes = facts["classes"]
    shown = ", ".join(classes[:8]) + (f" and {len(classes) - 8} more" if len(classes) > 8 else "")
    found = f"{facts['model']} on {facts['engine']}, input {facts['input']}, {facts['head']}; classes: {shown}"
    return Probe("model", True, found)
