"""A job reaches its end whoever dies on the way: the trainer, its programs, Redis.

The programs are a stand-in that keeps to the contract of `sparsecam train`, in tenths of a second instead of hours.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import redis
import yaml

from services.process import EXIT_UNUSABLE, report_path
from trainer.registry import add
from wire import jobs
from wire.health import read_health
from wire.jobs import Job, JobStatus
from wire.redis_link import Link
from wire.valkey import EmbeddedValkey

# data.yaml holds what shall happen: `epoch_s`, and of the words `refuse`, `dieN`, `deaf` those that are to be.
STAND_IN = """
import os, signal, sys, time
from pathlib import Path

what, options = sys.argv[1], dict(one.partition("=")[::2] for one in sys.argv[2:] if one.startswith("--"))
print(what, *sys.argv[2:], flush=True)
if what == "export":
    Path(options["--out"]).write_bytes(Path(sys.argv[2]).read_bytes())
elif what == "models":
    sys.exit("refused: slower than dense" if "--baseline=too-good" in sys.argv else 0)
if what != "train":
    sys.exit(0)
run = Path(options.get("--resume") or Path(options["--project"], options["--name"]))
last, results, kept = run / "weights/last.pt", run / "results.csv", run / "opt.txt"
if "--resume" not in options:
    last.parent.mkdir(parents=True)
    kept.write_text(options["--data"] + " " + options["--epochs"])
data, epochs = kept.read_text().split()
epoch_s, *words = Path(data).read_text().split()
print("pid", os.getpid(), flush=True)
def told(*_):
    sys.exit(143)
signal.signal(signal.SIGTERM, signal.SIG_IGN if "deaf" in words else told)
if "refuse" in words:
    sys.exit("no pictures")
first = int(last.read_text()) if last.exists() else 0
for epoch in range(first, int(epochs)):
    time.sleep(float(epoch_s))
    if f"die{epoch}" in words:
        os.kill(os.getpid(), signal.SIGKILL)
    new = "" if results.exists() else "epoch,metrics/mAP_0.5\\n"
    with results.open("a") as file:
        file.write(f"{new}{epoch},{epoch / 10}\\n")
    last.write_text(str(epoch + 1))
    print("epoch", epoch, flush=True)
