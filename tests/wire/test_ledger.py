"""The conservation law holds after every step, and a frame ends once."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from wire.ledger import CameraLedger
from wire.messages import Outcome

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["captured", "dropped", "sent", "settled"]),
        st.integers(0, 5),
        st.sampled_from(["detected", "stale", "worker_lost"]),
    ),
    max_size=60,
)


@given(STEPS)
def test_captured_is_detected_plus_dropped_plus_in_flight_after_every_step(
    steps: list[tuple[str, int, Outcome]],
) -> None:
    ledger = CameraLedger("door")
    undecided, settled, seq = 0, set(), 0
    for step, pick, outcome in steps:
        if step == "captured":
            ledger.captured()
            undecided += 1
        elif step == "dropped" and undecided:
            ledger.dropped("static")
            undecided -= 1
        elif step == "sent" and undecided:
            ledger.sent("s", seq)
            seq, undecided = seq + 1, undecided - 1
        elif step == "settled":
            assert ledger.settled("s", pick, outcome) == (pick < seq and pick not in settled)
            if pick < seq:
                settled.add(pick)
        law = ledger.snapshot()
        assert law.balanced
        assert law.in_flight == undecided + seq - len(settled) >= 0


def test_frames_of_another_session_are_other_frames() -> None:
    ledger = CameraLedger("door")
    ledger.captured()
    ledger.sent("monday", 1)
    assert not ledger.settled("tuesday", 1, "detected")
    assert ledger.snapshot().in_flight == 1
