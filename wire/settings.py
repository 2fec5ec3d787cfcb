"""Settings of the frame link, Redis, metrics and logs."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from wire.paths import MaybePath
from wire.redis_url import RedisUrlError, check_url


def _usable(url: str) -> str:
    try:
        return check_url(url) if url else ""
    except RedisUrlError as error:  # the problem names the setting by itself
        raise ValueError(str(error).removeprefix("redis.url ")) from None


class LinkSettings(BaseModel):
    """The ZeroMQ link between ingest, broker and detector workers."""

    model_config = ConfigDict(extra="forbid")

    frames: str = Field(
        "",
        description="Where the broker takes frames; empty: ipc:// in runtime_dir. `tcp://host:port` needs CURVE keys.",
    )
    workers: str = Field(
        "", description="Endpoint where the broker hands frames to workers; empty: ipc:// in runtime_dir."
    )
    curve_dir: MaybePath = Field(
        None, description="Folder with CURVE keys made by `sparsecam keys`; needed for tcp:// off loopback."
    )
    allow_plaintext_off_host: bool = Field(
        False, description="Say true, in words, to let frames cross the network unencrypted and unauthenticated."
    )
    max_age_ms: int = Field(
        500,
        ge=1,
        le=60_000,
        description="A live frame older than this at dispatch is dropped as stale; by tcp:// its age counts from its "
        "arrival at the broker (milliseconds).",
    )
    lossless_window: int = Field(
        32, ge=1, le=1024, description="Frames of one file on their way at once (back-pressure; frames)."
    )
    worker_credit: int = Field(
        2, ge=1, le=64, description="Frames a worker holds: one in inference, the others already at hand (frames)."
    )


class RedisSettings(BaseModel):
    """Where detections and alerts go."""

    model_config = ConfigDict(extra="forbid")

    url: Annotated[str, AfterValidator(_usable)] = Field(
        "", description="redis://, rediss:// or unix:// URL; empty: the embedded Valkey in runtime_dir."
    )
    detections_maxlen: int = Field(
        10_000, ge=10, description="Entries kept per camera in its detections stream (XADD MAXLEN ~; entries)."
    )
    alerts_maxlen: int = Field(
        100_000, ge=10, description="Entries kept in the alerts stream (XADD MAXLEN ~; entries)."
    )
    memory_mb: int | None = Field(
        None,
        ge=64,
        le=1_048_576,
        description="Most memory of the embedded Valkey (megabytes). Empty: what all streams take at their longest, "
        "at most a quarter of the machine's memory, and never less than 512.",
    )
    outbox: int = Field(
        10_000,
        ge=1,
        le=1_000_000,
        description="Messages a process holds while Redis is away; the oldest is shed (messages).",
    )
    timeout_s: float = Field(2.0, gt=0, le=60, description="Connect and socket time limit (seconds).")


class MetricsSettings(BaseModel):
    """Prometheus metrics: one port a process, on loopback unless `host` says otherwise."""

    model_config = ConfigDict(extra="forbid")

    enabled: bool = Field(True, description="Serve /metrics.")
    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 shows the metrics to the network.")
    broker_port: int = Field(9101, ge=0, le=65535, description="Broker's port (0: any free one).")
    ingest_port: int = Field(9102, ge=0, le=65535, description="Ingest's port (0: any free one).")
    sink_port: int = Field(9103, ge=0, le=65535, description="Sink's port (0: any free one).")
    trainer_port: int = Field(9104, ge=0, le=65535, description="Trainer's port (0: any free one).")
    detector_port: int = Field(
        9110, ge=0, le=65535, description="First worker's port; worker N takes this plus N (0: any free one)."
    )
