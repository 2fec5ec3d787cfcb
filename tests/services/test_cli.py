"""Every command explains itself, answers scripts in JSON, and says in words what is wrong."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from typer.main import get_command
from typer.testing import CliRunner

from services.cli import app
from services.process import EXIT_UNUSABLE, claim_report
from wire.alerts import ALERTS, Alert, Box, Evidence, FrameSize, alert_id, alert_once, rfc3339
from wire.messages import encode
from wire.redis_link import Link, connect
from wire.settings import RedisSettings
from wire.valkey import EmbeddedValkey

Run = Callable[..., subprocess.CompletedProcess[str]]
COMMANDS = [
    [],
    *([name] for name in ("up", "run", "check", "alerts", "annotate", "keys", "doctor", "health", "demo", "version")),
    *(["run", role] for role in ("broker", "ingest", "detector", "sink")),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(command: list[str]) -> None:
    result = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(app, [*command, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage: " in result.output
    assert "--help" in result.output


def test_every_option_has_a_help_text() -> None:
    def options(command: object, path: str) -> list[str]:
        bare = [f"{path} {one.name}" for one in getattr(command, "params", []) if not getattr(one, "help", None)]
        for name, inner in getattr(command, "commands", {}).items():
            bare += options(inner, f"{path} {name}")
        return bare

    assert options(get_command(app), "sparsecam") == []


def test_help_answers_at_once(sparsecam: Run) -> None:
    sparsecam("--help")  # the first run compiles
    took = []
    for _ in range(3):
        begun = os.times()
        sparsecam("--help")
        ended = os.times()
        took.append(ended.children_user + ended.children_system - begun.children_user - begun.children_system)
    assert min(took) < 1.0  # CPU seconds, 0.3 on an idle machine; by the clock it depends on who else is there


def test_help_imports_nothing_heavy(sparsecam: Run, environment: dict[str, str]) -> None:
    done = sparsecam("--help", env={"PYTHONPROFILEIMPORTTIME": "1"})
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert loaded.isdisjoint({"numpy", "cv2", "av", "onnx", "pydantic", "zmq", "redis", "structlog"})


def test_a_wrong_option_is_wrong_usage(sparsecam: Run) -> None:
    assert sparsecam("up", "--confg", "x").returncode == 2


def test_the_version_is_told_by_the_option_that_every_program_has(invoke: Run) -> None:
    done = invoke("--version")
    assert (done.returncode, done.stdout) == (0, invoke("version").stdout)
    assert done.stdout.startswith("sparsecam ")


def test_version_is_json_for_a_script(sparsecam: Run) -> None:
    assert "version" in json.loads(sparsecam("version", "--json").stdout)


class TestCheck:
    def test_a_valid_file_is_shown_without_its_passwords(self, invoke: Run, folder: Path) -> None:
        path = folder / "c.yaml"
        path.write_text(
            "cameras:\n  door: {source: 'rtsp://admin:hunter22@10.0.0.9/1'}\n"
            "rules:\n  r: {labels: [person]}\nredis: {url: 'redis://:hunter22@h'}\n"
        )
        done = invoke("check", str(path))
        assert done.returncode == 0, done.stderr
        assert "admin:***@10.0.0.9" in done.stdout
        as_json = invoke("check", str(path), "--json")
        assert json.loads(as_json.stdout)["config"]["cameras"]["door"]["source"] == "rtsp://admin:***@10.0.0.9/1"
        assert "hunter22" not in done.stdout + done.stderr + as_json.stdout + as_json.stderr

    @pytest.mark.parametrize(
        "source",
        [
            "http://10.0.0.9/s?access_token=hunter22",
            "http://10.0.0.9/s?key=hunter22&signature=hunter22",
            "http://10.0.0.9/s?sessionid=hunter22",
            "rtsp://hunter22@10.0.0.9/1",
            "rtsp://10.0.0.9/user=admin_password=hunter22_channel=1_stream=0.sdp",
        ],
    )
    def test_no_camera_shows_its_token(self, invoke: Run, folder: Path, source: str) -> None:
        path = folder / "c.yaml"
        path.write_text(f"cameras:\n  door: {{source: '{source}'}}\n")
        done, as_json = invoke("check", str(path)), invoke("check", str(path), "--json")
        assert "10.0.0.9" in done.stdout
        assert json.loads(as_json.stdout)["config"]["cameras"]["door"]["source"] == source.replace("hunter22", "***")
        assert "hunter22" not in done.stdout + done.stderr + as_json.stdout + as_json.stderr

    def test_each_problem_begins_its_line_with_its_place(self, invoke: Run, folder: Path) -> None:
        path = folder / "c.yaml"
        path.write_text("redis:\n  ulr: x\nlink:\n  max_age_ms: 0\n")
        done = invoke("check", str(path))
        assert done.returncode == 1
        assert [line.split(": ")[0] for line in done.stderr.splitlines()[:2]] == [f"{path}:2:3", f"{path}:4:15"]
        report = json.loads(invoke("check", str(path), "--json").stdout)
        assert [(one["line"], one["column"]) for one in report["problems"]] == [(2, 3), (4, 15)]

    def test_local_sources_that_are_not_there_are_warned_of(
        self, invoke: Run, folder: Path, moving_light: Path
    ) -> None:
        path = folder / "c.yaml"
        path.write_text(
            f"cameras:\n  gone: {{source: gone.mp4}}\n  there: {{source: {moving_light}}}\n"
            "  off: {source: off.mp4, enabled: false}\n  cam: {source: /dev/video99}\n"
            "  net: {source: 'rtsp://10.0.0.9/1'}\n  drawn: {source: 'sim://street'}\n"
        )
        done = invoke("check", str(path))
        assert done.returncode == 0, "a file may be mounted later"
        assert f"{path} is valid, with 2 warnings." in done.stdout
        gone, cam = done.stderr.splitlines()
        assert gone == (
            f"{path}:2:18: warning: cameras.gone.source: no file 'gone.mp4' here (looked in {folder}); "
            "it must be by the start, or the camera fails"
        )
        assert cam.startswith(f"{path}:5:17: warning: cameras.cam.source: no device '/dev/video99' here")
        report = json.loads(invoke("check", str(path), "--json").stdout)
        assert report["valid"]
        assert [(one["line"], one["column"]) for one in report["warnings"]] == [(2, 18), (5, 17)]

    def test_incidents_that_end_between_a_sleeping_cameras_looks_are_warned_of(self, invoke: Run, folder: Path) -> None:
        path = folder / "c.yaml"
        cameras = (
            "  live: {source: 'rtsp://10.0.0.9/1'}\n"
            "  seldom: {source: 'rtsp://10.0.0.9/2', adaptive: {max_quiet_s: 12}}\n"
            "  awake: {source: 'rtsp://10.0.0.9/3', profile: all, adaptive: {max_quiet_s: 99}}\n"
            "  off: {source: 'rtsp://10.0.0.9/4', enabled: false, adaptive: {max_quiet_s: 99}}\n"
            "  unwatched: {source: 'rtsp://10.0.0.9/5', adaptive: {max_quiet_s: 99}}\n"
        )
        rules = "rules: {parked: {labels: [car], cameras: [live, seldom, awake, off]}}\n"
        path.write_text(f"cameras:\n{cameras}{rules}incidents:\n  merge_s: 10\n")
        done = invoke("check", str(path))
        assert (done.returncode, f"{path} is valid, with 1 warning." in done.stdout) == (0, True)
        assert done.stderr.startswith(
            f"{path}:9:12: warning: incidents.merge_s: found 10 s, and while nothing moves camera 'seldom' and 1 more "
            "is looked at every 12 s and at the next keyframe: what stays is told again and again; expected at least 18"
        )
        path.write_text(f"cameras:\n{cameras}{rules}")
        assert invoke("check", str(path)).stderr == "", "the defaults go together"

    def test_a_model_file_that_is_not_there_is_refused_and_its_unchecked_classes_are_told_of(
        self, invoke: Run, folder: Path
    ) -> None:
        path = folder / "c.yaml"
        path.write_text("detector: {model: gone.onnx}\nrules: {r: {labels: [person]}}\n")
        done = invoke("check", str(path))
        assert done.returncode == 1
        assert f"{path}:1:19: detector.model: no file 'gone.onnx' here (looked in {folder})" in done.stderr
        assert "the class names in rules were not checked" in done.stderr
        path.write_text("detector: {model: gone.onnx, labels: [person]}\nrules: {r: {labels: [person]}}\n")
        assert "class names" not in invoke("check", str(path)).stderr, "the config's own are checked"

    def test_classes_that_the_model_does_not_tell_are_said_to_be_unchecked(self, invoke: Run, folder: Path) -> None:
        (folder / "m.onnx").write_bytes(b"not a model")
        path = folder / "c.yaml"
        path.write_text("detector: {model: m.onnx}\nrules: {r: {labels: [person]}}\n")
        done = invoke("check", str(path))
        assert (done.returncode, "class names in rules were not checked" in done.stderr) == (0, True)

    def test_without_a_file_it_finds_the_config_as_other_commands_do(self, invoke: Run, folder: Path) -> None:
        done = invoke("check")
        assert done.returncode == EXIT_UNUSABLE
        assert done.stderr.startswith("no config found: looked for ./sparsecam.yaml and /etc/sparsecam/sparsecam.yaml")
        (folder / "sparsecam.yaml").write_text("redsi: {}\n")
        assert invoke("check").stderr.startswith("sparsecam.yaml:1:1: redsi: unknown key")

    def test_an_empty_file_is_said_to_name_no_cameras(self, invoke: Run, folder: Path) -> None:
        (folder / "sparsecam.yaml").touch()
        done = invoke("check")
        assert (done.returncode, "sparsecam.yaml:1:1: warning: names no cameras" in done.stderr) == (0, True)

    def test_probe_opens_cameras_and_the_model(
        self, sparsecam: Run, folder: Path, moving_light: Path, bright_box_model: Path
    ) -> None:
        path = folder / "c.yaml"
        path.write_text(
            f"cameras:\n  light: {{source: {moving_light}}}\n  gone: {{source: {folder}/gone.mp4}}\n"
            f"detector: {{model: {bright_box_model}, engine: onnxruntime, cache_dir: {folder}}}\n"
        )
        done = sparsecam("check", str(path), "--probe", "--json")
        assert done.returncode == 1
        probes = {one["name"]: one for one in json.loads(done.stdout)["probes"]}
        assert probes["camera light"]["works"]
        assert "160x90" in probes["camera light"]["found"]
        assert not probes["camera gone"]["works"]
        assert probes["camera gone"]["found"].startswith(
            f"{folder}/gone.mp4: No such file or directory (check the path"
        )
        assert probes["model"]["works"]
        assert "bright" in probes["model"]["found"]


def test_commands_without_a_usable_config_say_so_without_a_traceback(invoke: Run, folder: Path) -> None:
    (folder / "sparsecam.yaml").write_text("redsi: {}\n")
    for command in (["up"], ["run", "broker"], ["alerts"], ["health"]):
        done = invoke(*command)
        assert done.returncode == EXIT_UNUSABLE
        assert done.stderr.startswith("sparsecam.yaml:1:1: redsi: unknown key 'redsi'; did you mean 'redis'?")
        assert "Traceback" not in done.stderr


def test_up_without_a_config_says_where_it_looked_and_starts_nothing(sparsecam: Run, folder: Path) -> None:
    done = sparsecam("up")
    assert done.returncode == EXIT_UNUSABLE
    assert done.stderr.startswith("no config found: looked for ./sparsecam.yaml and /etc/sparsecam/sparsecam.yaml")
    assert "-c FILE" in done.stderr
    assert "copy sparsecam.example.yaml" in done.stderr
    assert not (folder / "sparsecam").exists(), "a runtime_dir was made"


def test_disarming_a_rule_that_nobody_has_lists_those_that_there_are(invoke: Run, folder: Path) -> None:
    (folder / "sparsecam.yaml").write_text("cameras: {c: {source: x}}\nrules: {porch: {}, fence: {}}\n")
    for rule, words in (("nope", "expected one of: porch, fence"), ("fense", "did you mean 'fence'?")):
        done = invoke("disarm", "--rule", rule)
        assert (done.returncode, done.stderr) == (
            EXIT_UNUSABLE,
            f"sparsecam: no rule {rule!r} in the config; {words}\n",
        )


class TestKeys:
    def test_they_are_private_and_never_overwritten(self, invoke: Run, folder: Path) -> None:
        done = invoke("keys", str(folder / "keys"))
        assert done.returncode == 0, done.stderr
        secrets = list((folder / "keys").rglob("*_secret"))
        assert len(secrets) == 2
        assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in secrets)
        before = [path.read_bytes() for path in secrets]
        again = invoke("keys", str(folder / "keys"))
        assert again.returncode == EXIT_UNUSABLE
        assert "exists already" in again.stderr
        assert [path.read_bytes() for path in secrets] == before


class TestHealth:
    def test_it_follows_what_the_process_says(self, invoke: Run, folder: Path, config_file: Path) -> None:
        config = str(config_file)
        assert invoke("health", "broker", "--config", config).returncode == 1
        health, _ = claim_report(folder / "run" / "health", "broker", 0)
        assert invoke("health", "broker", "--config", config).returncode == 1  # starting
        health.set("degraded", workers=0)
        assert invoke("health", "broker", "--config", config).returncode == 0
        assert invoke("health", "ingest", "--config", config).returncode == 1
        found = json.loads(invoke("health", "--config", config, "--json").stdout)
        assert found["healthy"]
        assert found["processes"]["broker-0"]["detail"] == {"workers": 0}
        health.set("failed")
        assert invoke("health", "--config", config).returncode == 1


class TestDoctor:
    def test_it_looks_at_everything_and_a_sound_machine_passes(self, sparsecam: Run, config_file: Path) -> None:
        done = sparsecam("doctor", "--config", str(config_file), "--json")
        report = json.loads(done.stdout)
        topics = {one["topic"] for one in report["findings"]}
        assert topics >= {"config", "cpu", "instructions", "cores", "memory", "onnxruntime", "redis", "runtime_dir"}
        assert report["ok"] == (done.returncode == 0)
        assert {one["topic"] for one in report["findings"] if one["state"] == "broken"} <= {"instructions"}

    def test_where_no_config_is_found_it_names_the_places(self, sparsecam: Run) -> None:
        report = json.loads(sparsecam("doctor", "--json").stdout)
        (config,) = [one for one in report["findings"] if one["topic"] == "config"]
        assert "./sparsecam.yaml and /etc/sparsecam/sparsecam.yaml, and $SPARSECAM_CONFIG" in config["found"]

    def test_what_is_broken_is_named_with_its_mend(self, sparsecam: Run, folder: Path, config_file: Path) -> None:
        config_file.write_text(
            f"runtime_dir: {folder}/run\nredis: {{url: 'redis://:hunter22@127.0.0.1:1'}}\n"
            "detector: {model: gone.onnx}\nlink: {frames: 'tcp://0.0.0.0:5555'}\n"
        )
        done = sparsecam("doctor", "--config", str(config_file), "--json")
        broken = {one["topic"]: one for one in json.loads(done.stdout)["findings"] if one["state"] == "broken"}
        assert done.returncode == 1
        assert {"redis", "model", "link"} <= set(broken)
        assert "CURVE" in broken["link"]["found"]
        assert "hunter22" not in done.stdout + done.stderr


def alert(seq: int) -> Alert:
    return Alert(
        version=1,
        id=alert_id("door", "any", "cat", "s", seq),
        incident=alert_id("door", "any", "cat", "s", seq),
        event="opened",
        camera="door",
        rule="any",
        text="cat at door",
        opened_time=rfc3339(1_700_000_000_000_000 + seq * 1_000_000),
        label="cat",
        score=0.9,
        event_time=rfc3339(1_700_000_000_000_000 + seq * 1_000_000),
        box=Box(1, 2, 3, 4),
        frame=FrameSize(160, 90),
        evidence=Evidence(3, 5),
        model="m",
        session="s",
        seq=seq,
        detection_ms=1.0,
    )


class TestAlerts:
    @pytest.fixture
    def ids(self, valkey: EmbeddedValkey, config_file: Path) -> list[str]:
        """Ids of five stored alerts; the config points at the Valkey that has them."""
        with config_file.open("a") as file:
            file.write(f"redis: {{url: '{valkey.url}'}}\n")
        link = Link(connect(RedisSettings(url=valkey.url)))
        ids = [link.send(alert_once(alert(seq), 100))[0].decode() for seq in range(5)]
        link.close()
        return ids

    def test_past_ones_are_printed_from_an_id_on(self, sparsecam: Run, config_file: Path, ids: list[str]) -> None:
        def seqs(*arguments: str) -> list[int]:
            done = sparsecam("alerts", "-c", str(config_file), "--json", "--no-follow", *arguments)
            assert done.returncode == 0, done.stderr
            return [json.loads(line)["seq"] for line in done.stdout.splitlines()]

        assert seqs("--since", ids[1]) == [2, 3, 4]
        assert seqs("--since", ids[4]) == []
        assert seqs("--last", "99") == [0, 1, 2, 3, 4]
        assert seqs("--count", "3") == [0, 1, 2]

    def test_the_stored_ones_end_also_where_the_newest_cannot_be_read(
        self, sparsecam: Run, config_file: Path, ids: list[str], valkey: EmbeddedValkey
    ) -> None:
        link = Link(connect(RedisSettings(url=valkey.url)))
        link.one("XADD", ALERTS, "*", "v", "99", "d", "of a later build")
        link.close()
        done = sparsecam("alerts", "-c", str(config_file), "--json", "--no-follow")
        assert done.returncode == 0 and len(done.stdout.splitlines()) == len(ids)

    def test_a_line_for_a_person_has_the_id_to_resume_from(
        self, sparsecam: Run, config_file: Path, ids: list[str]
    ) -> None:
        (line,) = sparsecam("alerts", "-c", str(config_file), "--last", "1", "--count", "1").stdout.splitlines()
        assert "door  cat 90%" in line
        assert line.endswith(f"id {ids[4]}")

    def test_a_bad_id_and_a_redis_that_is_away_are_said_in_words(
        self, sparsecam: Run, config_file: Path, folder: Path, ids: list[str]
    ) -> None:
        bad = sparsecam("alerts", "-c", str(config_file), "--since", "yesterday")
        assert (bad.returncode, "yesterday" in bad.stderr) == (EXIT_UNUSABLE, True)
        config_file.write_text(f"runtime_dir: {folder}/nothing\n")
        away = sparsecam("alerts", "-c", str(config_file))
        assert (away.returncode, "sparsecam up" in away.stderr) == (EXIT_UNUSABLE, True)


def test_the_tests_alert_is_what_a_sink_would_send(valkey: EmbeddedValkey) -> None:
    assert encode(alert(1))
    with redis.Redis.from_url(valkey.url) as client:
        assert client.ping()
