"""Settings of the outputs."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from sink.outputs.signature import signing_key
from wire.alerts import Alert
from wire.paths import MaybePath, SomePath

Event = Literal["opened", "updated", "closed"]

# Of MQTT; a unit that shares its broker with another needs one of its own.
DEFAULT_TOPIC = "sparsecam"


class CommonSettings(BaseModel):
    """What all outputs can be told: which alerts they want, and how long to try."""

    model_config = ConfigDict(extra="forbid")

    cameras: Literal["*"] | list[str] = Field("*", description='Cameras whose alerts it gets, or "*" for all.')
    rules: Literal["*"] | list[str] = Field(
        "*", description='Rules whose alerts it gets, or "*" for all; also system.camera_down and its like.'
    )
    labels: list[str] = Field(
        default_factory=list,
        max_length=1000,
        description="Classes whose alerts it gets; empty: all, and those of none.",
    )
    events: list[Event] = Field(["opened"], min_length=1, description="Parts of an incident it is told of.")
    timeout_s: float = Field(10, gt=0, le=300, description="Longest time one attempt may take (seconds).")
    max_attempts: int = Field(
        100, ge=1, le=100_000, description="Attempts after which an alert goes to the dead letters (attempts)."
    )
    max_age_s: float = Field(
        86_400, gt=0, le=2_592_000, description="Age from which an alert goes to the dead letters instead (seconds)."
    )
    retry_first_s: float = Field(
        1, gt=0, le=3600, description="Wait after the first failure; it doubles with each further one (seconds)."
    )
    retry_most_s: float = Field(60, gt=0, le=3600, description="Longest wait between two attempts (seconds).")
    deadletters_maxlen: int = Field(
        10_000, ge=1, le=1_000_000, description="Dead letters kept; the oldest is shed (alerts)."
    )

    def covers(self, camera: str, rule: str) -> bool:
        """Whether this output is to hear of a rule on a camera."""
        return (self.cameras == "*" or camera in self.cameras) and (self.rules == "*" or rule in self.rules)

    def concerns(self, alert: Alert) -> bool:
        """Whether this output is to hear of the alert's incident."""
        return self.covers(alert.camera, alert.rule) and (not self.labels or alert.label in self.labels)

    def wants(self, alert: Alert) -> bool:
        """Whether this output is to deliver the alert."""
        return alert.event in self.events and self.concerns(alert)


