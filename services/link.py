"""The frame link as the config gives it: endpoints checked, keys loaded, for whichever side asks."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from services.config import Config
from wire.clocks import on_this_host
from wire.curve import CurveKeys, check_endpoint, load_keys
from wire.ring import ring_folder


def link_keys(config: Config, side: Literal["broker", "client"]) -> CurveKeys | None:
    """The CURVE keys of one side, None without any. Raises LinkError for a link that must not or cannot be made."""
    keys = load_keys(config.link.curve_dir, side) if config.link.curve_dir else None
    for endpoint in (config.frames_endpoint, config.workers_endpoint):
        check_endpoint(endpoint, keys, config.link.allow_plaintext_off_host)
    return keys


def shared_rings(config: Config) -> Path | None:
    """Folder of the pixels' shared memory; None where frames may leave the host, and their pixels with them."""
    local = on_this_host(config.frames_endpoint) and on_this_host(config.workers_endpoint)
    return ring_folder(config.runtime_dir) if local else None
