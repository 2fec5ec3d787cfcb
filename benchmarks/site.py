"""A site of its own for a benchmark: the processes of `sparsecam up` on files, with an embedded Valkey."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from services.config import Config, load
from services.process import LogOptions
from services.supervisor import Supervisor
from services.workers import worker_count

STOP_S = 10.0
TICK_S = 0.05


@dataclass(frozen=True)
class Site:
    """A running site; its supervisor works only while `wait` is called."""

    config: Config
    supervisor: Supervisor
    log: Path

    def wait(self, condition: Callable[[], bool], limit_s: float, otherwise: str) -> None:
        """Until it is true; raises RuntimeError with the end of the log after `limit_s`, or if one cannot run."""
        until_s = time.monotonic() + limit_s
        while not condition():
            self.supervisor.tick()
            if time.monotonic() > until_s or any(child.fate == "unusable" for child in self.supervisor.children):
                raise RuntimeError(f"{otherwise} in {limit_s:g} s:\n{self.log.read_text()[-2000:]}")
            time.sleep(TICK_S)


@contextmanager
def running_site(content: Mapping[str, Any]) -> Iterator[Site]:
    """Start a site with this config, in a folder of its own; stop it at the end."""
    with tempfile.TemporaryDirectory(prefix="sc-site-") as name:
        folder = Path(name)
        path = folder / "sparsecam.yaml"
        path.write_text(yaml.safe_dump({"runtime_dir": str(folder / "run"), "metrics": {"enabled": False}, **content}))
        config = load(path, env={})  # whatever Redis the shell may know of
        with (folder / "log").open("w+") as log:
            logs = LogOptions(level="warning")
            supervisor = Supervisor(config, path, workers=worker_count(config), logs=logs, output=log)
            try:
                supervisor.start()
                yield Site(config, supervisor, Path(log.name))
            finally:
                supervisor.stop(STOP_S)
