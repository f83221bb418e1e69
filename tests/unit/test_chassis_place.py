"""A process is said to be gone only when it is: else a revocation would be acknowledged before somebody who still answers."""

import os
import subprocess
import sys

import pytest

from services.chassis.place import is_gone, own_place

PRINT = "from services.chassis.place import own_place; print(own_place(), flush=True); input()"


def test_who_is_here_is_not_gone() -> None:
    assert own_place()
    assert not is_gone(own_place())


def test_who_ended_is_gone_waited_for_or_not() -> None:
    child = subprocess.Popen([sys.executable, "-c", PRINT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    place = child.stdout.readline().strip()
    assert not is_gone(place)

    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie now
    assert is_gone(place)
    child.wait()
    assert is_gone(place)
    child.communicate()


def test_whose_id_somebody_else_has_now_is_gone() -> None:
    head, _, began = own_place().rpartition("/")
    assert is_gone(f"{head}/{int(began) + 1}")


@pytest.mark.parametrize("place", ["", "/", "a/b", "///1", "other-machine/pid:[1]/1/1", "other-machine/pid:[1]/999999999/1"])
def test_of_other_places_nothing_is_known(place: str) -> None:
    assert not is_gone(place)
