"""The frame link as the config gives it: endpoints checked, keys loaded, for whichever side asks."""

from __future__ import annotations

from typing import Literal

from services.config import Config
from wire.curve import CurveKeys, check_endpoint, load_keys


def link_keys(config: Config, side: Literal["broker", "client"]) -> CurveKeys | None:
    """The CURVE keys of one side, None without any. Raises LinkError for a link that must not or cannot be made."""
    keys = load_keys(config.link.curve_dir, side) if config.link.curve_dir else None
    for endpoint in (config.frames_endpoint, config.workers_endpoint):
        check_endpoint(endpoint, keys, config.link.allow_plaintext_off_host)
    return keys
