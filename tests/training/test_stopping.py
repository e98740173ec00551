"""A signal ends a part of some work at once, and nothing outside of one."""

import os
import signal

import pytest

from jaxrec.sharding import make_mesh
from jaxrec.training.stopping import AgreedStop, Stopped, stop_signal


@pytest.fixture
def stop():
    with stop_signal() as signals:
        yield AgreedStop(signals, make_mesh())


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_part_without_a_signal_returns_its_result(stop):
    assert stop.interruptible(lambda: [1, 2]) == [1, 2]
    assert stop.number == 0


def test_a_signal_ends_the_part_that_it_meets(stop):
    done = []

    def work():
        done.append("before")
        terminate()
        done.append("after")

    with pytest.raises(Stopped):
        stop.interruptible(work)
    assert done == ["before"]
    terminate()  # a second signal, while the state is saved
    assert stop.number == signal.SIGTERM


def test_a_signal_before_a_part_keeps_it_from_starting(stop):
    terminate()
    with pytest.raises(Stopped):
        stop.interruptible(lambda: pytest.fail("this must not run"))


def test_a_part_whose_exception_is_lost_stops_behind_it(stop):
    def work():
        try:
            terminate()
        except Stopped:
            return "lost"

    with pytest.raises(Stopped):
        stop.interruptible(work)


def test_an_error_of_a_part_is_that_of_the_part(stop):
    def work():
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        stop.interruptible(work)
    terminate()  # outside of a part
    assert stop.now()
