"""`python -m benchmarks.incidents`: alerts per true incident, and incidents missed, on the simulated street.

The street's truth is made as noisy as a small detector's answers (see tracking_noise) and goes through the same work as
in the sink: tracker, rules, incidents. What truly happens is worked out from the truth alone, with sums of its own:

- enter: somebody's feet come into the zone on the near pavement, which reaches down to the picture's edge;
- line: the foot of anything passes the line through the middle of the picture;
- dwell: somebody stays in the zone on the far pavement for as long as the rule says.

An object counts while at least 30 % of it are in view. What cannot be judged is left out on both sides and counted
as `unclear`: a stay that is too short to be confirmed, or begins where the object was hidden or out of the picture, and
one within a second of the dwell time. An alert belongs to the true object whose box its own box covers best.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.tracking import record
from benchmarks.tracking_noise import VISIBLE, NoisyDetector
from ingest.sim.scene import Street, TruthBox
from ingest.sim.scene_url import SceneSpec
from services.config import Config
from services.sink import sink_plan
from sink.camera import CameraWork
from wire.alerts import Alert

CAMERA = "street"
# left, top, right, bottom in fractions of the picture
NEAR, FAR = (0.2, 0.83, 0.8, 1.0), (0.25, 0.5, 0.75, 0.6)
LINE_X, LINE_TOP = 0.5, 0.5
DWELL_S = 8.0
# A stay that is interrupted for longer is two: the tracker's lost_s, after which nobody knows that it is the same.
GAP_S = 2.0
# In view on either side of a border for so long, and it can be confirmed there.
CLEAR_S = 1.0
# An alert comes so much after its incident's end at most, because it had to be confirmed.
LATE_S = 3.0
MATCH_IOU = 0.3  # as loose as an association can be that is still of one object

Object = tuple[str, int]  # label and id


def _corners(zone: tuple[float, float, float, float]) -> list[list[float]]:
    left, top, right, bottom = zone
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


CONFIG: dict[str, Any] = {
    "cameras": {CAMERA: {"source": "sim://street"}},
    "scenes": {
        CAMERA: {
            "zones": {"near": _corners(NEAR), "far": _corners(FAR)},
            "lines": {"middle": [[LINE_X, LINE_TOP], [LINE_X, 1.0]]},
        }
    },
    "rules": {
        # Every incident is to be told, so no cooldown: two people may come one right after the other.
        "enter": {"kind": "zone", "zone": "near", "when": "enter", "labels": ["person"], "cooldown_s": 0},
        "line": {"kind": "line", "line": "middle", "cooldown_s": 0},
        "dwell": {"kind": "dwell", "zone": "far", "dwell_s": DWELL_S, "labels": ["person"], "cooldown_s": 0},
    },
    # Every frame is looked at, and people of the street are back within half a minute: each time is to be told.
    "incidents": {"merge_s": 10, "max_per_hour": 1_000_000},
}


@dataclass(frozen=True)
class Sight:
    """An object in view in one frame; its foot in fractions of the picture."""

    at_s: float
    x: float
    y: float


@dataclass
class Incident:
    """Something that truly happened; `clear` where a rule must tell it."""

    begun_s: float
    ended_s: float
    clear: bool
    told_s: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Score:
    """One rule on all scenes."""

    rule: str
    incidents: int
    alerts: int  # right, repeated and false ones
    alerts_per_incident: float
    missed: float  # share
    repeated: int
    false: int
    unclear: int  # incidents left out
    delay_s: float  # median, from the truth's beginning to the alert


def truths(sights: dict[Object, list[Sight]]) -> dict[str, dict[Object, list[Incident]]]:
    """rule: object: what truly happened, in order of time."""
    people = {key: seen for key, seen in sights.items() if key[0] == "person"}
    return {
        "enter": {key: list(entries(seen)) for key, seen in people.items()},
        "line": {key: list(passings(seen)) for key, seen in sights.items()},
        "dwell": {key: list(dwells(seen)) for key, seen in people.items()},
    }


def stays(seen: Sequence[Sight], zone: tuple[float, float, float, float]) -> Iterator[list[Sight]]:
    """The sights in a zone, cut where the object was away from it for more than GAP_S."""
    left, top, right, bottom = zone
    stay: list[Sight] = []
    for one in seen:
        if left <= one.x <= right and top <= one.y <= bottom:
            if stay and one.at_s - stay[-1].at_s > GAP_S:
                yield stay
                stay = []
            stay.append(one)
    if stay:
        yield stay


def entries(seen: Sequence[Sight]) -> Iterator[Incident]:
    """Comings into the near zone; clear where the object was in view before, and stays in view in it."""
    for stay in stays(seen, NEAR):
        begun_s, ended_s = stay[0].at_s, stay[-1].at_s
        before_s = [one.at_s for one in seen if begun_s - GAP_S <= one.at_s < begun_s]
        was_outside = bool(before_s) and begun_s - before_s[0] >= CLEAR_S / 2 and begun_s - before_s[-1] <= CLEAR_S / 2
        yield Incident(begun_s, ended_s, was_outside and ended_s - begun_s >= CLEAR_S)


def dwells(seen: Sequence[Sight]) -> Iterator[Incident]:
    """Stays in the far zone of the rule's length and more; those within a second of it are unclear."""
    for stay in stays(seen, FAR):
        begun_s, ended_s = stay[0].at_s, stay[-1].at_s
        if ended_s - begun_s >= DWELL_S - CLEAR_S:
            yield Incident(begun_s + DWELL_S, ended_s, ended_s - begun_s >= DWELL_S + CLEAR_S)