(run / "weights/best.pt").write_text("weights")
"""
TRAINER = """
import sys
from functools import partial
from pathlib import Path
from services.config import load
from services.process import LogOptions, run_process
from services.trainer import run
command = lambda *words: (sys.executable, sys.argv[2], *words)
main = partial(run, command=command) if sys.argv[2] else run
sys.exit(run_process("trainer", load(Path(sys.argv[1]), {}), main, logs=LogOptions()))
"""


@dataclass
class Site:
    """A trainer, its Redis, its folders."""

    folder: Path
    valkey: EmbeddedValkey
    environment: dict[str, str]
    wait_until: Callable[..., None]
    link: Link
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, name: str = "t1", program: str = "stand_in.py") -> subprocess.Popen[str]:
        """A trainer; without a `program` its jobs are done by our own commands."""
        config = self.folder / f"{name}.yaml"
        config.write_text(
            f"runtime_dir: {self.folder}/run\nmetrics: {{enabled: false}}\nredis: {{url: '{self.valkey.url}'}}\n"
            f"registry: {{folder: {self.folder}/models}}\n"
            f"trainer: {{name: {name}, data_dir: {self.folder}/data, runs_dir: {self.folder}/runs}}\n"
        )
        script = str(self.folder / program) if program else ""
        (self.folder / "stand_in.py").write_text(STAND_IN)
        process = subprocess.Popen(
            [sys.executable, "-c", TRAINER, str(config), script],
            env=self.environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def submit(self, what: str = "0.1", epochs: int = 3, **publish: str) -> str:
        data = self.folder / "data"
        id_ = jobs.new_id()
        job = Job(id_, {"data": f"{id_}.yaml", "epochs": epochs}, publish)
        (data / f"{id_}.yaml").write_text(what)
        jobs.submit(self.link, job)
        return job.id

    def status(self, job: str) -> JobStatus:
        found = jobs.status(self.link, job)
        assert found
        return found

    def reach(self, job: str, condition: Callable[[JobStatus], bool]) -> JobStatus:
        self.wait_until(lambda: condition(self.status(job)), 40)
        return self.status(job)

    def lines(self, job: str) -> list[str]:
        return [line.line for line in jobs.log_lines(self.link, job)]

    def program(self, job: str) -> int:
        """The process id of the newest program of a job."""
        self.wait_until(lambda: any(line.startswith("pid") for line in self.lines(job)), 40)
        return int([line for line in self.lines(job) if line.startswith("pid")][-1].split()[1])

    def epochs(self, job: str) -> list[str]:
        return (self.folder / "runs" / job / "train" / "results.csv").read_text().split()[1:]


@pytest.fixture
def site(
    folder: Path, own_valkey: EmbeddedValkey, environment: dict[str, str], wait_until: Callable[..., None]
) -> Iterator[Site]:
    (folder / "data").mkdir()
    client = redis.Redis.from_url(own_valkey.url, protocol=2)
    site = Site(folder, own_valkey, environment, wait_until, Link(client))
    yield site
    for process in site.started:
        if process.poll() is None:
            process.kill()
        process.communicate()
    client.close()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_jobs_are_done_in_turn_and_a_refused_one_says_why(site: Site, cards: ModuleType) -> None:
    (site.folder / "data" / "card.yaml").write_text(yaml.safe_dump(cards.told().model_dump(mode="json")))
    for name in ("base", "too-good"):
        add(site.folder / "models", name.encode(), cards.card(name, hashlib.sha256(name.encode()).hexdigest()))
    facts = {"card": "card.yaml", "baseline": "base"}
    good, refused, bad = site.submit(name="street", **facts), site.submit("0.1 refuse"), jobs.new_id()
    jobs.submit(site.link, Job(bad, {"data": "../../etc/passwd"}))
    gated = site.submit(epochs=1, name="street", card="card.yaml", baseline="too-good")
    site.start()
    done = site.reach(good, lambda now: now.state == "done")
    assert (done.epoch, done.epochs, done.model, done.error, done.trainer) == (3, 3, "street", "", "t1")
    assert done.row == '{"epoch": 2.0, "metrics/mAP_0.5": 0.2}'
    begun = [line.split()[0] for line in site.lines(good) if "--" in line or line.startswith("models")]
    assert begun == ["train", "export", "models"]
    assert (site.folder / "runs" / good / "street.onnx").read_text() == "weights"
    assert site.reach(refused, lambda now: now.state == "failed").error == "train: no pictures"
    failed = site.reach(bad, lambda now: now.state == "failed")
    assert failed.error.startswith("data '../../etc/passwd': expected a file below")
    assert site.reach(gated, lambda now: now.state == "failed").error == "publish: refused: slower than dense"


def test_a_killed_trainer_takes_its_job_up_where_it_was(site: Site) -> None:
    job = site.submit("0.4", epochs=5)
    first = site.start()
    site.reach(job, lambda now: now.epoch >= 2)
    program = site.program(job)
    first.kill()
    first.wait()
    site.wait_until(lambda: not alive(program))
    assert site.status(job).state == "running"
    site.start()
    done = site.reach(job, lambda now: now.state == "done")
    assert (done.epoch, done.attempts) == (5, 0)
    assert [row.split(",")[0] for row in site.epochs(job)] == ["0", "1", "2", "3", "4"], "each epoch once"
    assert sum("--resume" in line for line in site.lines(job)) == 1


@pytest.mark.parametrize("how", ["0.4", "0.4 deaf"])
def test_a_stop_takes_less_than_five_seconds_and_loses_no_epoch(site: Site, how: str) -> None:
    job = site.submit(how, epochs=4)
    process = site.start()
    site.reach(job, lambda now: now.epoch >= 1)
    program = site.program(job)
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert time.monotonic() - asked < 5
    assert process.returncode == 0
    assert not alive(program)
    now = site.status(job)
    assert (now.state, now.attempts) == ("interrupted", 0)
    last = read_health(report_path(site.folder / "run" / "health", "trainer", 0))
    assert last.state == "stopped"
    site.start()
    site.reach(job, lambda now: now.state == "done")
    assert len(site.epochs(job)) == 4


def test_a_running_job_is_cancelled_and_the_next_begun(site: Site) -> None:
    long, next_ = site.submit("0.1", epochs=10_000), site.submit(epochs=1)
    site.start()
    program = site.program(long)
    assert jobs.cancel(site.link, long) == "running"
    ended = site.reach(long, lambda now: now.state == "cancelled")
    assert ended.ended_us > 0 and not alive(program)
    site.reach(next_, lambda now: now.state == "done")


def test_a_killed_program_is_started_again_but_not_for_ever(site: Site) -> None:
    lucky, hopeless = site.submit("0.4", epochs=7), site.submit("0.1 die2")
    site.start()
    site.reach(lucky, lambda now: now.epoch >= 1)
    os.kill(site.program(lucky), signal.SIGKILL)
    done = site.reach(lucky, lambda now: now.state == "done")
    assert (done.epoch, len(site.epochs(lucky)), done.attempts) == (7, 7, 0)
    failed = site.reach(hopeless, lambda now: now.state == "failed")
    assert "train was killed (-9) 3 times without finishing an epoch" in failed.error
    assert (failed.epoch, sum("--resume" in line for line in site.lines(hopeless))) == (2, 3)


def test_a_job_that_takes_the_trainer_with_it_is_given_up(site: Site) -> None:
    job = site.submit("60")  # no epoch is finished
    for attempt in range(1, 4):
        process = site.start()
        site.wait_until(lambda: site.status(job).attempts == attempt, 30)  # noqa: B023
        process.kill()
        process.wait()
    site.start()
    assert "the trainer died 3 times" in site.reach(job, lambda now: now.state == "failed").error


def test_a_stop_is_as_quick_when_redis_hangs(site: Site) -> None:
    job = site.submit("0.4 deaf", epochs=100)
    process = site.start()
    program = site.program(job)
    assert site.valkey.pid
    os.kill(site.valkey.pid, signal.SIGSTOP)
    try:
        asked = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
        assert time.monotonic() - asked < 5
    finally:
        os.kill(site.valkey.pid, signal.SIGCONT)
    assert not alive(program)


def test_a_training_goes_on_while_redis_is_away(site: Site) -> None:
    job = site.submit("0.3", epochs=8)
    site.start()
    site.reach(job, lambda now: now.epoch >= 1)
    program = site.program(job)
    site.valkey.stop()
    site.wait_until(lambda: len(site.epochs(job)) >= 5, 30)
    assert alive(program)
    site.valkey.start()
    client = redis.Redis.from_url(site.valkey.url, protocol=2)
    site.link = Link(client)
    done = site.reach(job, lambda now: now.state == "done")
    assert (done.epoch, done.lines_shed) == (8, 0)
    assert {f"epoch {epoch}" for epoch in range(8)} <= set(site.lines(job))
    client.close()


def test_two_trainers_do_not_share_a_folder_of_runs(site: Site) -> None:
    job = site.submit(epochs=1)
    site.start()
    site.reach(job, lambda now: now.state == "done")
    second = site.start("t2")
    _, words = second.communicate(timeout=30)
    assert second.returncode == EXIT_UNUSABLE
    assert "in use by another trainer" in words and "Traceback" not in words


def test_without_a_folder_of_data_it_says_what_to_set(site: Site) -> None:
    (site.folder / "data").rmdir()
    process = site.start()
    _, words = process.communicate(timeout=30)
    assert process.returncode == EXIT_UNUSABLE
    assert "trainer.data_dir" in words and "Traceback" not in words


@pytest.mark.slow
def test_a_real_training_that_was_killed_goes_on(site: Site) -> None:
    """As above with `sparsecam train` itself: white squares on grey, seven epochs of a second each."""
    pytest.importorskip("torch", reason="the trainer is not installed")
    squares(site.folder / "data" / "squares")
    job = Job(jobs.new_id(), {"data": "squares/data.yaml", "cfg": "yolov5n", "img": 64, "batch_size": 4, "epochs": 7})
    jobs.submit(site.link, job)
    first = site.start(program="")
    site.wait_until(lambda: site.status(job.id).epoch >= 2 or site.status(job.id).error, 90)
    assert site.status(job.id).error == ""
    first.kill()
    first.wait()
    site.start(program="")
    site.wait_until(lambda: site.status(job.id).epoch == 7 or site.status(job.id).error, 90)
    assert [row.split(",")[0] for row in site.epochs(job.id)] == list("0123456")
    assert (site.folder / "runs" / job.id / "train" / "weights" / "last.pt").is_file()
    site.wait_until(lambda: site.status(job.id).state == "done" or site.status(job.id).error, 90)
    assert site.status(job.id).error == ""
    assert (site.folder / "runs" / job.id / "model.onnx").is_file()


def squares(folder: Path) -> None:
    """A data set of eight pictures."""
    draw = np.random.default_rng(1)
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for number in range(8):
        x, y = draw.integers(0, 40, 2)
        picture = np.full((64, 64, 3), 90, np.uint8)
        picture[y : y + 24, x : x + 24] = 255
        cv2.imwrite(str(folder / "images" / f"{number}.png"), picture)
        label = f"0 {(x + 12) / 64} {(y + 12) / 64} 0.375 0.375\n"
        (folder / "labels" / f"{number}.txt").write_text(label)
    (folder / "data.yaml").write_text("path: .\ntrain: images\nval: images\nnames: [square]\n")
