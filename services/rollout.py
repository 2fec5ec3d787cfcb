"""How a deployment goes on: the decisions, without Redis, a clock or a model. Any worker may make them.

A new model is loaded by one worker first, the canary. What it then does is compared with the other workers of its host
at the same time (or, where it is the only one, with itself before). Trouble sends everybody back to the current model;
otherwise the others change one by one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from msgspec.structs import replace

from wire.deployment import Comparison, Deployment, WorkerReport, figures, key_of, total

MIN_FRAMES = 50  # a median of fewer says little
P99_FRAMES = 300  # a 99th percentile of fewer hangs on two frames
# The slowest of a hundred frames wavers with whatever else the machine does; so much more is not its wavering.
P99_SLACK = 2.0
# A model so much slower than is allowed is not waited for.
HOPELESS = 2.0
# Engines do not refuse frames now and then: one in a hundred more than before is a fault of the model.
MAX_FAILED_SHARE = 0.01
# Trials of every engine at a few shapes and their compilation take a minute or two for the largest models.
LOADING_LIMIT_S = 900.0
# Frames may be rare at night; after so many times `canary_s` the model has had its chance.
PATIENCE = 10.0
HISTORY = 10

Reports = Mapping[str, WorkerReport]


def advance(now: Deployment, reports: Reports, now_us: int) -> Deployment:
    """The deployment as it is to be; the same object when nothing is to change. Times are microseconds of one clock."""
    if now.phase == "settled":
        return now
    fresh = {name: report for name, report in reports.items() if report.is_fresh(now_us)}
    if now.phase == "returning":
        return _return(now, fresh, now_us)
    trouble = _trouble(now, reports, fresh, now_us)
    if trouble:
        return go_back(now, trouble, now_us)
    if now.phase == "loading":
        return _load(now, fresh, now_us)
    if now.phase == "canary":
        return _compare(now, fresh, now_us)
    return _roll(now, fresh, now_us)


def go_back(now: Deployment, reason: str, now_us: int) -> Deployment:
    """Everybody back to the current model."""
    return replace(now, phase="returning", since_us=now_us, turn="", outcome="rolled back", reason=reason)


def _trouble(now: Deployment, reports: Reports, fresh: Reports, now_us: int) -> str:
    """What speaks against the wanted model in any phase; empty when nothing does."""
    wanted = key_of(now.wanted)
    for name, report in sorted(reports.items()):
        concerned = name in (now.canary, now.turn) or (now.phase == "rolling" and report.runs == wanted)
        if report.failed_deployment == now.id:
            return f"worker {name} cannot run it: {report.error}"
        if concerned and name not in fresh and report.at_us >= now.begun_us:
            return f"worker {name} died or hung with it"
        tally = report.tally
        if concerned and report.runs == wanted and tally.failed_share > _failed_before(report) + MAX_FAILED_SHARE:
            begun = tally.frames + tally.failed
            return f"worker {name}: inference failed on {tally.failed} of {begun} frames"
    if now.phase in ("loading", "rolling") and _age_s(now, now_us) > LOADING_LIMIT_S and (now.canary or now.turn):
        return f"worker {now.turn or now.canary} did not load it within {LOADING_LIMIT_S:g} s"
    return ""


def _failed_before(report: WorkerReport) -> float:
    return report.before.failed_share if report.before else 0.0


def _load(now: Deployment, fresh: Reports, now_us: int) -> Deployment:
    if now.canary_s == 0:
        return replace(now, phase="rolling", canary="", since_us=now_us)
    if now.canary not in fresh:  # not chosen yet, or it left in good order
        chosen = _canary(fresh)
        return replace(now, canary=chosen, since_us=now_us) if chosen != now.canary else now
    if fresh[now.canary].runs == key_of(now.wanted):
        return replace(now, phase="canary", since_us=now_us)
    return now


def _canary(fresh: Reports) -> str:
    """A worker of the host that has the most of them, so that there are others to compare it with."""
    hosts = Counter(report.host for report in fresh.values())
    return max(fresh, key=lambda name: (hosts[fresh[name].host], name), default="")


def _compare(now: Deployment, fresh: Reports, now_us: int) -> Deployment:
    canary = fresh.get(now.canary)
    if canary is None:  # it left in good order: another one begins anew
        return replace(now, phase="loading", canary="", since_us=now_us)
    if canary.runs != key_of(now.wanted):
        return now
    told = comparison(now, canary, fresh)
    age_s = _age_s(now, now_us)
    verdict = _verdict(now, told, age_s)
    if verdict is None:
        return now
    if verdict:
        return replace(go_back(now, verdict, now_us), comparison=told)
    return replace(now, phase="rolling", canary="", since_us=now_us, comparison=told)


def _verdict(now: Deployment, told: Comparison, age_s: float) -> str | None:
    """Why the canary is to go back; empty when it has stood the test, None while that is open."""
    ratio = now.max_latency_ratio
    over = age_s >= now.canary_s
    # Where latency decides nothing there need be nothing to compare it with.
    frames = told.canary.frames if ratio is None else min(told.canary.frames, told.others.frames)
    if frames < MIN_FRAMES:
        return (
            None
            if age_s <= PATIENCE * now.canary_s
            else (
                f"too few frames to judge by: {told.canary.frames} with it, {told.others.frames} with the current one "
                f"in {age_s:.0f} s, expected {MIN_FRAMES} of each"
            )
        )
    slow = "" if ratio is None else _slow(told, ratio if over else ratio * HOPELESS)
    return slow if slow or over else None


def comparison(now: Deployment, canary: WorkerReport, fresh: Reports) -> Comparison:
    """The canary beside the others of its host, which alone have the same CPU; beside itself before without those."""
    others = total(
        [
            report.tally
            for report in fresh.values()
            if report.host == canary.host and report.worker != canary.worker and report.period == now.id
        ]
    )
    if others.frames < MIN_FRAMES and canary.before is not None and canary.before.frames > others.frames:
        return Comparison(figures(canary.tally), figures(canary.before), "itself before")
    return Comparison(figures(canary.tally), figures(others), "others")


def _slow(told: Comparison, ratio: float) -> str:
    """Why the canary is too slow; empty when it is not."""
    canary, others = told.canary, told.others
    known = "the others" if told.against == "others" else "the model before"
    if canary.p50_ms > ratio * others.p50_ms:
        return _slower("median", canary.p50_ms, others.p50_ms, known, ratio)
    if min(canary.frames, others.frames) >= P99_FRAMES and canary.p99_ms > ratio * P99_SLACK * others.p99_ms:
        return _slower("99th percentile", canary.p99_ms, others.p99_ms, known, ratio * P99_SLACK)
    return ""


def _slower(what: str, canary_ms: float, others_ms: float, known: str, ratio: float) -> str:
    times = canary_ms / others_ms if others_ms else float("inf")
    return (
        f"too slow: {what} {canary_ms:.1f} ms a frame, {known} {others_ms:.1f} ms; "
        f"{times:.1f} times as long, allowed are {ratio:g}"
    )


def _roll(now: Deployment, fresh: Reports, now_us: int) -> Deployment:
    wanted = key_of(now.wanted)
    left = sorted(name for name, report in fresh.items() if report.runs != wanted)
    if now.turn in left:
        return now
    if left:
        return replace(now, turn=left[0], since_us=now_us)
    if not fresh:  # workers that restart all at once are waited for
        return now
    history = now.history[:-1] if now.backward else [*now.history, now.current][-HISTORY:]
    return replace(
        now, phase="settled", since_us=now_us, turn="", current=now.wanted, outcome="deployed", history=history
    )


def _return(now: Deployment, fresh: Reports, now_us: int) -> Deployment:
    astray = sorted(name for name, report in fresh.items() if report.runs != key_of(now.current))
    if not astray:
        return replace(now, phase="settled", since_us=now_us, canary="")
    if _age_s(now, now_us) > LOADING_LIMIT_S:
        reason = f"{now.reason}; these workers could not go back: {', '.join(astray)}"
        return replace(now, phase="settled", since_us=now_us, canary="", reason=reason)
    return now


def _age_s(now: Deployment, now_us: int) -> float:
    return (now_us - now.since_us) / 1e6
