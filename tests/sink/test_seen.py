"""What is remembered of frames: the recent ones exactly, in memory that does not grow."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

import sink.seen
from sink.seen import SESSIONS, WINDOW, Seen


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["s1", "s2"]),
            # Close together, around the window's length, and one leap that a camera cannot make.
            st.integers(0, 20) | st.integers(WINDOW - 3, WINDOW + 20) | st.integers(3 * WINDOW, 3 * WINDOW + 3),
        ),
        max_size=60,
    )
)
def test_frames_within_the_window_are_known_again_and_only_those(frames: list[tuple[str, int]]) -> None:
    seen = Seen()
    newest = {"s1": -1, "s2": -1}
    before: set[tuple[str, int]] = set()
    for session, seq in frames:
        remembered = seq > newest[session] - WINDOW
        assert seen.add(session, seq) == (remembered and (session, seq) in before)
        before.add((session, seq))
        newest[session] = max(newest[session], seq)


def test_a_session_is_forgotten_when_enough_newer_ones_came() -> None:
    seen = Seen()
    assert [seen.add(f"s{number}", 0) for number in range(SESSIONS)] == [False] * SESSIONS
    assert seen.add("s0", 0)  # still known, and the most recent one again
    assert not seen.add("new", 0)
    assert seen.add("s0", 0) and not seen.add("s1", 0)


def test_memory_does_not_grow_with_the_frames() -> None:
    # Not what threads allocate that other tests left to this process.
    own = [tracemalloc.Filter(True, sink.seen.__file__), tracemalloc.Filter(True, __file__)]

    def grown(sessions: int, frames: int) -> int:
        tracemalloc.start()
        try:
            seen = Seen()
            for session in range(sessions):
                for seq in range(0, frames, 5):  # of 25 frames a second five are detected
                    # A text of its own each time, as decoding a record makes it.
                    seen.add("".join(("session-", str(session))), seq)
            return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces(own).traces)
        finally:
            tracemalloc.stop()

    bound = SESSIONS * (WINDOW // 8 + 512)
    assert grown(1, 100) < bound and grown(20, 20_000) < bound
