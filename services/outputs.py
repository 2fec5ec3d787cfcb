"""The outputs of the sink process: a thread each, and one each that holds its lease."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

import redis

from sink.outputs.command import Command
from sink.outputs.delivery import Output
from sink.outputs.disk import Disk
from sink.outputs.lease import Lease
from sink.outputs.runner import OutputRunner
from sink.outputs.settings import (
    AppriseSettings,
    CommandSettings,
    DiskSettings,
    MqttSettings,
    OutputSettings,
    WebhookSettings,
)
from sink.outputs.webhook import Webhook
from wire import metrics
from wire.redis_link import connect

if TYPE_CHECKING:
    from services.config import Config

# After `stop` an attempt that is under way has this long to end; its alert comes again at the next start otherwise.
# The supervisor waits five seconds for all of the process.
STOP_S = 2.0


class OutputUnavailable(RuntimeError):
    """An output needs a library that is not installed: says which, and how to get it."""


def build(name: str, settings: OutputSettings, connection: Callable[[], redis.Redis] | None = None) -> Output:
    """The output that `settings` describe; raises OutputUnavailable.

    With a `connection` to Redis it also shows its receiver what is open, where it can: for the process that holds the
    output's lease.
    """
    if isinstance(settings, WebhookSettings):
        return Webhook(settings, name)
    if isinstance(settings, DiskSettings):
        return Disk(settings)
    if isinstance(settings, CommandSettings):
        return Command(settings)
    if isinstance(settings, MqttSettings):
        _need(name, "paho.mqtt", "paho-mqtt")
        from sink.outputs.mqtt import Mqtt
        from sink.outputs.sensors import Sensors

        return Mqtt(settings, Sensors(name, connection) if connection else None)
    assert isinstance(settings, AppriseSettings)
    _need(name, "apprise", "apprise")
    from sink.outputs.apprise import Apprise

    return Apprise(settings)


@contextmanager
def start_outputs(config: Config, stop: threading.Event) -> Iterator[Callable[[], dict[str, int]]]:
    """Deliver alerts to `config.outputs` in the background until `stop`; raises OutputUnavailable.

    Gives what tells how many alerts wait for each output whose receiver takes none now.
    """

    def connection() -> redis.Redis:
        return connect(config.redis, config.redis_url)

    if not config.outputs:
        yield dict
        return
    leases, lease_stop = {name: Lease(name, connection) for name in config.outputs}, threading.Event()
    runners = [
        OutputRunner(name, settings, build(name, settings, connection), connection, leases[name])
        for name, settings in config.outputs.items()
    ]
    holders = [
        threading.Thread(target=one.run, args=(lease_stop,), name=f"output-{name}-lease", daemon=True)
        for name, one in leases.items()
    ]
    threads = [
        threading.Thread(target=one.run, args=(stop,), name=f"output-{one.name}", daemon=True) for one in runners
    ]
    unexport = metrics.export_counts(lambda: _counts(runners))
    for thread in (*holders, *threads):
        thread.start()
    try:
        yield lambda: {one.name: counts.waiting for one in runners if not (counts := one.counts()).reachable}
    finally:
        stop.set()
        _join(threads, STOP_S)
        lease_stop.set()  # only now: another process must not begin what is still being delivered here
        _join(holders, STOP_S / 2)
        unexport()


def _join(threads: Iterable[threading.Thread], limit_s: float) -> None:
    until_s = time.monotonic() + limit_s
    for thread in threads:
        thread.join(max(0.0, until_s - time.monotonic()))


def _need(output: str, module: str, package: str) -> None:
    if find_spec(module.partition(".")[0]) is None:
        raise OutputUnavailable(
            f"outputs.{output} needs {package}, which is not installed: pip install 'sparsecam[notify]'"
        )


def _counts(runners: Iterable[OutputRunner]) -> Iterable[metrics.Count]:
    for runner in runners:
        now, labels = runner.counts(), {"output": runner.name}
        yield metrics.Count("sparsecam_output_delivered", "Alerts the receiver took.", now.delivered, labels)
        yield metrics.Count("sparsecam_output_failures", "Attempts that failed.", now.failures, labels)
        yield metrics.Count("sparsecam_output_unwanted", "Alerts its settings leave out.", now.unwanted, labels)
        yield metrics.Count("sparsecam_output_deadletters", "Alerts put aside as dead letters.", now.buried, labels)
        yield metrics.Count(
            "sparsecam_output_deadletters_shed", "Dead letters dropped as the oldest.", now.shed, labels
        )
        yield metrics.Count("sparsecam_output_malformed", "Entries that are no alerts.", now.malformed, labels)
        yield metrics.Count("sparsecam_output_trimmed", "Alerts lost to redis.alerts_maxlen.", now.trimmed, labels)
        yield metrics.Count("sparsecam_output_waiting", "Alerts to be delivered.", now.waiting, labels, gauge=True)
        yield metrics.Count(
            "sparsecam_output_reachable",
            "1 unless the last attempt failed to reach it.",
            now.reachable,
            labels,
            gauge=True,
        )
