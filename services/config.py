"""The root config: one `sparsecam.yaml`, environment overrides on top, every room's own settings inside.

A value comes from, first found: `SPARSECAM__SECTION__KEY` in the environment, the file, the default. The plain
variable `REDIS_URL`, which many platforms set, is used where neither of the first two gives `redis.url`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from detector.settings import DetectorSettings
from ingest.media.settings import MediaSettings
from ingest.settings import CameraSettings, IngestSettings
from services.config_env import apply_environment
from services.config_errors import ConfigError, real_path
from services.config_hints import problems_of
from services.config_outputs import output_problems
from services.config_registry import RegistrySettings
from services.config_rules import class_problems, rule_problems
from services.jobs.settings import TrainerSettings
from services.yaml_source import Place, Problem, Source, dotted, read_yaml
from sink.incident_settings import IncidentSettings
from sink.outputs.settings import OutputSettings
from sink.settings import RuleSettings, SceneSettings, SinkSettings
from sink.tracking.settings import TrackerSettings
from wire.paths import SomePath
from wire.settings import LinkSettings, MetricsSettings, RedisSettings
from wire.valkey import embedded_url

SYSTEM_FILE = Path("/etc/sparsecam/sparsecam.yaml")
LOCAL_FILE = Path("sparsecam.yaml")
FILE_VARIABLE = "SPARSECAM_CONFIG"
LOOKED = f"looked for ./{LOCAL_FILE} and {SYSTEM_FILE}, and ${FILE_VARIABLE} names none"

# Room for the longest name made in runtime_dir ("valkey/valkey.sock") within the 107 bytes of a unix socket path.
LONGEST_RUNTIME_DIR = 107 - len("/valkey/valkey.sock")

# Names stand in Redis keys, file names, metric labels and environment variables; 64 keeps all of those readable.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$", max_length=64)]


Section = TypeVar("Section", bound=BaseModel)


def default_runtime_dir() -> Path:
    """Where sockets and health files go: memory-backed and private to the user, where the system offers that."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base and Path(base).is_dir() and os.access(base, os.W_OK):
        return Path(base) / "sparsecam"
    return Path(tempfile.gettempdir()) / f"sparsecam-{os.getuid()}"


def _defaults(model: type[Section]) -> Callable[[], Section]:
    # Not the class itself: without pydantic's plugin a type checker takes every field for required.
    return lambda: model.model_validate({})


class Config(BaseModel):
    """Everything that Sparsecam can be told."""

    model_config = ConfigDict(extra="forbid")

    runtime_dir: SomePath = Field(
        default_factory=default_runtime_dir,
        description="Folder for sockets, health files and the embedded Valkey; all processes of one host share it. "
        "Default: $XDG_RUNTIME_DIR/sparsecam, else /tmp/sparsecam-<uid>.",
    )
    cameras: dict[Name, CameraSettings] = Field(
        default_factory=dict, description="Cameras by name (letters, digits, dash, underscore, dot)."
    )
    ingest: IngestSettings = Field(
        default_factory=_defaults(IngestSettings), description="Settings of the process that reads all cameras."
    )
    media: MediaSettings = Field(
        default_factory=_defaults(MediaSettings), description="Snapshots and clips of incidents."
    )
    detector: DetectorSettings = Field(
        default_factory=_defaults(DetectorSettings), description="The model and the workers that run it."
    )
    registry: RegistrySettings = Field(
        default_factory=_defaults(RegistrySettings), description="Models that are called by name."
    )
    scenes: dict[Name, SceneSettings] = Field(
        default_factory=dict, description="What cameras look at, by camera name: zones, lines, masks, ground."
    )
    tracker: TrackerSettings = Field(
        default_factory=_defaults(TrackerSettings), description="How detections are joined to objects, frame by frame."
    )
    rules: dict[Name, RuleSettings] = Field(default_factory=dict, description="What is worth an alert, by rule name.")
    incidents: IncidentSettings = Field(
        default_factory=_defaults(IncidentSettings),
        description="How findings of rules become alerts: one as something begins, updates, one as it is over.",
    )
    sink: SinkSettings = Field(
        default_factory=_defaults(SinkSettings), description="The process that turns detections into alerts."
    )
    outputs: dict[Name, OutputSettings] = Field(
        default_factory=dict, description="Where alerts are sent to, by a name of your own; each has a kind."
    )
    trainer: TrainerSettings = Field(
        default_factory=_defaults(TrainerSettings), description="The process that takes training jobs, one at a time."
    )
    redis: RedisSettings = Field(
        default_factory=_defaults(RedisSettings), description="Where detections and alerts go."
    )
    link: LinkSettings = Field(
        default_factory=_defaults(LinkSettings),
        description="The way of frames from ingest through the broker to workers.",
    )
    metrics: MetricsSettings = Field(default_factory=_defaults(MetricsSettings), description="Prometheus metrics.")

    @property
    def frames_endpoint(self) -> str:
        """Where the broker takes frames from ingest."""
        return self.link.frames or f"ipc://{self.runtime_dir.absolute()}/frames.ipc"

    @property
    def workers_endpoint(self) -> str:
        """Where the broker hands frames to workers."""
        return self.link.workers or f"ipc://{self.runtime_dir.absolute()}/workers.ipc"

    @property
    def valkey_dir(self) -> Path:
        """Folder of the embedded Valkey."""
        return self.runtime_dir.absolute() / "valkey"

    @property
    def embeds_valkey(self) -> bool:
        """Whether `up` starts a Valkey of its own."""
        return not self.redis.url

    @property
    def redis_url(self) -> str:
        """The Redis to use: the one given, or the embedded Valkey's socket."""
        return self.redis.url or embedded_url(self.valkey_dir)

    @property
    def health_dir(self) -> Path:
        """Folder of the health reports."""
        return self.runtime_dir.absolute() / "health"


