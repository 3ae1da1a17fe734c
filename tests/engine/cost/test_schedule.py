"""When jobs start: by needs, places and priorities; and when nobody has noticed an end."""

import pytest

from engine.cost.schedule import Job, simulate


def test_jobs_start_as_soon_as_their_needs_have_ended_and_places_are_free():
    jobs = [Job("a", 1.0), Job("b", 2.0, needs=["a"]), Job("c", 1.0, needs=["a"]), Job("d", 3.0)]
    two = simulate(jobs, 2)
    assert two.spans == {"a": (0, 1), "d": (0, 3), "b": (1, 3), "c": (3, 4)}
    assert two.hours == 4 and two.work == 7


def test_a_wide_job_waits_and_narrow_ones_go_before_it():
    jobs = [Job("first", 2.0), Job("wide", 1.0, places=2), Job("narrow", 1.0)]
    assert simulate(jobs, 2).spans == {"first": (0, 2), "narrow": (0, 1), "wide": (2, 3)}


def test_the_longest_first_by_priority():
    hours = {"a": 1.0, "b": 1.0, "long": 2.0}
    in_order = [Job(name, time) for name, time in hours.items()]
    by_length = [Job(name, time, priority=time) for name, time in hours.items()]
    assert simulate(in_order, 2).hours == 3 and simulate(by_length, 2).hours == 2


def test_an_end_is_noticed_late_and_its_places_are_free_at_once():
    jobs = [Job("a", 1.0), Job("after", 1.0, needs=["a"]), Job("other", 0.5)]
    assert simulate(jobs, 1, notice=1.0).spans == {"a": (0, 1), "other": (1, 1.5), "after": (2, 3)}


def test_what_cannot_start_is_an_error():
    with pytest.raises(AssertionError, match="wide takes 2 places of 1"):
        simulate([Job("wide", 1.0, places=2)], 1)
    with pytest.raises(AssertionError, match="does not end"):
        simulate([Job("a", 1.0, needs=["b"]), Job("b", 1.0, needs=["a"])], 1)
