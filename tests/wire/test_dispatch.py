"""The broker's decisions: every frame ends once, files lose nothing, cameras take fair turns."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from itertools import count

import hypothesis.strategies as st
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from wire.dispatch import MAX_ATTEMPTS, Dispatcher, End
from wire.messages import FrameHeader, InputSpec

SPEC = InputSpec(416, 416, 32, True)
MS = 1_000_000


def header(camera: str, seq: int, *, lossless: bool, captured_ns: int = 0) -> FrameHeader:
    return FrameHeader(camera, "s", seq, lossless, 0, captured_ns, "i420", 2, 2, 2, 2, 1.0, 0, 0)


def a_dispatcher(*workers: bytes, capacity: int = 1, max_age_ms: int = 500) -> Dispatcher[str]:
    dispatcher: Dispatcher[str] = Dispatcher(max_age_ms)
    for worker in workers:
        dispatcher.ready(worker, SPEC, capacity, quiet_until_s=10)
    return dispatcher


def sent(dispatcher: Dispatcher[str], now_ns: int = 0) -> tuple[bytes, FrameHeader, int]:
    step = dispatcher.next_work(now_ns)
    assert isinstance(step, tuple), step
    return step[0], step[1].header, step[1].order


def test_newest_live_frame_takes_the_slot_and_the_older_one_is_overwritten() -> None:
    dispatcher = a_dispatcher()
    assert dispatcher.frame(b"i", header("door", 1, lossless=False), "") == []
    (end,) = dispatcher.frame(b"i", header("door", 2, lossless=False), "")
    assert (end.header.seq, end.outcome) == (1, "overwritten")
    dispatcher.ready(b"w", SPEC, 1, 10)
    assert sent(dispatcher)[1].seq == 2


def test_a_live_frame_over_the_maximum_age_is_stale_and_a_file_frame_never_is() -> None:
    dispatcher = a_dispatcher(b"w", max_age_ms=100)
    dispatcher.frame(b"i", header("live", 1, lossless=False), "")
    dispatcher.frame(b"i", header("file", 1, lossless=True), "")
    end = dispatcher.next_work(101 * MS)
    assert isinstance(end, End) and end.outcome == "stale"
    assert sent(dispatcher, 101 * MS)[1].camera == "file"


def test_no_frame_goes_out_without_room() -> None:
    dispatcher = a_dispatcher(b"w", capacity=2)
    for seq in range(3):
        dispatcher.frame(b"i", header("file", seq, lossless=True), "")
    orders = [sent(dispatcher)[2] for _ in range(2)]
    assert orders == [0, 1]
    assert dispatcher.next_work(0) is None
    dispatcher.inferred(b"w", "file", 0, 0)  # room again, though the frame is not done with
    assert sent(dispatcher)[2] == 2
    assert len(dispatcher.done(b"w", "file", 0, "detected", 0)) == 1
    assert dispatcher.next_work(0) is None


def test_a_frame_goes_to_the_worker_with_least_in_hand() -> None:
    dispatcher = a_dispatcher(b"busy", b"idle", capacity=8)
    for seq in range(4):
        dispatcher.frame(b"i", header("file", seq, lossless=True), "")
    workers = [sent(dispatcher)[0] for _ in range(4)]
    assert workers == [b"busy", b"idle"] * 2
    for order, worker in enumerate(workers):
        if worker == b"idle":
            dispatcher.done(worker, "file", order, "detected", 0)
    for camera in "ab":
        dispatcher.frame(b"i", header(camera, 0, lossless=False), "")
        assert sent(dispatcher)[0] == b"idle"


def test_past_capacity_cameras_take_fair_turns() -> None:
    dispatcher = a_dispatcher(b"w")
    served: Counter[str] = Counter()
    for tick in range(80):
        for camera in "abcdefgh":
            # One camera delivers four times as many frames as the others.
            for _ in range(4 if camera == "a" else 1):
                dispatcher.frame(b"i", header(camera, tick, lossless=False, captured_ns=tick), "")
        _, frame, order = sent(dispatcher, tick)
        served[frame.camera] += 1
        dispatcher.done(b"w", frame.camera, order, "detected", tick)
    assert max(served.values()) == min(served.values()) == 10


def a_site(cameras: int, fps: float, load: float, jitter_s: float, seed: int) -> Counter[str]:
    """Frames detected by camera in ten simulated seconds; `load` is what the cameras send over what workers infer."""
    chance = random.Random(seed)
    dispatcher = a_dispatcher(b"w1", b"w2", capacity=2)
    at_hand: dict[bytes, list[FrameHeader]] = {b"w1": [], b"w2": []}
    inference_s = 2 * load / (cameras * fps)
    detected: Counter[str] = Counter()
    number = count()
    events = []  # (s, number, camera or worker, when the camera's next one is due)
    for camera in range(cameras):
        first_s = chance.uniform(0, 1 / fps)
        events.append((first_s, next(number), f"camera-{camera}", first_s + 1 / fps))
    heapq.heapify(events)
    while events[0][0] < 10:
        now_s, _, who, due_s = heapq.heappop(events)
        now_ns = int(now_s * 1e9)
        if (worker := who.encode()) in at_hand:
            frame = at_hand[worker].pop(0)
            detected[frame.camera] += 1
            order = min(key[1] for key in dispatcher.workers[worker].holds if key[0] == frame.camera)
            dispatcher.done(worker, frame.camera, order, "detected", now_ns)
            if at_hand[worker]:
                heapq.heappush(events, (now_s + inference_s, next(number), who, 0.0))
        else:
            dispatcher.frame(b"i", header(who, next(number), lossless=False, captured_ns=now_ns), "")
            heapq.heappush(events, (due_s + chance.uniform(0, jitter_s), next(number), who, due_s + 1 / fps))
        while isinstance(step := dispatcher.next_work(now_ns), tuple):
            worker, queued = step
            at_hand[worker].append(queued.header)
            if len(at_hand[worker]) == 1:
                lasts_s = inference_s * chance.uniform(0.7, 1.3)
                heapq.heappush(events, (now_s + lasts_s, next(number), worker.decode(), 0.0))
    return detected


@settings(max_examples=15, deadline=None)
@given(
    load=st.floats(1.1, 3), jitter_s=st.floats(0, 0.04), seed=st.integers(0, 1000), cameras=st.sampled_from([8, 24, 50])
)
def test_however_the_cameras_clocks_lie_each_gets_as_many_detections(
    load: float, jitter_s: float, seed: int, cameras: int
) -> None:
    detected = a_site(cameras, 25.0, load, jitter_s, seed)
    # A camera may be one turn ahead of another, and a frame of each is on its way at the end.
    assert len(detected) == cameras and max(detected.values()) - min(detected.values()) <= 3


def test_a_worker_whose_capacity_shrank_gets_nothing_until_it_has_room_again() -> None:
    dispatcher = a_dispatcher(b"w", capacity=5)
    for seq in range(8):
        dispatcher.frame(b"i", header("file", seq, lossless=True), "")
    for _ in range(5):
        sent(dispatcher)
    dispatcher.ready(b"w", SPEC, 2, 10)
    for order in range(4):
        assert dispatcher.next_work(0) is None
        dispatcher.done(b"w", "file", order, "detected", 0)
    assert sent(dispatcher)[1].seq == 5
    assert dispatcher.next_work(0) is None
    dispatcher.lost(b"w", died=True)
    assert dispatcher.next_work(0) is None  # nobody is left to send it to


def test_a_frame_that_a_busy_worker_never_got_goes_out_again() -> None:
    dispatcher = a_dispatcher(b"w", capacity=2)
    dispatcher.frame(b"i", header("lost", 0, lossless=True), "")
    sent(dispatcher)
    for tick in range(1, 41):  # ten a second; never idle
        now_ns = tick * 100 * MS
        dispatcher.frame(b"i", header("busy", tick, lossless=True), "")
        _, frame, order = sent(dispatcher, now_ns)
        if frame.camera == "lost":
            assert (order, tick) == (0, 23)  # two seconds after it was overtaken for the first time
            return
        assert [end.header.camera for end in dispatcher.done(b"w", "busy", order, "detected", now_ns)] == ["busy"]
    raise AssertionError("it was never sent again")


def test_frames_told_of_in_another_order_are_not_taken_for_lost() -> None:
    dispatcher = a_dispatcher(b"w", capacity=2)
    for tick in range(100):  # each pair is told of the later first, over ten seconds
        now_ns = tick * 100 * MS
        for camera in "ab":
            dispatcher.frame(b"i", header(camera, tick, lossless=True), "")
        first, second = sent(dispatcher, now_ns), sent(dispatcher, now_ns + MS)
        for _, frame, order in (second, first):
            assert len(dispatcher.done(b"w", frame.camera, order, "detected", now_ns + 2 * MS)) == 1


def test_a_live_frame_that_never_reached_its_dead_worker_is_not_lost_with_it() -> None:
    dispatcher = a_dispatcher(b"w")
    dispatcher.frame(b"i", header("live", 1, lossless=False), "")
    identity, queued = dispatcher.next_work(0)  # type: ignore[misc]  # a pair: there is a worker
    assert dispatcher.not_sent(identity, queued) == []
    assert dispatcher.lost(b"w", died=True) == []
    dispatcher.ready(b"v", SPEC, 1, 10)
    assert sent(dispatcher)[:1] == (b"v",)


def test_a_dead_workers_file_frames_go_out_again_in_order_and_keep_their_order() -> None:
    dispatcher = a_dispatcher(b"w", capacity=3)
    for seq in range(4):
        dispatcher.frame(b"i", header("file", seq, lossless=True), "")
    for _ in range(3):
        sent(dispatcher)
    dispatcher.inferred(b"w", "file", 0, 0)  # inferred, but its detections may not be stored
    assert dispatcher.lost(b"w", died=True) == []
    dispatcher.ready(b"v", SPEC, 4, 10)
    assert [sent(dispatcher)[1:] for _ in range(4)] == [(header("file", n, lossless=True), n) for n in range(4)]


def test_a_dead_worker_costs_a_live_camera_the_frame_it_was_inferring_and_no_other() -> None:
    dispatcher = a_dispatcher(b"w", capacity=2)
    dispatcher.frame(b"i", header("door", 1, lossless=False), "")
    sent(dispatcher)
    dispatcher.frame(b"i", header("door", 2, lossless=False), "")
    sent(dispatcher)
    (end,) = dispatcher.lost(b"w", died=True)
    assert (end.header.seq, end.outcome) == (1, "worker_lost")
    dispatcher.ready(b"v", SPEC, 1, 10)
    assert sent(dispatcher)[1].seq == 2


def test_a_file_frame_that_kills_every_worker_is_given_up_in_the_end() -> None:
    dispatcher = a_dispatcher()
    dispatcher.frame(b"i", header("file", 7, lossless=True), "")
    ends: list[End] = []
    for attempt in range(MAX_ATTEMPTS):
        assert ends == []
        worker = b"w%d" % attempt
        dispatcher.ready(worker, SPEC, 1, 10)
        sent(dispatcher)
        ends = dispatcher.lost(worker, died=True)
    assert [(end.header.seq, end.outcome) for end in ends] == [(7, "worker_lost")]


def test_leaving_in_good_order_loses_nothing() -> None:
    dispatcher = a_dispatcher(b"w")
    dispatcher.frame(b"i", header("door", 1, lossless=False), "")
    sent(dispatcher)
    assert dispatcher.lost(b"w", died=False) == []
    dispatcher.ready(b"v", SPEC, 1, 10)
    assert sent(dispatcher)[1].seq == 1


def test_a_file_frame_sent_again_is_taken_once() -> None:
    dispatcher = a_dispatcher(b"w", capacity=9)
    for _ in range(2):
        dispatcher.frame(b"i", header("file", 1, lossless=True), "")
    sent(dispatcher)
    dispatcher.frame(b"i", header("file", 1, lossless=True), "")
    assert dispatcher.next_work(0) is None


def test_what_went_astray_on_the_way_to_an_idle_worker_waits_again() -> None:
    dispatcher = a_dispatcher(b"w")
    dispatcher.frame(b"i", header("file", 1, lossless=True), "")
    sent(dispatcher, now_ns=0)
    dispatcher.holds_nothing(b"w", now_ns=1_000 * MS)  # may still be on its way
    assert dispatcher.next_work(0) is None
    dispatcher.holds_nothing(b"w", now_ns=3_000 * MS)
    assert sent(dispatcher)[1].seq == 1


def test_a_frame_whose_end_was_lost_waits_again_when_its_worker_does_not_hold_it_any_more() -> None:
    dispatcher = a_dispatcher(b"w", capacity=3)
    for seq in range(3):
        dispatcher.frame(b"i", header("file", seq, lossless=True), "")
        sent(dispatcher, now_ns=0)
    for order in (0, 1):
        dispatcher.inferred(b"w", "file", order, now_ns=10 * MS)
    kept = [("file", 1)]  # the third is still on its way
    assert dispatcher.beat(b"w", 20, kept, now_ns=1_000 * MS) == []  # so may be the first one's end
    assert dispatcher.next_work(0) is None
    dispatcher.beat(b"w", 20, None, now_ns=3_000 * MS)  # it holds too many to say
    assert dispatcher.next_work(0) is None
    dispatcher.beat(b"w", 20, kept, now_ns=3_000 * MS)
    _, frame, order = sent(dispatcher)
    assert (frame.seq, order) == (0, 0)  # as before, so that Redis knows it
    assert dispatcher.next_work(0) is None


class EveryFrameEndsOnce(RuleBasedStateMachine):
    """Any interleaving of frames, workers, deaths and endings: entered = ended + waiting + held, each once."""

    def __init__(self) -> None:
        super().__init__()
        self.dispatcher: Dispatcher[str] = Dispatcher(max_age_ms=5)
        self.entered: set[tuple[str, int]] = set()
        self.ended: Counter[tuple[str, int]] = Counter()
        self.now_ns = 0
        self.seq = 0
        self.workers = 0

    def end(self, *ends: End) -> None:
        for end in ends:
            self.ended[(end.header.camera, end.header.seq)] += 1

    @rule(camera=st.sampled_from(["live-1", "live-2", "file-1", "file-2"]))
    def frame(self, camera: str) -> None:
        self.seq += 1
        self.entered.add((camera, self.seq))
        lossless = camera.startswith("file")
        frame = header(camera, self.seq, lossless=lossless, captured_ns=self.now_ns)
        self.end(*self.dispatcher.frame(b"i", frame, ""))

    @rule(capacity=st.integers(1, 3))
    def join(self, capacity: int) -> None:
        self.workers += 1
        self.dispatcher.ready(b"w%d" % self.workers, SPEC, capacity, 1)

    @rule(ms=st.sampled_from([0, 1, 2, 3, 4, 1500, 3000]))
    def dispatch(self, ms: int) -> None:
        self.now_ns += ms * MS
        while (step := self.dispatcher.next_work(self.now_ns)) is not None:
            if isinstance(step, End):
                self.end(step)
                continue
            worker = self.dispatcher.workers[step[0]]
            assert worker.pending <= worker.capacity

    @precondition(lambda self: self.dispatcher.workers)
    @rule(data=st.data(), capacity=st.integers(1, 3))
    def resize(self, data: st.DataObject, capacity: int) -> None:
        self.dispatcher.ready(data.draw(st.sampled_from(sorted(self.dispatcher.workers))), SPEC, capacity, 1)

    @rule()
    def dispatch_to_one_that_is_gone(self) -> None:
        step = self.dispatcher.next_work(self.now_ns)
        if isinstance(step, End):
            self.end(step)
        elif step is not None:
            self.end(*self.dispatcher.not_sent(*step))
            self.end(*self.dispatcher.lost(step[0], died=True))

    @precondition(lambda self: self.dispatcher.workers)
    @rule(data=st.data(), died=st.booleans())
    def lose(self, data: st.DataObject, died: bool) -> None:
        worker = data.draw(st.sampled_from(sorted(self.dispatcher.workers)))
        self.end(*self.dispatcher.lost(worker, died))

    @precondition(lambda self: any(w.holds for w in self.dispatcher.workers.values()))
    @rule(data=st.data(), inferred_first=st.booleans(), twice=st.booleans())
    def finish(self, data: st.DataObject, inferred_first: bool, twice: bool) -> None:
        held = sorted((w, key) for w, worker in self.dispatcher.workers.items() for key in worker.holds)
        worker, (camera, order) = data.draw(st.sampled_from(held))
        if inferred_first:
            self.end(*self.dispatcher.inferred(worker, camera, order, self.now_ns))
        for _ in range(1 + twice):
            self.end(*self.dispatcher.done(worker, camera, order, "detected", self.now_ns))

    @precondition(lambda self: any(w.holds for w in self.dispatcher.workers.values()))
    @rule(data=st.data())
    def infer(self, data: st.DataObject) -> None:
        held = sorted((w, key) for w, worker in self.dispatcher.workers.items() for key in worker.holds)
        worker, (camera, order) = data.draw(st.sampled_from(held))
        self.end(*self.dispatcher.inferred(worker, camera, order, self.now_ns))

    @precondition(lambda self: any(w.holds for w in self.dispatcher.workers.values()))
    @rule(data=st.data())
    def beat(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(w for w, one in self.dispatcher.workers.items() if one.holds)))
        held = sorted(self.dispatcher.workers[worker].holds)
        kept = data.draw(st.none() | st.lists(st.sampled_from(held)))
        self.end(*self.dispatcher.beat(worker, 1, kept, self.now_ns))

    @invariant()
    def every_frame_is_in_one_place(self) -> None:
        waiting = [(n, q.header.seq) for n, c in self.dispatcher.cameras.items() for q in c.waiting]
        held = [(key[0], q.header.seq) for w in self.dispatcher.workers.values() for key, q in w.holds.items()]
        assert sorted(waiting + held + list(self.ended.elements())) == sorted(self.entered)

    @invariant()
    def a_live_camera_has_one_slot_and_a_file_loses_nothing(self) -> None:
        for name, camera in self.dispatcher.cameras.items():
            assert name.startswith("file") or len(camera.waiting) <= 1
            seqs = [queued.header.seq for queued in camera.waiting if queued.order < 0]
            assert seqs == sorted(seqs)

    @invariant()
    def room_is_what_capacity_leaves(self) -> None:
        for worker in self.dispatcher.workers.values():
            assert worker.pending == sum(not queued.inferred for queued in worker.holds.values())
        with_room = [name for name, worker in self.dispatcher.workers.items() if worker.has_room]
        assert sorted(self.dispatcher._idle) == sorted(with_room)

    @invariant()
    def in_care_is_what_has_not_ended(self) -> None:
        for camera, seq in self.entered:
            assert self.dispatcher.has((camera, "s", seq)) == ((camera, seq) not in self.ended)


TestEveryFrameEndsOnce = EveryFrameEndsOnce.TestCase
TestEveryFrameEndsOnce.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