def find_config(given: Path | None = None, env: Mapping[str, str] | None = None) -> Path | None:
    """The file to load: the one given, $SPARSECAM_CONFIG, ./sparsecam.yaml, /etc/sparsecam/sparsecam.yaml."""
    named = (os.environ if env is None else env).get(FILE_VARIABLE)
    if given is not None:
        return given
    if named:
        return Path(named)
    return next((path for path in (LOCAL_FILE, SYSTEM_FILE) if path.is_file()), None)


def no_config() -> ConfigError:
    """What to say where no config is found and one is needed."""
    mend = f"name one (-c FILE; `check` takes FILE alone), or copy sparsecam.example.yaml to ./{LOCAL_FILE} and edit it"
    return ConfigError([Problem(Place("no config found"), f"{LOOKED}; {mend}")])


def load(path: Path | None, env: Mapping[str, str] | None = None) -> Config:
    """Load `path` (None: defaults only) with overrides from `env` (None: this process's environment).

    Raises ConfigError with every problem found in file and environment, each with its place.
    """
    return validate(_read(path), os.environ if env is None else env)


def check_classes(path: Path | None, config: Config, classes: Mapping[int, str]) -> None:
    """Raise ConfigError for labels in the rules of `config`, loaded from `path`, that `class_problems` finds."""
    problems = class_problems(config.rules, classes, _read(path))
    if problems:
        raise ConfigError(problems)


def refuse_model(path: Path | None, why: str) -> NoReturn:
    """Raise ConfigError at the place of `detector.model` in the config that was loaded from `path`."""
    key = ("detector", "model")
    raise ConfigError([Problem(places(path).place(key), f"{dotted(key)}: {why}")])


def places(path: Path | None) -> Source:
    """The config at `path` as it is written, for the place of what only a look at this machine tells."""
    source = _read(path)
    apply_environment(source, os.environ, Config)  # the place may be a variable
    return source


def validate(source: Source, env: Mapping[str, str]) -> Config:
    """Check plain data against the settings; raises ConfigError."""
    apply_environment(source, env, Config)
    redis = source.data.get("redis")
    url = env.get("REDIS_URL")
    if url and (redis is None or (isinstance(redis, dict) and not redis.get("url"))):
        source.data["redis"] = {**(redis or {}), "url": url}
        source.values["redis", "url"] = Place("environment variable REDIS_URL")
    problems = list(source.problems)
    config: Config | None = None
    try:
        config = Config.model_validate(source.data)
    except ValidationError as error:
        if _take_text_where_wanted(source, error):
            return validate(source, env={})
        # A place that was complained of already would only be complained of twice.
        told = {problem.place for problem in problems}
        found = problems_of(error.errors(include_url=False), Config, source)
        problems += [problem for problem in found if problem.place not in told]
    if config is not None:
        problems += _cross_checks(config, source)
        problems += output_problems(config.outputs, config.cameras, config.rules, source)
    if problems or config is None:
        raise ConfigError(problems)
    return config


def _read(path: Path | None) -> Source:
    if path is None:
        return Source({}, Place("the default config"))
    try:
        return read_yaml(path)
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}; expected a config file (sparsecam.example.yaml is one)"
        raise ConfigError([Problem(Place(str(path)), reason)]) from error


def _take_text_where_wanted(source: Source, error: ValidationError) -> bool:
    """`source: 0` and `password: 0123` mean the text as written, where a setting wants text."""
    changed = False
    for one in error.errors(include_url=False):
        path = real_path(one["loc"], source.data)
        raw = source.raw.get(path)
        if one["type"] == "string_type" and raw is not None and isinstance(one["input"], int | float):
            here: Any = source.data
            for part in path[:-1]:
                here = here[part]
            here[path[-1]] = raw
            changed = True
    return changed


def _cross_checks(config: Config, source: Source) -> list[Problem]:
    """What no room can check alone."""
    problems = []
    length = len(os.fsencode(config.runtime_dir.absolute()))
    if length > LONGEST_RUNTIME_DIR:
        text = (
            f"runtime_dir: {length} bytes long; expected at most {LONGEST_RUNTIME_DIR}, because a unix socket's "
            "path may have 107 and the sockets lie in it"
        )
        problems.append(Problem(source.place(("runtime_dir",)), text))
    if names := config.detector.names:
        problems += class_problems(config.rules, names, source)
    return problems + rule_problems(config.cameras, config.scenes, config.rules, source)
