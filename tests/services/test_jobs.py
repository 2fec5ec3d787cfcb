"""The words of jobs, which anybody with Redis may write, start nothing but our own commands on files of our own."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from services.jobs.arguments import JobError, PublishArguments, TrainArguments, below, checked, train_words
from services.jobs.folder import JobFolder, Record, newest_row
from services.jobs.program import LINES_HELD, LONGEST_LINE, Program
from services.jobs.settings import TrainerSettings
from services.jobs.stages import plan_of
from trainer.registry import add
from wire.jobs import Job
from wire.valkey import EmbeddedValkey

Invoke = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def registry(tmp_path: Path, cards: ModuleType) -> Path:
    """A registry with one model, street-base."""
    add(tmp_path / "models", b"base", cards.card("street-base", hashlib.sha256(b"base").hexdigest()))
    return tmp_path / "models"


@pytest.fixture
def settings(tmp_path: Path, cards: ModuleType) -> TrainerSettings:
    data = tmp_path / "data"
    (data / "street").mkdir(parents=True)
    for name in ("street/data.yaml", "n.pt", "my.md", "empty.yaml"):
        (data / name).touch()
    told = cards.told().model_dump(mode="json")
    told["training"].pop("epochs")
    (data / "c.yaml").write_text(yaml.safe_dump(told))
    (tmp_path / "secret.yaml").touch()
    (data / "way-out.yaml").symlink_to(tmp_path / "secret.yaml")
    return TrainerSettings.model_validate({"data_dir": data, "runs_dir": tmp_path / "runs"})


def test_a_job_becomes_the_command_that_a_person_would_give(
    settings: TrainerSettings, registry: Path, tmp_path: Path
) -> None:
    words = {
        "data": "street/data.yaml",
        "cfg": "yolov5n-hardswish",
        "weights": "n.pt",
        "teacher": "n.pt",
        "recipe": "yolov5.pruned_quantized",
        "recipe_args": {"num_epochs": 20},
        "batch_size": 16,
        "epochs": 3,
        "auto_batch": True,
    }
    publish = {"name": "street", "baseline": "street-base", "dense": "n.pt", "card": "c.yaml"}
    plan = plan_of(Job("j", words, publish), settings, registry)
    plan.folder.best.parent.mkdir(parents=True)
    plan.folder.best.touch()
    export, published = (stage.command() for stage in plan.stages[1:])
    train = plan.stages[0].command()
    folder = tmp_path / "runs" / "j"
    assert train == (
        "train",
        f"--data={tmp_path}/data/street/data.yaml",
        "--cfg=yolov5n-hardswish",
        f"--weights={tmp_path}/data/n.pt",
        f"--teacher={tmp_path}/data/n.pt",
        "--recipe=yolov5.pruned_quantized",
        '--recipe-args={"num_epochs": 20}',
        "--batch-size=16",
        "--epochs=3",
        "--auto-batch",
        f"--project={folder}",
        "--name=train",
    )
    assert export == ("export", f"{folder}/train/weights/best.pt", f"--out={folder}/street.onnx")
    assert published == (
        "models",
        "add",
        f"{folder}/street.onnx",
        f"--data={tmp_path}/data/street/data.yaml",
        f"--checkpoint={folder}/train/weights/best.pt",
        f"--card={tmp_path}/data/c.yaml",
        "--baseline=street-base",
        f"--dense={tmp_path}/data/n.pt",
    )
    assert (plan.epochs, plan.model) == (0, "street"), "the recipe's epochs win, and it knows them"


def test_a_run_with_a_finished_epoch_is_gone_on_with_and_one_without_begun_anew(
    settings: TrainerSettings, registry: Path
) -> None:
    plan = plan_of(Job("j", {"data": "street/data.yaml"}), settings, registry)
    rubbish = plan.folder.run / "weights" / "half.unfinished"
    rubbish.parent.mkdir(parents=True)
    rubbish.touch()
    assert plan.stages[0].command()[1].startswith("--data=")
    assert not rubbish.exists()
    plan.folder.last.parent.mkdir(parents=True)
    plan.folder.last.touch()
    # The data too: they may have moved with data_dir.
    assert plan.stages[0].command() == (
        "train",
        f"--resume={plan.folder.run}",
        f"--data={settings.data_dir}/street/data.yaml",
    )


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("data", "../secret.yaml"),
        ("data", "/etc/passwd"),
        ("data", "way-out.yaml"),
        ("data", "street"),
        ("data", "nothing.yaml"),
        ("data", "a\nb"),
        ("data", "x" * 1024 + "/y"),
        ("data", 7),
        ("weights", "../../n.pt"),
        ("teacher", "/etc/passwd"),
        ("hyp", "/proc/self/environ"),
        ("recipe", "../my.md"),
        ("recipe", "--help"),
        ("cfg", "--weights=/etc/passwd"),
        ("cfg", "a b"),
        ("recipe_args", {"num_epochs": "eval(1)"}),
        ("epochs", 10**9),
        ("img", 100),
        ("batch_size", 0),
        ("device", "cpu; rm -rf /"),
        ("project", "/etc"),
        ("resume", "/etc"),
        ("log", "wandb"),
    ],
)
def test_a_word_that_reaches_further_is_refused_by_name(settings: TrainerSettings, word: str, value: object) -> None:
    with pytest.raises(JobError, match=f"^{word}"):
        train_words(Job("j", {"data": "street/data.yaml", word: value}), settings)


@pytest.mark.parametrize("suffix", [".txt", ".yml", ".yaml", ".md", ""])
def test_a_recipe_is_a_shipped_one_or_a_file_below_the_data(
    settings: TrainerSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    here, data = tmp_path / "here", settings.data_dir
    assert data is not None
    here.mkdir()
    monkeypatch.chdir(here)
    (here / f"passwords{suffix}").write_text("[admin]: hunter2 {secret\n")
    with pytest.raises(JobError, match=r"^recipe .* below .*data, or a name: .*yolov5\.pruned"):
        train_words(Job("j", {"data": "street/data.yaml", "recipe": f"passwords{suffix}"}), settings)
    (data / f"own{suffix}").touch()
    _, options = train_words(Job("j", {"data": "street/data.yaml", "recipe": f"own{suffix}"}), settings)
    assert f"--recipe={data}/own{suffix}" in options


def test_where_a_model_is_published_is_a_name(settings: TrainerSettings) -> None:
    for words in ({"name": "../x"}, {"max_map_drop": 1}, {"name": "-x"}, {"name": "x.onnx"}):
        with pytest.raises(JobError):
            checked(PublishArguments, words)


@pytest.mark.parametrize(
    "words",
    [{}, {"card": "c.yaml"}, {"baseline": "street-base"}, {"card": "/etc/passwd", "baseline": "street-base"},
     {"card": "c.yaml", "baseline": "/etc/passwd"},
     {"card": "c.yaml", "baseline": "street-base", "dense": "../m.onnx"}],
)  # fmt: skip
def test_a_model_is_published_with_a_card_and_a_baseline_from_the_trainers_folders(
    settings: TrainerSettings, registry: Path, words: dict[str, str]
) -> None:
    with pytest.raises(JobError):
        plan_of(Job("j", {"data": "street/data.yaml"}, {"name": "street", **words}), settings, registry)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"name": "street.onnx"}, "^name: .*leave the suffix out"), ({"name": "street-base"}, "^name: .* there already"),
     ({"card": "empty.yaml"}, r"^card: .*empty\.yaml: "), ({"baseline": "street-bas"}, "^baseline: .*'street-base'"),
     ({"dense": "nobodys"}, "^dense: no model 'nobodys'")],
)  # fmt: skip
def test_what_would_be_refused_after_the_training_is_refused_before_it(
    settings: TrainerSettings, registry: Path, wrong: dict[str, str], words: str
) -> None:
    publish = {"name": "street", "card": "c.yaml", "baseline": "street-base", **wrong}
    with pytest.raises(JobError, match=words):
        plan_of(Job("j", {"data": "street/data.yaml"}, publish), settings, registry)


def test_a_job_that_was_killed_while_publishing_goes_on_with_its_own_name(
    settings: TrainerSettings, registry: Path, cards: ModuleType
) -> None:
    job = Job("j", {"data": "street/data.yaml"}, {"name": "street", "card": "c.yaml", "baseline": "street-base"})
    last = plan_of(job, settings, registry).folder.last
    last.parent.mkdir(parents=True)
    last.touch()
    add(registry, b"trained", cards.card("street", hashlib.sha256(b"trained").hexdigest()))
    assert plan_of(job, settings, registry).stages[-1].name == "publish"


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30)
names = st.sampled_from([*TrainArguments.model_fields, "project", "x"])


@given(st.dictionaries(names, plain | st.lists(plain, max_size=2) | st.dictionaries(st.text(max_size=3), plain)))
def test_whatever_a_job_says_its_command_has_only_known_options(words: dict[str, object]) -> None:
    settings = TrainerSettings.model_validate({"data_dir": "/nonexistent", "runs_dir": "/nonexistent"})
    with pytest.raises(JobError):
        train_words(Job("j", words), settings)
    kept = {name: value for name, value in words.items() if name not in ("data", "weights", "hyp", "recipe")}
    try:
        _, options = train_words(
            Job("j", {**kept, "data": Path(__file__).name}),
            TrainerSettings.model_validate({"data_dir": Path(__file__).parent}),
        )
    except JobError:
        return
    known = {f"--{name.replace('_', '-')}" for name in TrainArguments.model_fields}
    assert {option.partition("=")[0] for option in options} <= known


@given(st.lists(st.sampled_from(["..", ".", "a", "/", "b.yaml", "~", ""]), max_size=6))
def test_no_path_leads_out(parts: list[str]) -> None:
    root = Path(__file__).parent
    with suppress(JobError):
        assert below("/".join(parts), (root,), "data").is_relative_to(root)


def test_a_circle_of_links_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "a")
    for text in ("a", "a/b.yaml", "n\0ul"):
        with pytest.raises(JobError, match="expected a file below"):
            below(text, (tmp_path,), "data")


def test_the_newest_whole_row_counts(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    assert newest_row(path) == (0, {})
    path.write_text("    epoch,   metrics/mAP_0.5,x/lr0\n")
    assert newest_row(path) == (0, {})
    path.write_text("epoch,  metrics/mAP_0.5,x/lr0\n0,0.1,\n1, 0.25,0.01\n2,0.")
    assert newest_row(path) == (2, {"epoch": 1.0, "metrics/mAP_0.5": 0.25, "x/lr0": 0.01})


def test_a_folder_remembers_and_survives_rubbish(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path, Job("j", {}))
    assert folder.record() == Record()
    folder.write(Record(["train"], "failed", "why"))
    assert folder.record() == Record(["train"], "failed", "why")
    (folder.path / "job.json").write_text("{")
    assert folder.record() == Record()


def finished(code: str, wait_until: Callable[..., None]) -> tuple[Program, list[str]]:
    program = Program([sys.executable, "-c", code])
    lines: list[str] = []

    def over() -> bool:
        lines.extend(program.lines())
        return program.poll() is not None

    wait_until(over, 120)  # at the lowest priority, beside other tests
    return program, lines + program.lines()


def test_a_program_runs_at_the_lowest_priority_and_first_to_be_killed(wait_until: Callable[..., None]) -> None:
    code = "import os; print(os.nice(0), os.getsid(0) == os.getpid(), open('/proc/self/oom_score_adj').read())"
    program, lines = finished(code, wait_until)
    assert (program.poll(), lines[0]) == (0, "19 True 500")


def test_of_a_progress_bar_the_last_state_is_kept_and_secrets_are_not(wait_until: Callable[..., None]) -> None:
    code = "print('10%\\r50%\\r100%'); print('rtsp://u:hunter22@cam'); print('x' * 9999); import sys; sys.exit('why')"
    program, lines = finished(code, wait_until)
    assert lines[:2] == ["100%", "rtsp://u:***@cam"]
    assert len(lines[2]) == LONGEST_LINE
    assert (program.poll(), program.reason()) == (1, "why")


def test_of_an_error_that_nobody_foresaw_the_reason_is_the_error(wait_until: Callable[..., None]) -> None:
    code = "from services.process import print_error\ntry: open('/dev/full', 'w').write('x' * 100000)\n"
    program, lines = finished(code + "except OSError as error: raise SystemExit(print_error(error))", wait_until)
    assert "nobody foresaw" in lines[-1]
    assert (program.poll(), program.reason()) == (70, "OSError: [Errno 28] No space left on device")


def test_a_flood_of_output_is_shed_and_counted(wait_until: Callable[..., None]) -> None:
    program = Program([sys.executable, "-c", f"for i in range({LINES_HELD * 2}): print(i)"])
    wait_until(lambda: program.poll() is not None, 30)
    lines = program.lines()
    assert len(lines) == LINES_HELD
    assert program.shed == LINES_HELD


@pytest.mark.parametrize("polite", [True, False])
def test_a_program_is_stopped_with_all_it_started(wait_until: Callable[..., None], polite: bool) -> None:
    ignore = "" if polite else "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    start = "import subprocess, time; print(subprocess.Popen(['sleep', '99']).pid, flush=True); time.sleep(99)"
    program = Program([sys.executable, "-c", ignore + start])
    lines: list[str] = []
    wait_until(lambda: lines.extend(program.lines()) or lines, 30)
    started = time.monotonic()
    program.stop(0.5)
    assert time.monotonic() - started < 3
    assert program.poll() == (-15 if polite else -9)
    wait_until(lambda: not running(int(lines[0])))


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_person_hands_in_looks_and_cancels(
    invoke: Invoke, config_file: Path, valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSECAM_CONFIG", str(config_file))
    monkeypatch.setenv("SPARSECAM__REDIS__URL", valkey.url)
    assert "no jobs" in invoke("jobs", "list").stdout
    done = invoke("jobs", "submit", "--data", "d.yaml", "--epochs", "3", "--cfg", "yolov5n", "--name", "street")
    assert done.returncode == 0, done.stderr
    assert "sparsecam run trainer" in done.stderr
    job = done.stdout.strip()
    listed = invoke("jobs", "list")
    assert f"{job}  queued" in listed.stdout and "data=d.yaml  cfg=yolov5n  name=street" in listed.stdout
    facts = json.loads(invoke("jobs", "list", "--json").stdout)
    assert facts["trainers"] == []
    assert facts["jobs"][0]["arguments"] == {"data": "d.yaml", "cfg": "yolov5n", "epochs": 3}
    assert facts["jobs"][0]["submitted"].endswith("Z") and facts["jobs"][0]["ended"] is None
    assert invoke("jobs", "logs", job).returncode == 0
    assert invoke("jobs", "cancel", job).stdout == f"{job} cancelled\n"
    assert invoke("jobs", "cancel", job).returncode == 1
    assert invoke("jobs", "logs", "-f", job).returncode == 1


def test_what_no_trainer_would_take_is_refused_at_once(
    invoke: Invoke, config_file: Path, valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSECAM_CONFIG", str(config_file))
    monkeypatch.setenv("SPARSECAM__REDIS__URL", valkey.url)
    wrong = invoke("jobs", "submit", "--data", "d.yaml", "--img", "100", "--optimizer", "Magic")
    assert wrong.returncode == 78
    assert "img: " in wrong.stderr and "optimizer: " in wrong.stderr and "'Magic'" in wrong.stderr
    assert "no job nobody" in invoke("jobs", "logs", "nobody").stderr
    assert "expected letters" in invoke("jobs", "cancel", "a:b").stderr


def test_without_redis_it_is_said(invoke: Invoke, config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSECAM_CONFIG", str(config_file))
    done = invoke("jobs", "list")
    assert done.returncode == 78
    assert "sparsecam up" in done.stderr and "Traceback" not in done.stderr