class WebhookSettings(CommonSettings):
    """Sends each alert's JSON by HTTP POST, signed as standardwebhooks.com describes."""

    kind: Literal["webhook"] = Field(description="webhook: an HTTP POST with the alert as JSON.")
    url: SecretStr = Field(
        description="http:// or https:// URL that takes the POST; never shown, as it may hold a key."
    )
    secret: SecretStr = Field(
        SecretStr(""),
        description="Key of the signature (HMAC-SHA256); as text, or whsec_ and base64. Empty: unsigned.",
    )
    headers: dict[str, SecretStr] = Field(
        default_factory=dict, description="Further headers, such as Authorization; not sent on to another host."
    )
    allow_private: bool = Field(
        False, description="Also connect to private, loopback and link-local addresses, such as a receiver at home."
    )

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: SecretStr) -> SecretStr:
        # The value is left out of every message.
        try:
            text = url.get_secret_value()
            parts = urlsplit(text)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
            usable = usable and all(33 <= ord(character) <= 126 for character in text)
        except ValueError:
            usable = False
        if not usable:
            raise ValueError(
                "not the URL of a webhook; expected http:// or https://, a host, a port from 1 to 65535, no spaces, "
                "and other letters than ASCII's written as %XX"
            )
        return url

    @field_validator("secret")
    @classmethod
    def _is_key(cls, secret: SecretStr) -> SecretStr:
        signing_key(secret.get_secret_value())
        return secret

    @field_validator("headers")
    @classmethod
    def _are_headers(cls, headers: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, value in headers.items():
            text = value.get_secret_value()
            if not name.isascii() or not name.replace("-", "").replace("_", "").isalnum():
                raise ValueError(f"the header name {name!r} cannot be sent; expected letters, digits and dashes")
            if any(ord(character) < 32 or ord(character) > 255 for character in text):
                raise ValueError(f"the value of header {name} holds a character that HTTP cannot send")
        return headers


class MqttSettings(CommonSettings):
    """Publishes alerts to an MQTT broker, and shows each camera's rules to Home Assistant as sensors."""

    kind: Literal["mqtt"] = Field(description="mqtt: publish on an MQTT broker.")
    events: list[Event] = Field(
        ["opened", "updated", "closed"],
        min_length=1,
        description="Parts of an incident it is told of; a sensor is on from opened to closed.",
    )
    host: str = Field(min_length=1, max_length=255, description="Name or address of the broker.")
    port: int = Field(1883, ge=1, le=65535, description="Port of the broker; with TLS it is mostly 8883.")
    username: str = Field("", description="User name at the broker; empty: none.")
    password: SecretStr = Field(SecretStr(""), description="Password at the broker.")
    tls: bool = Field(False, description="Encrypt, and check the broker's certificate.")
    ca_file: MaybePath = Field(None, description="Certificates to trust for TLS; default: the system's.")
    topic: str = Field(
        DEFAULT_TOPIC,
        pattern=r"^[^#+\s/\x00]+(/[^#+\s/\x00]+)*$",
        max_length=200,
        description="First part of all topics: TOPIC/alerts has each alert, TOPIC/CAMERA/RULE/state ON or OFF.",
    )
    discovery: bool = Field(True, description="Tell Home Assistant of the sensors (MQTT discovery).")
    discovery_topic: str = Field(
        "homeassistant",
        pattern=r"^[^#+\s/\x00]+(/[^#+\s/\x00]+)*$",
        max_length=200,
        description="Home Assistant's discovery prefix.",
    )

    @model_validator(mode="after")
    def _sensors_go_off(self) -> MqttSettings:
        if self.discovery and not {"opened", "closed"} <= set(self.events):
            raise ValueError(
                "a sensor of Home Assistant goes on with `opened` and off with `closed`: "
                "have both in events, or set discovery to false"
            )
        return self


class AppriseSettings(CommonSettings):
    """Sends a line of text by one of the services that the Apprise library knows: mail, chat, push."""

    kind: Literal["apprise"] = Field(description="apprise: mail, chat and push services, by the Apprise library.")
    url: SecretStr = Field(description="Apprise URL, such as mailto://... or tgram://...; never shown.")


class DiskSettings(CommonSettings):
    """Appends alerts to a file of JSON lines a day, and keeps copies of their pictures."""

    kind: Literal["disk"] = Field(description="disk: JSON lines in FOLDER/alerts-YYYY-MM-DD.jsonl.")
    folder: SomePath = Field(description="Folder to write to; made if it is not there.")
    snapshots_from: MaybePath = Field(
        None, description="Folder of the snapshots (media_dir): copy each alert's picture from it. Default: no copies."
    )
    snapshot_wait_s: float = Field(
        3, ge=0, le=60, description="How long a picture that is not written yet is waited for (seconds)."
    )
    keep_days: int = Field(
        0,
        ge=0,
        le=36_500,
        description="Files of alerts older than this are deleted, with their pictures (days); 0: never.",
    )


class CommandSettings(CommonSettings):
    """Starts a program for each alert, without a shell; the alert's JSON is its standard input."""

    kind: Literal["command"] = Field(description="command: start a program, with the alert's JSON on its stdin.")
    argv: list[str] = Field(
        min_length=1, max_length=100, description="Program and its arguments, as they are: no shell reads them."
    )


OutputSettings = Annotated[
    WebhookSettings | MqttSettings | AppriseSettings | DiskSettings | CommandSettings, Field(discriminator="kind")
]
