"""Outputs of a running sink process: from the config to the receiver, metrics, and the dead letters' commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import redis
from prometheus_client import generate_latest

from services.config import Config, load
from services.config_errors import ConfigError
from services.outputs import OutputUnavailable, build, start_outputs
from sink.outputs.delivery import Refused
from sink.outputs.lease import owner_key
from sink.outputs.settings import WebhookSettings
from wire import metrics
from wire.alerts import ALERTS, Alert, alert_id, alert_once, rfc3339
from wire.redis_link import Link, connect
from wire.settings import RedisSettings
from wire.valkey import EmbeddedValkey

Run = Callable[..., subprocess.CompletedProcess[str]]


def alert(seq: int) -> Alert:
    return Alert(
        version=1,
        id=alert_id("door", "armed", "pistol", "s1", seq),
        incident=f"i{seq}",
        event="opened",
        camera="door",
        rule="armed",
        text="pistol at door",
        event_time=rfc3339(1_700_000_000_000_000 + seq),
        opened_time=rfc3339(1_700_000_000_000_000),
        seq=seq,
    )


def publish(url: str, *alerts: Alert) -> None:
    link = Link(connect(RedisSettings(url=url)))
    link.send(*(alert_once(one, 1000) for one in alerts))
    link.close()


@pytest.fixture
def status() -> list[int]:
    """What the receiver answers, to be changed."""
    return [200]


@pytest.fixture
def taken() -> list[str]:
    """Keys of the alerts that the receiver took."""
    return []


@pytest.fixture
def hook(status: list[int], taken: list[str]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            if status[0] == 200:
                taken.append(self.headers["idempotency-key"])
            self.send_response(status[0])
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hunter22"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def config_path(folder: Path, valkey: EmbeddedValkey, hook: str) -> Path:
    path = folder / "sparsecam.yaml"
    path.write_text(
        f"runtime_dir: {folder}/run\nredis: {{url: '{valkey.url}'}}\nmetrics: {{enabled: false}}\n"
        "cameras: {door: {source: x.mp4}}\nrules: {armed: {labels: [pistol]}}\noutputs:\n"
        f"  hook: {{kind: webhook, url: '{hook}', allow_private: true, retry_first_s: 0.01}}\n"
        f"  log: {{kind: disk, folder: '{folder}/log'}}\n"
        f"  run: {{kind: command, argv: ['{sys.executable}', -c, 'import sys; sys.exit(9)'], max_attempts: 1}}\n"
        "  dead: {kind: mqtt, host: 127.0.0.1, port: 1}\n"
    )
    return path


def groups(url: str) -> int:
    with redis.Redis.from_url(url) as client:
        return len(client.xinfo_groups(ALERTS)) if client.exists(ALERTS) else 0


def exported(text: str) -> float:
    found = [row for row in generate_latest(metrics.registry).decode().splitlines() if row.startswith(text)]
    return float(found[0].rpartition(" ")[2]) if found else -1.0


def lines_of(folder: Path) -> int:
    """Alerts that the disk output has written there."""
    return sum(len(one.read_text().splitlines()) for one in folder.glob("*.jsonl"))


def test_a_config_with_outputs_delivers_and_one_that_is_dead_disturbs_no_other(
    config_path: Path, folder: Path, valkey: EmbeddedValkey, taken: list[str], wait_until: Any
) -> None:
    stop = threading.Event()
    with start_outputs(load(config_path, {}), stop) as unreached:
        wait_until(lambda: groups(valkey.url) == 4)
        publish(valkey.url, *(alert(seq) for seq in range(20)))
        wait_until(lambda: len(taken) == 20)
        # Each output has a lease of its own, so none says anything of when another begins.
        wait_until(lambda: lines_of(folder / "log") == 20)
        wait_until(lambda: exported('sparsecam_output_delivered_total{output="hook"}') == 20)
        wait_until(lambda: exported('sparsecam_output_deadletters_total{output="run"}') == 20)
        wait_until(lambda: exported('sparsecam_output_reachable{output="dead"}') == 0)
        wait_until(lambda: exported('sparsecam_output_waiting{output="dead"}') == 20)
        assert unreached() == {"dead": 20}
    assert exported('sparsecam_output_delivered_total{output="hook"}') == -1
    assert not [one.name for one in threading.enumerate() if one.name.startswith("output")]


def test_sinks_of_different_configurations_run_each_its_own_outputs_and_shared_ones_once(
    folder: Path, valkey: EmbeddedValkey, wait_until: Any
) -> None:
    def unit(name: str) -> Config:
        path = folder / f"{name}.yaml"
        outputs = "\n".join(f"  {one}: {{kind: disk, folder: '{folder}/{one}'}}" for one in (name, "both"))
        path.write_text(f"redis: {{url: '{valkey.url}'}}\noutputs:\n{outputs}\n")
        return load(path, {})

    def written(output: str) -> int:
        return lines_of(folder / output)

    with start_outputs(unit("office"), threading.Event()):
        wait_until(lambda: groups(valkey.url) == 2, 20)
        with start_outputs(unit("guards"), threading.Event()):
            wait_until(lambda: groups(valkey.url) == 3, 20)
            publish(valkey.url, *(alert(seq) for seq in range(20)))
            wait_until(lambda: [written(one) for one in ("office", "guards", "both")] == [20, 20, 20], 20)
        publish(valkey.url, alert(20))
        wait_until(lambda: [written(one) for one in ("office", "both")] == [21, 21], 20)
    assert written("guards") == 20


def test_no_outputs_start_nothing() -> None:
    before = set(threading.enumerate())
    with start_outputs(Config(), threading.Event()):
        assert set(threading.enumerate()) <= before


def test_dead_letters_are_listed_replayed_and_dropped(
    config_path: Path, valkey: EmbeddedValkey, status: list[int], taken: list[str], invoke: Run, wait_until: Any
) -> None:
    status[0] = 422
    with start_outputs(load(config_path, {}), threading.Event()):
        wait_until(lambda: groups(valkey.url) == 4)
        publish(valkey.url, *(alert(seq) for seq in range(5)))
        for name in ("hook", "run"):
            wait_until(lambda name=name: exported(f'sparsecam_output_deadletters_total{{output="{name}"}}') == 5)

    def cli(*words: str) -> subprocess.CompletedProcess[str]:
        return invoke("deadletters", *words, "--config", str(config_path))

    listed = [json.loads(row) for row in cli("list", "hook", "--json").stdout.splitlines()]
    assert [one["alert"]["seq"] for one in listed] == [0, 1, 2, 3, 4]
    assert {(one["reason"], one["attempts"]) for one in listed} == {("HTTP 422", 1)}
    text = cli("list").stdout
    assert "HTTP 422" in text and "pistol at door" in text and "hunter22" not in text

    failed = cli("replay", "hook", listed[0]["id"])
    assert (failed.returncode, failed.stdout) == (1, "0 delivered, 5 left\n")
    assert "HTTP 422" in failed.stderr
    status[0] = 200
    assert cli("replay", "hook", listed[1]["id"]).stdout == "1 delivered, 4 left\n"
    assert cli("drop", "hook", listed[0]["id"]).stdout == "1 dropped, 3 left\n"
    done = cli("replay", "hook")
    assert (done.returncode, done.stdout) == (0, "3 delivered, 0 left\n")
    assert taken == [alert(seq).id for seq in (1, 2, 3, 4)]
    assert cli("drop", "run", "--all").stdout == "5 dropped, 0 left\n"
    for words, said in (((), "no dead letters\n"), (("hook", "--json"), "no dead letters of hook\n")):
        none = cli("list", *words)
        assert (none.returncode, none.stdout, none.stderr) == (0, "", said), "stdout is for those that there are"


def test_sinks_redis_and_receiver_die_and_every_alert_arrives(
    folder: Path,
    config_path: Path,
    own_valkey: EmbeddedValkey,
    valkey: EmbeddedValkey,
    status: list[int],
    taken: list[str],
    environment: dict[str, str],
    wait_until: Any,
) -> None:
    config_path.write_text(config_path.read_text().replace(valkey.url, own_valkey.url))
    command = [sys.executable, "-m", "services.cli", "run", "sink", "--config", str(config_path)]
    sinks = []

    def start() -> None:
        sinks.append(subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.DEVNULL))

    published = 0

    def more(count: int) -> None:
        nonlocal published
        publish(own_valkey.url, *(alert(seq) for seq in range(published, published + count)))
        published += count

    try:
        start()
        wait_until(lambda: groups(own_valkey.url) == 4, 30)
        more(100)
        wait_until(lambda: len(taken) > 10)
        sinks[0].kill()  # with some delivered and not acknowledged, some handed out, some not read
        status[0] = 503
        more(100)
        start()
        start()  # a second one stands by
        wait_until(lambda: exists(own_valkey.url, owner_key("hook")), 20)
        assert own_valkey.pid is not None
        os.kill(own_valkey.pid, signal.SIGKILL)
        wait_until(lambda: own_valkey.pid is None)
        own_valkey.start()
        status[0] = 200
        more(100)
        wait_until(lambda: len(set(taken)) > 200, 30)
        sinks[1].kill()
        more(100)
        wait_until(lambda: len(set(taken)) == 400, 30)
    finally:
        for one in sinks:
            one.kill()
            one.wait()
    assert list(dict.fromkeys(taken)) == [alert(seq).id for seq in range(400)]
    assert len(taken) <= 404  # one alert a death comes twice, under the same key


def exists(url: str, key: str) -> bool:
    with redis.Redis.from_url(url) as client:
        return bool(client.exists(key))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["list", "hok"], "did you mean 'hook'?"),
        (["replay", "hook", "1-1"], "no dead letters of hook are: 1-1"),
        (["drop", "hook"], "or --all"),
    ],
)
def test_what_is_not_there_is_named(config_path: Path, invoke: Run, words: list[str], expected: str) -> None:
    done = invoke("deadletters", *words, "--config", str(config_path))
    assert done.returncode == 78
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_library_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.outputs.find_spec", lambda _: None)
    config = Config.model_validate({"outputs": {"chat": {"kind": "apprise", "url": "json://h"}}})
    with (
        pytest.raises(OutputUnavailable, match=r"outputs\.chat needs apprise.*pip install 'sparsecam\[notify\]'"),
        start_outputs(config, threading.Event()),
    ):
        pass


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{kind: webhok, url: x}", "1:21: outputs.a.kind: found 'webhok'; expected one of: webhook, mqtt,"),
        ("{url: http://h}", "outputs.a.kind: missing; expected one of: webhook, mqtt, apprise, disk, command"),
        ("3", "outputs.a: found 3; expected `key: value` lines"),
        ("{kind: webhook, url: 'hunter22'}", "1:35: outputs.a.url: not the URL of a webhook; expected http:// or"),
        (
            "{kind: webhook, url: 'http://127.0.0.1:8/hunter22'}",
            "1:35: outputs.a.url: '127.0.0.1' is a private address",
        ),
        ("{kind: webhook, url: 'http://k@[fe80::1]/'}", "or `outputs.a.allow_private: true` with it"),
        ("{kind: webhook, url: 'http://127.1/'}", "'127.1' is a private address"),
        ("{kind: webhook, url: 'http://Localhost:8/'}", "'localhost' is a private address"),
        ("{kind: webhook, url: http://h, argv: [x]}", "outputs.a.argv: unknown key 'argv'; expected one of: allow_"),
        ("{kind: command}", "outputs.a.argv: missing; expected a list of text"),
        ("{kind: mqtt, host: h, events: [opened]}", "outputs.a: a sensor of Home Assistant goes on with `opened`"),
        ("{kind: command, argv: [x], cameras: [doo]}", "outputs.a.cameras[0]: no camera 'doo'; did you mean 'door'?"),
        ("{kind: command, argv: [x], rules: [system.camera_down, z]}", "outputs.a.rules[1]: no rule 'z'; expected a"),
    ],
)
def test_a_slip_in_an_output_is_named_with_its_place(folder: Path, text: str, expected: str) -> None:
    path = folder / "c.yaml"
    path.write_text(f"outputs: {{a: {text}}}\ncameras: {{door: {{source: x.mp4}}}}\n")
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    assert expected in str(caught.value)
    assert "hunter22" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://8.8.8.8/", "http://receiver.lan/", "http://127.0.0.1/"])
def test_a_webhook_to_a_public_address_a_name_or_where_it_may_go_is_taken(folder: Path, url: str) -> None:
    allowed = ", allow_private: true" if "127" in url else ""
    path = folder / "c.yaml"
    path.write_text(f"outputs: {{a: {{kind: webhook, url: '{url}'{allowed}}}}}\n")
    assert list(load(path, {}).outputs) == ["a"]


def test_an_alert_for_a_private_address_is_put_aside_with_the_setting_that_lets_it_go(
    hook: str,
) -> None:
    settings = WebhookSettings(kind="webhook", url=hook.replace("127.0.0.1", "localhost"))  # type: ignore[arg-type]
    words = r"set `outputs\.guard\.allow_private: true`.*`sparsecam deadletters replay guard`"
    with pytest.raises(Refused, match=words):
        build("guard", settings).deliver(alert(1), b"{}")


def test_a_secret_may_be_given_by_the_environment_and_look_like_anything(folder: Path) -> None:
    path = folder / "c.yaml"
    path.write_text("outputs: {ha: {kind: mqtt, host: h, password: 0123}, my-hook: {kind: webhook, url: http://h}}\n")
    config = load(path, {"SPARSECAM__OUTPUTS__MY_HOOK__SECRET": "*a: #b"})
    assert config.outputs["ha"].password.get_secret_value() == "0123"  # type: ignore[union-attr]  # an mqtt
    assert config.outputs["my-hook"].secret.get_secret_value() == "*a: #b"  # type: ignore[union-attr]  # a webhook
    assert "0123" not in str(config.model_dump(mode="json"))
