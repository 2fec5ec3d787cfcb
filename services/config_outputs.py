"""What would keep an output silent for ever: names that no camera and no rule has, an address it may not go to."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from urllib.parse import urlsplit

from services.config_errors import nearest
from services.yaml_source import KeyPath, Problem, Source
from sink.outputs.address import is_private_literal
from sink.outputs.settings import OutputSettings, WebhookSettings

# Rules of the system's own: alerts about the cameras and the detector themselves.
SYSTEM_RULES = "system."


def output_problems(
    outputs: Mapping[str, OutputSettings], cameras: Collection[str], rules: Collection[str], source: Source
) -> Iterator[Problem]:
    """One problem for each thing that keeps alerts from going out."""
    for output, settings in outputs.items():
        if isinstance(settings, WebhookSettings):
            yield from _closed_door(output, settings, source)
        for key, known, wanted in (("cameras", cameras, settings.cameras), ("rules", rules, settings.rules)):
            for index, name in enumerate([] if wanted == "*" else wanted):
                if name in known or (key == "rules" and name.startswith(SYSTEM_RULES)):
                    continue
                near = nearest(name, known)
                hint = f"; did you mean {near!r}?" if near else f"; expected a name under `{key}`"
                place = source.place(("outputs", output, key, index))
                yield Problem(place, f"outputs.{output}.{key}[{index}]: no {key[:-1]} {name!r}{hint}")


def _closed_door(output: str, settings: WebhookSettings, source: Source) -> Iterator[Problem]:
    """Each alert of such an output would be a dead letter. A name's address is known only when it is connected to."""
    host = urlsplit(settings.url.get_secret_value()).hostname or ""
    if not settings.allow_private and is_private_literal(host):
        key: KeyPath = ("outputs", output, "url")
        text = f"outputs.{output}.url: {host!r} is a private address, where alerts go only if they are meant to; "
        text += f"expected a public one, or `outputs.{output}.allow_private: true` with it"
        yield Problem(source.place(key), text)
