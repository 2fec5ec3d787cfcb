"""A slip in the config is named with its line and column, what was found, what was expected and what was meant."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from services.config import Config, find_config, load, validate
from services.config_errors import ConfigError, keys_at
from services.reference import reference
from services.yaml_source import MAX_FILE_BYTES, parse_yaml

ROOT = Path(__file__).resolve().parents[2]


def written(folder: Path, text: str) -> Path:
    path = folder / "sparsecam.yaml"
    path.write_text(textwrap.dedent(text))
    return path


def complaints(path: Path, env: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, env or {})
    return [str(problem).removeprefix(f"{path}:") for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "redis:\n  ulr: redis://h\n",
            ["2:3: redis.ulr: unknown key 'ulr'; did you mean 'url'?"],
        ),
        (
            "camera:\n  a: {source: x.mp4}\n",
            ["1:1: camera: unknown key 'camera'; did you mean 'cameras'?"],
        ),
        (
            "redis:\n  zzz: 1\n",
            [
                "2:3: redis.zzz: unknown key 'zzz'; expected one of: "
                "alerts_maxlen, detections_maxlen, memory_mb, outbox, timeout_s, url"
            ],
        ),
        (
            "cameras:\n  door:\n    source: a.mp4\n    fps: fast\n",
            [
                "4:10: cameras.door.fps: found 'fast'; expected a number or null, above 0, at most 240 "
                "(At most this many frames are detected a second of event time)"
            ],
        ),
        (
            "cameras:\n  door:\n    source: a.mp4\n    fps: 900\n",
            [
                "4:10: cameras.door.fps: found 900; expected a number or null, above 0, at most 240 "
                "(At most this many frames are detected a second of event time)"
            ],
        ),
        (
            "cameras:\n  door: {source: a.mp4, profile: keyframe}\n",
            [
                "2:34: cameras.door.profile: found 'keyframe'; expected one of: all, keyframes, adaptive or null; "
                "did you mean 'keyframes'?"
            ],
        ),
        (
            "cameras:\n  door:\n    fps: 5\n",
            ["2:3: cameras.door.source: missing; expected text, not empty"],
        ),
        (
            "link: {max_age_ms: 100}\nlink: {max_age_ms: 200}\n",
            ["2:1: link: given twice (first in line 1)"],
        ),
        (
            "link:\n  max_age_ms: 100\n  worker_credit: 2\n  max_age_ms: 200\n",
            ["4:3: link.max_age_ms: given twice (first in line 2)"],
        ),
        ("- a\n- b\n", ["1:1: expected `key: value` lines at the top level, found a list"]),
        ("redis: {url: [a, b}\n", ["1:19: not YAML: while parsing a flow sequence, expected ',' or ']', but got '}'"]),
        (
            "redis:\n\turl: x\n",
            ["2:1: not YAML: while scanning for the next token, found character '\\t' that cannot start any token"],
        ),
        ("redis: !!python/object:os.system x\n", ["1:8: unknown tag '!!python/object:os.system'; plain values only"]),
        ("metrics: on\n", ["1:10: metrics: found true; expected `key: value` lines (Prometheus metrics)"]),
        ("detector: {workers: 0}\n", ["1:21: detector.workers: expected `auto` or 1 to 1024 workers"]),
        (
            "rules:\n  r:\n    cameras: [frnt]\ncameras:\n  front: {source: a.mp4}\n",
            ["3:15: rules.r.cameras[0]: no camera 'frnt'; did you mean 'front'?"],
        ),
        (
            "rules:\n  r: {kind: zon, zone: porch}\n",
            [
                "2:13: rules.r.kind: found 'zon'; expected one of: presence, zone, line, dwell, count, absent, speed; "
                "did you mean 'zone'?"
            ],
        ),
        ("rules:\n  r: {kind: zone}\n", ["2:3: rules.r.zone: missing; expected text, not empty, at most 64 long"]),
        ("rules:\n  r: {kind: line, line: l, directon: in}\n", ["2:28: rules.r.directon: unknown key 'directon'; did"]),
        ("rules:\n  r: {direction: in}\n", ["2:7: rules.r.direction: unknown key 'direction'; expected one of: anc"]),
        ("rules:\n  r: {kind: count}\n", ["2:6: rules.r: neither `over` nor `under`; expected a number of objects"]),
        ("rules:\n  r: 3\n", ["2:6: rules.r: found 3; expected `key: value` lines"]),
        (
            "rules:\n  r: {kind: zone, zone: porch, min_score: 3}\n",
            ["2:43: rules.r.min_score: found 3; expected a number, 0 to 1"],
        ),
        (
            "rules:\n  r: {schedule: {time_zone: Europe/Berln, arm: [{hours: 8-9}]}}\n",
            [
                "2:29: rules.r.schedule.time_zone: no time zone 'Europe/Berln' is known here; expected a name such as",
                "2:57: rules.r.schedule.arm[0].hours: found '8-9'; expected text, matching",
            ],
        ),
        (
            "scenes:\n  yard:\n    zones:\n      bow: [[0, 0], [1, 1], [1, 0], [0, 1]]\n",
            [
                "4:12: scenes.yard.zones.bow: the polygon meets itself: its edge from point 1 to point 2 and its edge "
                "from point 3 to point 4; expected the corners in turn"
            ],
        ),
        (
            "scenes:\n  yard:\n    zones: {out: [[0, 0], [1.2, 0], [1, .nan]]}\n",
            [
                "3:28: scenes.yard.zones.out[1][0]: found 1.2; expected a number, 0 to 1",
                "3:41: scenes.yard.zones.out[2][1]: found nan; expected a number, 0 to 1",
            ],
        ),
        (
            "scenes:\n  yard: {lines: {l: [[0, 0]]}, masks: {m: [[0, 0], [0, 0], [1, 1]]}}\n",
            [
                "2:21: scenes.yard.lines.l: found 1 of them; expected at least 2 points",
                "2:43: scenes.yard.masks.m: the polygon meets itself",
            ],
        ),
        (
            "cameras: {yard: {source: a.mp4}, door: {source: b.mp4}}\n"
            "scenes:\n  yrd: {}\n  yard: {zones: {porch: [[0, 0], [1, 0], [1, 1]]}}\n"
            "rules:\n"
            "  a: {kind: zone, zone: porhc, cameras: [yard]}\n"
            "  b: {zone: porch}\n"
            "  c: {kind: line, line: fence}\n"
            "  d: {kind: speed, over_kmh: 30}\n",
            [
                "3:3: scenes.yrd: no camera 'yrd'; did you mean 'yard'?",
                "6:25: rules.a.zone: camera 'yard': no zone 'porhc'; did you mean 'porch'?",
                "7:13: rules.b.zone: camera 'door': no zone 'porch'; expected a name under `scenes.door.zones`",
                "8:25: rules.c.line: cameras 'yard', 'door': no line 'fence'; expected a name under `scenes",
                "9:13: rules.d.kind: cameras 'yard', 'door' cannot measure speed; expected four ground points under",
            ],
        ),
    ],
)
def test_each_slip_is_named_where_it_is(tmp_path: Path, text: str, expected: list[str]) -> None:
    found = complaints(written(tmp_path, text))
    assert [line.split(": ", 1)[0] for line in found] == [line.split(": ", 1)[0] for line in expected]
    for line, wanted in zip(found, expected, strict=True):
        assert line.startswith(wanted)


def test_all_problems_are_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    found = complaints(
        written(
            tmp_path,
            """\
            cameras:
              a b: {source: x.mp4}
              c: {source: x.mp4, fpss: 1}
            link:
              max_age_ms: soon
              max_age_ms: later
            wat: 1
            """,
        )
    )
    assert [line.split(": ")[0] for line in found] == ["2:3", "3:22", "5:15", "6:3", "7:1"]


def test_no_message_shows_a_password(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """\
        cameras:
          door: {source: "rtsq://admin:hunter22@cam/1"}
        redis:
          timeout_s: redis://u:hunter22@h
          url: {a: "redis://:hunter22@h"}
        """,
    )
    text = "\n".join(complaints(path))
    assert len(text.splitlines()) == 3
    assert "hunter22" not in text


def test_a_number_where_text_is_wanted_is_taken_as_written(tmp_path: Path) -> None:
    config = load(written(tmp_path, "cameras:\n  a: {source: 0}\n  b: {source: 007}\n  no: {source: x.mp4}\n"), {})
    assert [camera.source for camera in config.cameras.values()] == ["0", "007", "x.mp4"]
    assert list(config.cameras) == ["a", "b", "no"]


def test_merge_keys_share_settings_and_point_at_the_text_that_is_wrong(tmp_path: Path) -> None:
    text = """\
    cameras:
      a: &base
        source: a.mp4
        fps: 5
      b:
        <<: *base
        source: b.mp4
    """
    config = load(written(tmp_path, text), {})
    assert (config.cameras["b"].source, config.cameras["b"].fps) == ("b.mp4", 5)
    found = complaints(written(tmp_path, textwrap.dedent(text).replace("fps: 5", "fps: -5")))
    assert {line.split(": ")[0] for line in found} == {"4:10"}


def test_aliases_cannot_unfold_into_gigabytes(tmp_path: Path) -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    assert complaints(written(tmp_path, "\n".join(levels))) == [
        "1:1: more than 50000 values once aliases are written out; refused"
    ]
    assert complaints(written(tmp_path, "redis: &a {url: *a}\n")) == ["1:1: nested deeper than 32 levels; refused"]
    merged = ["m0: &m0 {x: 1}"] + [f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 10)}]}}" for n in range(1, 10)]
    assert "refused" in complaints(written(tmp_path, "\n".join(merged)))[0]
    assert "nested" in complaints(written(tmp_path, "[" * 5000))[0]


def test_files_that_are_no_config_are_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "sparsecam.yaml"
    path.write_bytes(b"redis:\n  url: \xff\xfe\n")
    assert complaints(path) == ["2:8: the file is not UTF-8 text"]
    path.write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    assert "larger than 4 MiB" in complaints(path)[0]
    path.write_bytes(b"redis: \x00\n")
    assert "U+0000" in complaints(path)[0]
    assert "No such file" in complaints(tmp_path / "none.yaml")[0]
    assert "directory" in complaints(tmp_path)[0]


def test_paths_are_read_as_people_write_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    # `MEDIA_DIR=`, or what compose makes of a variable that is not set: no path, and not the current folder.
    empty = load(
        None, {"SPARSECAM__MEDIA__DIR": "", "SPARSECAM__LINK__CURVE_DIR": "", "SPARSECAM__DETECTOR__CACHE_DIR": " "}
    )
    assert (empty.media.dir, empty.link.curve_dir, empty.detector.cache_dir) == (None, None, None)
    home = load(written(tmp_path, "media: {dir: ~/pics}\nruntime_dir: ~/run\n"), {})
    assert (home.media.folder, home.runtime_dir) == (tmp_path / "pics", tmp_path / "run")
    (found,) = complaints(written(tmp_path, "runtime_dir: ''\n"))
    assert "runtime_dir: empty; expected a path, or leave it out for the default" in found


def test_an_empty_file_and_empty_sections_are_the_defaults(tmp_path: Path) -> None:
    assert load(written(tmp_path, ""), {}) == load(None, {})


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_in_words(text: str) -> None:
    source = parse_yaml(text, "any.yaml")
    assert isinstance(source.data, dict)
    assert all(str(problem).startswith("any.yaml:") for problem in source.problems)


@given(st.sampled_from(sorted(keys_at(Config, ("link",)))), st.data())
def test_a_key_with_one_slip_is_recognised(name: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(name) - 1))
    slip = name[:at] + data.draw(st.sampled_from(["", "x", name[at] * 2])) + name[at + 1 :]
    source = parse_yaml(f"link: {{{slip}: 1}}", "f.yaml")
    if slip in keys_at(Config, ("link",)):
        return
    with pytest.raises(ConfigError, match=f"did you mean '{name}'"):
        validate(source, {})


def test_the_shipped_example_is_the_reference() -> None:
    shipped = (ROOT / "sparsecam.example.yaml").read_text()
    assert shipped == reference(), "run: python -m services.reference > sparsecam.example.yaml"


def test_the_example_loads_and_names_every_setting() -> None:
    from pydantic import BaseModel

    config = load(ROOT / "sparsecam.example.yaml", {})
    named = yaml.safe_load((ROOT / "sparsecam.example.yaml").read_text().replace("# runtime_dir:", "runtime_dir:"))

    def compare(model: BaseModel, keys: dict[str, object], path: str) -> int:
        assert set(keys) == set(type(model).model_fields), path
        count = 0
        for name in type(model).model_fields:
            value, inner = getattr(model, name), keys[name]
            if isinstance(value, BaseModel):
                assert isinstance(inner, dict)
                count += compare(value, inner, f"{path}.{name}")
            elif name in ("cameras", "scenes", "rules") and not path:
                assert isinstance(inner, dict)
                first, *others = value
                count += compare(value[first], inner[first], f"{path}.{name}")
                common = set(type(value[first]).model_fields)
                for other in others:  # of its further kinds only what is their own
                    assert set(inner[other]) - common == set(type(value[other]).model_fields) - common, other
            else:
                count += 1
        return count

    assert compare(config, named, "") > 50


def test_the_examples_values_are_the_defaults() -> None:
    example, defaults = load(ROOT / "sparsecam.example.yaml", {}), load(None, {})
    assert example.model_copy(update={"cameras": {}, "scenes": {}, "rules": {}}) == defaults


def test_names_that_redis_or_files_could_not_hold_are_refused(tmp_path: Path) -> None:
    for name in ("a b", "ä", "a/b", "{a}", "-a", "x" * 65):
        path = written(tmp_path, f"cameras:\n  '{name}': {{source: x.mp4}}\n")
        assert complaints(path)[0].startswith("2:3: ")


def test_a_runtime_dir_too_deep_for_sockets_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, f"runtime_dir: /tmp/{'x' * 100}\n")
    assert complaints(path)[0].startswith("1:14: runtime_dir: 105 bytes long; expected at most 88")


class TestEnvironment:
    def test_it_wins_over_the_file_whatever_its_case(self, tmp_path: Path) -> None:
        path = written(tmp_path, "redis:\n  url: redis://file\n  outbox: 5\n")
        config = load(path, {"SPARSECAM__REDIS__URL": "redis://env", "sparsecam__link__max_age_ms": "250"})
        assert (config.redis.url, config.redis.outbox, config.link.max_age_ms) == ("redis://env", 5, 250)

    def test_it_reaches_cameras_with_dashes_and_makes_new_ones(self, tmp_path: Path) -> None:
        path = written(tmp_path, "cameras:\n  front-door: {source: a.mp4}\n")
        config = load(
            path,
            {
                "SPARSECAM__CAMERAS__FRONT_DOOR__FPS": "5",
                "SPARSECAM__CAMERAS__front-door__MOTION__ENABLED": "true",
                "SPARSECAM__CAMERAS__YARD__SOURCE": "rtsp://u:*p@h/1 #x",
            },
        )
        assert (config.cameras["front-door"].fps, config.cameras["front-door"].motion.enabled) == (5, True)
        assert config.cameras["yard"].source == "rtsp://u:*p@h/1 #x"

    def test_lists_are_yaml(self, tmp_path: Path) -> None:
        config = load(
            None, {"SPARSECAM__DETECTOR__LABELS": "[cat, dog]", "SPARSECAM__DETECTOR__IMAGE_SHAPE": "[224, 416]"}
        )
        assert (config.detector.labels, config.detector.image_shape) == (["cat", "dog"], (224, 416))

    def test_a_header_has_dashes_where_a_variable_has_underscores(self, tmp_path: Path) -> None:
        path = written(tmp_path, "outputs:\n  office: {kind: webhook, url: https://h/hook, headers: {X_Mine: a}}\n")
        variables = {"X_API_KEY": "k", "X_MINE": "b"}
        config = load(
            path, {f"SPARSECAM__OUTPUTS__OFFICE__HEADERS__{name}": value for name, value in variables.items()}
        )
        headers = config.outputs["office"].headers  # type: ignore[union-attr]
        assert {name: value.get_secret_value() for name, value in headers.items()} == {"X_Mine": "b", "x-api-key": "k"}

    @pytest.mark.parametrize(
        ("variable", "value", "words"),
        [
            ("SPARSECAM__REDIS__ULR", "x", "no setting 'redis.ulr'; did you mean SPARSECAM__REDIS__URL?"),
            ("SPARSECAM__REDSI__URL", "x", "no setting 'redsi'; did you mean SPARSECAM__REDIS?"),
            (
                "SPARSECAM__LINK__MAX_AGE_MS",
                "soon",
                "link.max_age_ms: found 'soon'; expected a whole number, 1 to 60000",
            ),
            ("SPARSECAM__LINK__MAX_AGE_MS", "[1", "link.max_age_ms: not YAML"),
            ("SPARSECAM__REDIS__URL__X", "1", "no setting 'redis.url.x'; nothing lies below redis.url"),
            ("SPARSECAM__", "1", "no setting ''"),
        ],
    )
    def test_a_bad_variable_is_named(self, variable: str, value: str, words: str) -> None:
        with pytest.raises(ConfigError) as caught:
            load(None, {variable: value})
        assert str(caught.value).startswith(f"environment variable {variable}: {words}")

    def test_redis_url_of_the_platform_is_the_last_resort(self, tmp_path: Path) -> None:
        assert load(None, {"REDIS_URL": "redis://platform"}).redis_url == "redis://platform"
        path = written(tmp_path, "redis: {url: redis://file}\n")
        assert load(path, {"REDIS_URL": "redis://platform"}).redis_url == "redis://file"
        assert load(None, {}).embeds_valkey


def test_the_file_is_sought_in_the_documented_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(env={}) in (None, Path("/etc/sparsecam/sparsecam.yaml"))
    (tmp_path / "sparsecam.yaml").touch()
    assert find_config(env={}) == Path("sparsecam.yaml")
    assert find_config(env={"SPARSECAM_CONFIG": "other.yaml"}) == Path("other.yaml")
    assert find_config(Path("given.yaml"), env={"SPARSECAM_CONFIG": "other.yaml"}) == Path("given.yaml")


def test_endpoints_lie_in_the_runtime_dir_unless_given(tmp_path: Path) -> None:
    config = load(written(tmp_path, f"runtime_dir: {tmp_path}\nlink: {{workers: 'tcp://127.0.0.1:5'}}\n"), {})
    assert config.frames_endpoint == f"ipc://{tmp_path}/frames.ipc"
    assert config.workers_endpoint == "tcp://127.0.0.1:5"
    assert config.redis_url == f"unix://{tmp_path}/valkey/valkey.sock"
