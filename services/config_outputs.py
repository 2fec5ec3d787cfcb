"""Names in the settings of the outputs that no camera and no rule has."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from services.config_errors import nearest
from services.yaml_source import Problem, Source
from sink.outputs.settings import OutputSettings

# Rules of the system's own: alerts about the cameras and the detector themselves.
SYSTEM_RULES = "system."


def output_problems(
    outputs: Mapping[str, OutputSettings], cameras: Collection[str], rules: Collection[str], source: Source
) -> Iterator[Problem]:
    """An output that waits for a name nobody has would be silent for ever."""
    for output, settings in outputs.items():
        for key, known, wanted in (("cameras", cameras, settings.cameras), ("rules", rules, settings.rules)):
            for index, name in enumerate([] if wanted == "*" else wanted):
                if name in known or (key == "rules" and name.startswith(SYSTEM_RULES)):
                    continue
                near = nearest(name, known)
                hint = f"; did you mean {near!r}?" if near else f"; expected a name under `{key}`"
                place = source.place(("outputs", output, key, index))
                yield Problem(place, f"outputs.{output}.{key}[{index}]: no {key[:-1]} {name!r}{hint}")
