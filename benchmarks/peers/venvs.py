"""One environment a set of packages, made once under a cache folder; a stamp says that it is whole."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

import structlog

log = structlog.get_logger()

_INSTALL_TIMEOUT_S = 1800  # torch and OpenVINO are 300 MB together; a slow line takes its time
_IMPORT_TIMEOUT_S = 120
_STAND_IN = Path(__file__).with_name("torchvision_nms.py")
_STAND_IN_METADATA = "Metadata-Version: 2.1\nName: torchvision\nVersion: {version}\n"


class PeerUnavailable(Exception):
    """A peer cannot run here; the message says why."""


@dataclass(frozen=True)
class Environment:
    """What a peer needs beside Python. Package names as pip takes them, pinned, so that figures can be compared."""

    name: str
    packages: tuple[str, ...]
    # Installed without what they ask for: they name builds (torchvision, opencv-python) that others here replace.
    packages_alone: tuple[str, ...] = ()
    torchvision: str = ""  # the version that goes with the torch above; empty: not needed


def default_cache() -> Path:
    """$XDG_CACHE_HOME/sparsecam-benchmarks, else ~/.cache/sparsecam-benchmarks."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparsecam-benchmarks"


def ready(environment: Environment, cache: Path) -> Path:
    """The environment's Python, installing it first where the stamp is missing; raises PeerUnavailable."""
    # A changed list is another environment, so an old one never passes for the new one.
    digest = hashlib.sha256(repr(environment).encode() + _STAND_IN.read_bytes() + sys.version.encode()).hexdigest()
    folder = cache / f"{environment.name}-{digest[:12]}"
    python, stamp = folder / "bin/python", folder / "installed"
    if not stamp.exists():
        log.info("installing a peer's packages, once", peer=environment.name, folder=str(folder))
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        _pip(python, *environment.packages)
        if environment.packages_alone:
            _pip(python, "--no-deps", *environment.packages_alone)
        if environment.torchvision:
            _install_torchvision(python, environment.torchvision)
        stamp.touch()
    return python


def _pip(python: Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise PeerUnavailable(f"pip install {' '.join(arguments)} took over {_INSTALL_TIMEOUT_S} s") from None
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise PeerUnavailable(f"pip install {' '.join(arguments)}: {errors[-1] if errors else 'no message'}")


def _install_torchvision(python: Path, wanted: str) -> None:
    """The real torchvision where it loads beside the installed torch, else the stand-in with its version marked."""
    try:
        _pip(python, "--no-deps", f"torchvision=={wanted}")
    except PeerUnavailable as error:
        log.info("torchvision cannot be installed", why=str(error))
    if _works(python):
        return
    log.info("torchvision does not load beside this torch (a build for GPUs); its nms is replaced by a stand-in")
    subprocess.run([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", "torchvision"], check=False)
    [site_packages] = python.parents[1].glob("lib/python*/site-packages")
    (site_packages / "torchvision").mkdir()
    shutil.copy(_STAND_IN, site_packages / "torchvision/__init__.py")
    version = f"{wanted}+stand.in"
    metadata = site_packages / f"torchvision-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(_STAND_IN_METADATA.format(version=version))
    if not _works(python):
        raise PeerUnavailable("neither torchvision nor its stand-in can be imported")


def _works(python: Path) -> bool:
    code = "import torch, torchvision.ops; torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)"
    done = subprocess.run([str(python), "-c", code], capture_output=True, timeout=_IMPORT_TIMEOUT_S, check=False)
    return done.returncode == 0