def passings(seen: Sequence[Sight]) -> Iterator[Incident]:
    """Passings of the line; clear where the object is in view for long enough before and after."""
    for before, after in pairwise(seen):
        beyond = before.x < LINE_X <= after.x or after.x < LINE_X <= before.x
        if not beyond or min(before.y, after.y) < LINE_TOP or after.at_s - before.at_s > GAP_S:
            continue
        at_s = after.at_s
        views = [one.at_s for one in seen if abs(one.at_s - at_s) <= CLEAR_S]
        in_view = views[0] <= at_s - CLEAR_S / 2 and views[-1] >= at_s + CLEAR_S / 2
        yield Incident(at_s, at_s, in_view and after.at_s - before.at_s <= CLEAR_S / 2)


class Played:
    """One scene, played to its end."""

    def __init__(self, spec: SceneSpec, seconds: float) -> None:
        self.seconds = seconds
        self.work_s = 0.0
        self._spec = spec
        self.sights: defaultdict[Object, list[Sight]] = defaultdict(list)
        self.told: list[tuple[Alert, float, Object | None]] = []  # with its time, and whom it is about
        self._play()

    def _play(self) -> None:
        spec = self._spec
        street, detector = Street(spec), NoisyDetector(spec, spec.fps, seed=1)
        work = CameraWork(CAMERA, sink_plan(Config.model_validate(CONFIG)))
        for index in range(round(self.seconds * spec.fps)):
            truth = [one for one in street.truth(index) if one.visible >= VISIBLE]
            at_s = index / spec.fps
            for one in truth:
                left, _, right, bottom = one.box
                sight = Sight(at_s, (left + right) / 2 / spec.width, bottom / spec.height)
                self.sights[one.label, one.object_id].append(sight)
            frame = record(index, spec.fps, detector.look(truth), spec)
            begun_s = time.perf_counter()
            alerts = work.step(frame)
            self.work_s += time.perf_counter() - begun_s
            self.told += [(alert, at_s, _about(alert, truth)) for alert in alerts if alert.event == "opened"]


def _about(alert: Alert, truth: Sequence[TruthBox]) -> Object | None:
    """The true object that an alert's box covers best."""
    if alert.box is None:
        return None
    box = (alert.box.left, alert.box.top, alert.box.right, alert.box.bottom)
    overlap, best = max(
        ((_iou(box, one.box), (one.label, one.object_id)) for one in truth if one.label == alert.label),
        default=(0.0, None),
    )
    return best if overlap >= MATCH_IOU else None


def _iou(one: Sequence[float], other: Sequence[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return both / (sum(areas) - both)


def scores(scenes: Sequence[Played]) -> list[Score]:
    """Every rule over all scenes."""
    incidents: defaultdict[str, list[Incident]] = defaultdict(list)
    false: defaultdict[str, int] = defaultdict(int)
    for scene in scenes:
        happened = truths(scene.sights)
        for rule, of_objects in happened.items():
            incidents[rule] += [one for some in of_objects.values() for one in some]
        for alert, at_s, about in scene.told:
            of_object = happened[alert.rule].get(about, []) if about else []
            meant = [one for one in of_object if one.begun_s - CLEAR_S <= at_s <= one.ended_s + LATE_S]
            if meant:
                # The one that nothing was told of yet, where there is one: who comes back soon is two incidents.
                min(meant, key=lambda one: (len(one.told_s), abs(at_s - one.begun_s))).told_s.append(at_s)
            else:
                false[alert.rule] += 1
    return [_score(rule, some, false[rule]) for rule, some in incidents.items()]


def _score(rule: str, incidents: Sequence[Incident], false: int) -> Score:
    clear = [one for one in incidents if one.clear]
    told = sum(len(one.told_s) for one in clear)
    found = [one for one in clear if one.told_s]
    return Score(
        rule=rule,
        incidents=len(clear),
        alerts=told + false,
        alerts_per_incident=round((told + false) / max(1, len(clear)), 4),
        missed=round(1 - len(found) / max(1, len(clear)), 4),
        repeated=told - len(found),
        false=false,
        unclear=len(incidents) - len(clear),
        delay_s=round(statistics.median(one.told_s[0] - one.begun_s for one in found), 2) if found else 0.0,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module's description."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.incidents", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30, help="of the street, all seeds together")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--objects", type=int, default=8)
    parser.add_argument("--fps", type=float, default=10)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    begun_s = time.perf_counter()
    seconds = options.minutes * 60 / options.seeds
    scenes = [
        Played(SceneSpec(seed=seed, fps=options.fps, objects=options.objects), seconds)
        for seed in range(1, options.seeds + 1)
    ]
    rows = scores(scenes)
    took_s, work_s = time.perf_counter() - begun_s, sum(scene.work_s for scene in scenes)
    speed = {
        "times_real_time": round(options.minutes * 60 / took_s, 1),
        "work_ms_a_frame": round(work_s * 1e3 / (options.minutes * 60 * options.fps), 3),
    }
    if options.json:
        print(json.dumps({"rows": [asdict(row) for row in rows], **speed}, indent=2))
        return 0
    table = Table(title=f"{options.minutes:g} minutes of the simulated street, with noise", title_justify="left")
    for name in (
        "rule",
        "true incidents",
        "alerts",
        "per incident",
        "missed",
        "repeated",
        "false",
        "unclear",
        "delay s",
    ):
        table.add_column(name, justify="left" if name == "rule" else "right")
    for row in rows:
        numbers = (row.repeated, row.false, row.unclear)
        shares = (f"{row.alerts_per_incident:.3f}", f"{row.missed:.1%}")
        table.add_row(row.rule, str(row.incidents), str(row.alerts), *shares, *map(str, numbers), f"{row.delay_s:.2f}")
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    console.print(
        f"{speed['times_real_time']}x real time; tracker, rules, incidents: {speed['work_ms_a_frame']} ms a frame"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
