"""Deployments come to an end whatever workers do, and only a model that stood the comparison is taken."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.rollout import LOADING_LIMIT_S, MIN_FRAMES, PATIENCE, advance
from wire.deployment import Deployment, ModelRef, Tally, WorkerReport

NEW = ModelRef("new.onnx", "/models/new.onnx", "ab" * 32)
START_US = 1_000_000_000_000


def wish(**changes: object) -> Deployment:
    made = Deployment(
        id="d1", wanted=NEW, phase="loading", begun_us=START_US, since_us=START_US, canary_s=10, max_latency_ratio=1.5
    )
    return msgspec.structs.replace(made, **changes)


def tally(frames: int, ms: float, failed: int = 0) -> Tally:
    made = Tally(failed=failed)
    for _ in range(frames):
        made.add(ms, 1, 2)
    return made


def worker(name: str, at_s: float, runs: str = "", **changes: object) -> WorkerReport:
    facts = {"host": "h", "model": "m", "sha256": runs or "00", "tally": Tally(), "period": "d1", **changes}
    return WorkerReport(worker=name, at_us=START_US + int(at_s * 1e6), runs=runs, **facts)  # type: ignore[arg-type]


def at(now: Deployment, seconds: float, *workers: WorkerReport) -> Deployment:
    return advance(now, {one.worker: one for one in workers}, START_US + int(seconds * 1e6))


def canary(ms: float, frames: int = 100, others_ms: float = 10, seconds: float = 11, failed: int = 0) -> Deployment:
    """What becomes of a canary of this latency beside another worker, so long after its beginning."""
    return at(
        wish(phase="canary", canary="a"),
        seconds,
        worker("a", seconds, NEW.sha256, tally=tally(frames, ms, failed)),
        worker("b", seconds, tally=tally(frames, others_ms)),
    )


def test_one_worker_loads_it_is_compared_and_the_others_follow_one_by_one() -> None:
    now = at(wish(), 0, worker("a", 0), worker("b", 0), worker("c", 0))
    assert (now.phase, now.canary) == ("loading", "c")
    assert now.model_for("c", "") == NEW and now.model_for("a", "") is None
    now = at(now, 3, worker("a", 3), worker("b", 3), worker("c", 3, NEW.sha256))
    assert now.phase == "canary"
    busy = [worker(name, 14, key, tally=tally(80, 10)) for name, key in (("a", ""), ("b", ""), ("c", NEW.sha256))]
    now = at(now, 14, *busy)
    assert now.phase == "rolling" and now.comparison and now.comparison.against == "others"
    now = at(now, 15, worker("a", 15), worker("b", 15), worker("c", 15, NEW.sha256))
    assert now.turn == "a" and now.model_for("b", "") is None and now.model_for("c", NEW.sha256) == NEW
    now = at(now, 16, worker("a", 16, NEW.sha256), worker("b", 16), worker("c", 16, NEW.sha256))
    assert now.turn == "b"
    now = at(now, 17, *(worker(name, 17, NEW.sha256) for name in "abc"))
    assert (now.phase, now.outcome, now.current, now.history) == ("settled", "deployed", NEW, [None])


@pytest.mark.parametrize(
    ("now", "phase", "reason"),
    [
        (canary(14), "rolling", ""),
        (canary(16), "returning", "too slow: median"),
        (canary(16, seconds=5), "canary", ""),
        (canary(40, seconds=5), "returning", "too slow"),
        (canary(40, frames=MIN_FRAMES - 1), "canary", ""),
        (canary(10, frames=MIN_FRAMES - 1, seconds=10 * PATIENCE + 1), "returning", "too few frames"),
        (canary(10, failed=5), "returning", "inference failed on 5 of 105"),
    ],
)
def test_the_canary_is_judged_by_latency_errors_and_enough_frames(now: Deployment, phase: str, reason: str) -> None:
    assert now.phase == phase and reason in now.reason


def test_a_lone_worker_is_compared_with_itself_before() -> None:
    now = wish(phase="canary", canary="a")
    slow = worker("a", 11, NEW.sha256, tally=tally(100, 30), before=tally(100, 10))
    now = at(now, 11, slow)
    assert now.phase == "returning" and "the model before 10" in now.reason
    now = at(now, 12, worker("a", 12))
    assert (now.phase, now.outcome, now.current) == ("settled", "rolled back", None)


def test_who_dies_speaks_against_the_model_and_who_leaves_does_not() -> None:
    now = wish(phase="canary", canary="a")
    died = at(now, 20, worker("a", 10, NEW.sha256), worker("b", 20))
    assert died.phase == "returning" and "died" in died.reason
    left = at(now, 20, worker("b", 20))
    assert left.phase == "loading" and at(left, 21, worker("b", 21)).canary == "b"
    long_dead = worker("x", -60, NEW.sha256)
    rolling = at(wish(phase="rolling"), 1, worker("b", 1), long_dead)
    assert rolling.phase == "rolling" and rolling.turn == "b", "it died before this deployment began"


def test_a_worker_that_cannot_load_it_sends_everybody_back() -> None:
    refused = worker("b", 1, failed_deployment="d1", error="unknown detection head")
    now = at(wish(phase="rolling", turn="b"), 1, worker("a", 1, NEW.sha256), refused)
    assert now.phase == "returning" and "unknown detection head" in now.reason
    assert now.model_for("a", NEW.sha256) is None
    assert now.turn == ""


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["ok", "dies", "leaves", "fails"])), max_size=4))
@settings(deadline=None, max_examples=60)
def test_every_deployment_comes_to_an_end(events: list[tuple[str, str]]) -> None:
    """Workers that obey, die, leave and fail in any order: it settles, and all who live run the current model."""
    now, runs, fate = wish(), dict.fromkeys("abc", ""), {}
    last: dict[str, float] = {}
    plan = dict(enumerate(events))
    for step in range(int(LOADING_LIMIT_S)):
        if (event := plan.get(step // 3)) is not None and step % 3 == 0:
            fate[event[0]] = event[1]
        for name in runs:
            wanted = NEW.sha256 if now.model_for(name, runs[name]) == NEW else ""
            if fate.get(name) in {None, "ok"} or (fate[name] == "fails" and not wanted):
                runs[name] = wanted
        last.update({name: step for name in runs if fate.get(name) != "dies"})
        reports = [
            worker(
                name,
                last.get(name, 0),
                key,
                tally=tally(60, 10),
                failed_deployment="d1" if fate.get(name) == "fails" else "",
            )
            for name, key in runs.items()
            if fate.get(name) != "leaves"
        ]
        now = at(now, step, *reports)
        if now.phase == "settled":
            break
    living = [name for name in runs if fate.get(name) in (None, "ok")]
    if living:
        assert now.phase == "settled"
        assert {now.model_for(name, runs[name]) for name in living} == {now.current}
