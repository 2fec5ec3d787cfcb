"""Turns: the least served first, nobody shut out, and no debt without end."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from wire.turns import OWED, Turns


def take(turns: Turns) -> str:
    name = turns.pop()
    turns.had(name)
    return name


@given(st.lists(st.sampled_from(["next", "a", "b", "c", "d"]), max_size=200))
def test_nobody_who_waits_is_passed_over_by_another_for_long(steps: list[str]) -> None:
    turns = Turns()
    passed: dict[str, Counter[str]] = {}  # who waits: how often others were served meanwhile
    for step in steps:
        if step != "next":
            turns.join(step)
            passed.setdefault(step, Counter())
        elif passed:
            name = take(turns)
            del passed[name]
            for others in passed.values():
                others[name] += 1
                assert others[name] <= OWED + 1
        assert len(turns) == len(passed)


def test_those_with_as_many_turns_come_as_they_joined() -> None:
    turns = Turns()
    for name in ("c", "a", "b", "a"):
        turns.join(name)
    assert [take(turns) for _ in range(3)] == ["c", "a", "b"] and len(turns) == 0


def test_who_missed_a_turn_is_served_first_the_next_time() -> None:
    turns = Turns()
    for name in ("a", "b"):
        turns.join(name)
    assert take(turns) == "a"
    turns.join("a")
    assert take(turns) == "b"  # and has nothing to bring when the next turn comes
    assert take(turns) == "a"
    turns.join("a")
    turns.join("b")
    assert take(turns) == "b"


def test_who_was_away_for_long_is_owed_a_few_turns_and_no_more() -> None:
    turns = Turns()
    for _ in range(100):
        turns.join("busy")
        assert take(turns) == "busy"
    order = []
    turns.join("back")
    take(turns)  # it was known before, and counts from here
    for _ in range(100):
        turns.join("busy")
        take(turns)
    for _ in range(2 * OWED + 4):
        turns.join("busy")
        turns.join("back")
        order.append(take(turns))
    assert order[: OWED - 1] == ["back"] * (OWED - 1) and Counter(order[OWED + 1 :])["busy"] >= OWED // 2 + 1


def test_a_turn_given_back_comes_before_all_others_and_does_not_count() -> None:
    turns = Turns()
    for name in ("a", "b", "c"):
        turns.join(name)
    assert take(turns) == "a"
    turns.join("a")  # it waits already, with another frame
    turns.give_back("a")
    assert len(turns) == 3
    assert [take(turns) for _ in range(3)] == ["a", "b", "c"]
