"""`sparsecam health`: do the processes of this host work? Quick, for container health checks."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from pathlib import Path

import msgspec
import typer

from services.config import find_config, load
from wire.health import HealthError, HealthReport, read_health


def health(role: str | None, config_path: Path | None, *, as_json: bool) -> int:
    """0 when the processes of `role` (None: all) on this host work, else 1."""
    folder = load(find_config(config_path)).health_dir
    reports = host_reports(folder, role)
    works = bool(reports) and all(report.healthy() for _, report in reports)
    if as_json:
        found = {
            name: {**msgspec.to_builtins(report), "age_s": round(report.age_s(), 1), "healthy": report.healthy()}
            for name, report in reports
        }
        typer.echo(json.dumps({"healthy": works, "processes": found}, indent=2))
        return 0 if works else 1
    for name, report in reports:
        typer.echo(f"{name:<12} {_words(report):<10} {report.age_s():6.1f} s ago  {_facts(report)}")
    if not reports:
        typer.echo(f"no report of {role or 'any process'} of this host in {folder}: is it running?")
    return 0 if works else 1


def host_reports(folder: Path, role: str | None = None) -> list[tuple[str, HealthReport]]:
    """(name, report) of this host's processes; those that were stopped are left out beside a running one."""
    host = socket.gethostname()
    found = []
    for path in sorted(folder.glob(f"{role or '*'}-{host}-*.json")):
        try:
            report = read_health(path)
        except HealthError:
            continue  # replaced or removed in this moment
        if report.host == host:
            index = path.stem.rpartition("-")[2]
            found.append((f"{report.role}-{index}", report))
    return [(name, report) for name, report in found if report.state != "stopped" or not _has_peer(report, found)]


def _has_peer(report: HealthReport, found: Sequence[tuple[str, HealthReport]]) -> bool:
    return any(other.role == report.role and other.healthy() for _, other in found)


def _words(report: HealthReport) -> str:
    return "silent" if report.stale() and report.state not in ("stopped", "failed") else report.state


def _facts(report: HealthReport) -> str:
    return "  ".join(f"{key}={value}" for key, value in report.detail.items() if not isinstance(value, dict | list))
