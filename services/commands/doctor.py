"""`sparsecam doctor`: what this machine has, what is wrong with it for Sparsecam, and the mend."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import redis
import typer

from detector.cores import topology
from detector.engines import KINDS, installed
from services import machine
from services.commands.health import host_reports
from services.config import LOCAL_FILE, LOOKED, Config, find_config, load
from services.config_errors import ConfigError
from services.model_names import model_file
from services.workers import worker_count
from trainer.errors import RegistryError
from wire.curve import LinkError
from wire.eviction import MEND, eviction
from wire.logs import redact
from wire.program import python
from wire.redis_link import Link, RedisAway, connect
from wire.redis_url import RedisUrlError
from wire.valkey import EmbeddedValkey, ValkeyError

State = Literal["ok", "note", "warning", "broken"]

IMPORT_LIMIT_S = 60.0  # DeepSparse takes some seconds to import on a cold disk
LEAST_MEMORY = 1 << 30  # two workers with their compiled model, two cameras, Valkey
FILES_PER_CAMERA = 12  # socket, decoder, timers and threads' pipes, counted on a running ingest and rounded up
FILES_BESIDES = 200  # sockets of the link, Redis, metrics, logs, shared libraries while they load

_MARKS: dict[State, tuple[str, str]] = {
    "ok": ("ok", "green"),
    "note": ("--", "blue"),
    "warning": ("! ", "yellow"),
    "broken": ("XX", "red"),
}


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    topic: str
    state: State
    found: str
    mend: str = ""


def doctor(config_path: Path | None, *, as_json: bool) -> int:
    """Print all findings; 1 when something is broken."""
    findings = list(examine(config_path))
    broken = any(finding.state == "broken" for finding in findings)
    if as_json:
        typer.echo(json.dumps({"ok": not broken, "findings": [asdict(finding) for finding in findings]}, indent=2))
        return int(broken)
    for finding in findings:
        mark, colour = _MARKS[finding.state]
        typer.echo(f"{typer.style(mark, fg=colour)}  {finding.topic:<12} {finding.found}")
        if finding.mend:
            typer.echo(f"{'':<17}{finding.mend}")
    worst = "something is broken" if broken else "nothing is broken"
    typer.echo(f"\n{worst}; {sum(finding.state == 'warning' for finding in findings)} warnings")
    return int(broken)


def examine(config_path: Path | None) -> Iterator[Finding]:
    """Look at everything in turn."""
    config = Config()
    path = find_config(config_path)
    try:
        config = load(path)
        if path:
            yield Finding("config", "ok", f"{path}: {len(config.cameras)} cameras, {len(config.rules)} rules")
        else:
            mend = f"Copy sparsecam.example.yaml to ./{LOCAL_FILE}, or name one with -c FILE; now defaults are judged."
            yield Finding("config", "note", f"none found: {LOOKED}", mend)
    except ConfigError as error:
        yield Finding("config", "broken", str(error), "The rest is judged by the default config.")
    yield _python()
    yield from _processor()
    yield from _cores(config)
    yield _memory()
    yield from _engines(config)
    yield _model(config)
    yield _redis(config)
    yield _sockets(config)
    yield from _ports(config)
    yield _open_files(config)


def _python() -> Finding:
    found = f"Python {sys.version.split()[0]} on {sys.platform} {os.uname().machine}"
    if sys.platform != "linux":
        return Finding("python", "warning", found, "Only Linux is tested: core pinning and clean-up need it.")
    return Finding("python", "ok", found)


def _processor() -> Iterator[Finding]:
    cpu = machine.processor()
    yield Finding("cpu", "ok", f"{cpu.name}, {cpu.physical} cores, {cpu.logical} threads")
    found = " ".join(name.upper().replace("_", " ") for name in cpu.instruction_sets) or "no AVX2"
    if os.uname().machine not in ("x86_64", "AMD64"):
        yield Finding("instructions", "note", f"{os.uname().machine}", "DeepSparse needs x86-64; use onnxruntime.")
    elif "avx2" not in cpu.flags:
        mend = "Neither DeepSparse nor fast inference without AVX2: set detector.engine: onnxruntime and expect little."
        yield Finding("instructions", "broken", found, mend)
    elif not cpu.fast_int8:
        mend = (
            "INT8 models run two to three times slower than on a processor with VNNI (Cascade Lake, Zen 4 or later). "
            "OpenVINO bears it best: leave detector.engine at auto, or name it."
        )
        yield Finding("instructions", "warning", found, mend)
    else:
        yield Finding("instructions", "ok", found)


def _cores(config: Config) -> Iterator[Finding]:
    here = topology()
    threads = sum(len(core.cpus) for core in here.cores)
    found = f"{len(here.cores)} cores, {threads} threads by affinity and cpuset"
    if here.quota_cores is not None:
        found += f", CPU quota {here.quota_cores:g} cores"
    if here.quota_cores is not None and here.quota_cores < threads:
        mend = (
            "A quota stops all threads for the rest of each period once it is used up. For steady latency give "
            "whole cores instead (docker: --cpuset-cpus; Kubernetes: static CPU policy)."
        )
        yield Finding("cores", "warning", found, mend)
    else:
        yield Finding("cores", "ok", found)
    workers, cores = worker_count(config), config.detector.cores_per_worker
    if workers * cores > here.usable:
        mend = f"More than the {here.usable} usable: lower detector.workers or detector.cores_per_worker."
        yield Finding("workers", "warning", f"{workers} workers of {cores} cores", mend)
    elif workers:
        yield Finding("workers", "ok", f"{workers} workers of {cores} cores")


def _memory() -> Finding:
    total = machine.memory_total_bytes()
    limit = machine.memory_limit_bytes()
    usable = min(total, limit) if limit else total
    found = f"{total / 2**30:.1f} GiB" + (f", limited to {limit / 2**30:.1f} GiB" if limit and limit < total else "")
    if 0 < usable < LEAST_MEMORY:
        return Finding("memory", "warning", found, "Below 1 GiB expect processes to be killed; raise the limit.")
    return Finding("memory", "ok", found)


def _engines(config: Config) -> Iterator[Finding]:
    """Each engine imported in a process of its own, since one may end its process on a CPU it does not know."""
    versions = installed()
    works = []
    for name, kind in KINDS.items():
        wanted = config.detector.engine == name
        if name not in versions:
            yield Finding(name, "broken" if wanted else "note", "not installed", kind.needs)
            continue
        complaint = _import_complaint(name)
        if complaint:
            yield Finding(name, "broken" if wanted else "warning", f"{versions[name]} does not load: {complaint}")
            continue
        works.append(name)
        mend = ""
        if name == "deepsparse":
            mend = "Its licence covers evaluation, not production, and its support ended in June 2025 (see README)."
        yield Finding(name, "ok", versions[name], mend)
    if not works:
        yield Finding("engines", "broken", "none works", "pip install onnxruntime")


def _import_complaint(name: str) -> str:
    program = f"from detector.engines import engine_class; engine_class({name!r})"
    environment = {**os.environ, "NM_DISABLE_ANALYTICS": "1"}
    try:
        done = subprocess.run(
            python(program), env=environment, capture_output=True, timeout=IMPORT_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no end of import in {IMPORT_LIMIT_S:g} s"
    if done.returncode == 0:
        return ""
    words = done.stderr.decode(errors="replace").strip().splitlines()
    return words[-1] if words else f"its process ended with {done.returncode}"


def _model(config: Config) -> Finding:
    if not config.detector.model:
        return Finding("model", "note", "none configured", "Set detector.model to an ONNX file.")
    try:
        path = model_file(config.detector.model, config.registry.folder)
    except RegistryError as error:
        return Finding(
            "model", "broken", str(error), "Check detector.model; `sparsecam models list` says what there is."
        )
    if not os.access(path, os.R_OK) or not path.is_file():
        return Finding("model", "broken", f"{path} cannot be read", "Check detector.model and the file's permissions.")
    return Finding("model", "ok", f"{path}, {path.stat().st_size / 1e6:.1f} MB")


def _redis(config: Config) -> Finding:
    shown = redact(config.redis_url)
    try:
        if config.embeds_valkey and not EmbeddedValkey(config.valkey_dir).socket_path.exists():
            with tempfile.TemporaryDirectory(prefix="sparsecam-") as folder, EmbeddedValkey(Path(folder)):
                return Finding("redis", "ok", "the embedded Valkey starts and answers")
        client = connect(config.redis, config.redis_url)
    except ValkeyError as error:
        return Finding("redis", "broken", str(error))
    except (RedisAway, RedisUrlError) as error:
        if config.embeds_valkey:
            return Finding("redis", "note", f"{shown} is left over and nothing answers", "`sparsecam up` replaces it.")
        return Finding("redis", "broken", str(error), "Check redis.url, that the server runs, and its password.")
    with closing(Link(client)) as link:
        return _writes(link, shown)


def _writes(link: Link, shown: str) -> Finding:
    """Whether what has been written stays: a user may lack the right, a replica or a full memory refuses."""
    probe = f"sparsecam:doctor:{uuid.uuid4().hex}"
    try:
        link.ask(("SET", probe, "1", "PX", 1000), ("DEL", probe))
        policy = eviction(link)
    except (redis.RedisError, OSError) as error:
        mend = "Its user needs all commands on keys and channels that begin with sparsecam: (see docs/subscribe.md)."
        return Finding("redis", "broken", f"{shown} answers, and takes no write: {redact(str(error))}", mend)
    if policy:
        found = f"{shown} answers, and evicts keys when its memory is full ({policy}): alerts can be lost"
        return Finding("redis", "warning", found, f"{MEND[0].upper()}{MEND[1:]}.")
    return Finding("redis", "ok", f"{shown} answers and takes writes")


def _sockets(config: Config) -> Finding:
    """Try to make a unix socket where the processes meet: network file systems and read-only mounts cannot."""
    folder = config.runtime_dir
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe = folder / f".probe-{os.getpid()}"
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(probe))
        probe.unlink()
    except OSError as error:
        mend = "Set runtime_dir to a folder on a local disk or tmpfs that this user may write."
        return Finding("runtime_dir", "broken", f"{folder}: no unix socket can be made ({error.strerror})", mend)
    kind = machine.filesystem_of(folder) or "unknown file system"
    mend = "" if kind == "tmpfs" else "On tmpfs the embedded Valkey and health files would spare the disk."
    return Finding("runtime_dir", "ok" if kind == "tmpfs" else "note", f"{folder} on {kind}", mend)


def _ports(config: Config) -> Iterator[Finding]:
    metrics = config.metrics
    if host_reports(config.health_dir) and any(report.healthy() for _, report in host_reports(config.health_dir)):
        yield Finding("ports", "note", "not tried: Sparsecam is running")
        return
    wanted = {"broker_port": metrics.broker_port, "ingest_port": metrics.ingest_port, "sink_port": metrics.sink_port}
    wanted |= {
        f"detector_port + {index}": metrics.detector_port + index
        for index in range(worker_count(config))
        if metrics.detector_port
    }
    taken = {name: port for name, port in wanted.items() if port and metrics.enabled and _taken(metrics.host, port)}
    if taken:
        found = ", ".join(f"{port} (metrics.{name})" for name, port in taken.items()) + " taken by another program"
        yield Finding("ports", "warning", found, "Metrics would move to any free port: choose others in `metrics`.")
    else:
        yield Finding("ports", "ok", "metrics ports are free" if metrics.enabled else "metrics are off")
    try:
        from services.link import link_keys

        link_keys(config, "broker")
    except LinkError as error:
        yield Finding("link", "broken", str(error))


def _taken(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False


def _open_files(config: Config) -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = FILES_BESIDES + FILES_PER_CAMERA * len(config.cameras)
    found = f"{soft} (at most {hard})"
    if soft != resource.RLIM_INFINITY and soft < needed:
        mend = (
            f"{len(config.cameras)} cameras need about {needed}: raise it (ulimit -n, LimitNOFILE=, --ulimit nofile)."
        )
        return Finding("open files", "broken", found, mend)
    return Finding("open files", "ok", found)
