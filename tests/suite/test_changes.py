"""Scaling, rolling restarts and blue-green on stand-ins that fail on demand: what is refused, what is undone, and that nothing is left behind."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.up import change
from services.up.home import Home
from tests.conftest import ROOT, eventually
from tests.suite.stand_in import StandIn, stand_in

UP = ("--env", "BROKEN=token-3")


@pytest.fixture(scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[StandIn]:
    """A running stack with one instance a service, in which token-3 cannot start. Gone afterwards, with all that was added."""
    async with stand_in(tmp_path_factory.mktemp("changes") / "home") as made:
        assert (await made.up(*UP))[0] == 0
        yield made


async def test_what_cannot_be_done_is_refused_in_words_and_changes_nothing(stack: StandIn, tmp_path: Path) -> None:
    """A slip of the pen must not cost an instance."""
    before = stack.endpoints()
    (tmp_path / "other-database").write_text("# green\n\nDATABASE_URL=postgresql://elsewhere/\n")
    refusals: list[tuple[int, str, list[str]]] = [
        (1, "from 1 to 16", ["scale", "token=0"]),
        (1, "from 1 to 16", ["scale", "rbac=2", "token=17"]),
        (1, "the services are token, rbac", ["scale", "tokn=2"]),
        (2, "is not SERVICE=N", ["scale", "token=many"]),
        (1, "the services are token, rbac", ["rolling-restart", "token", "envoy"]),
        (1, "the services are token, rbac", ["blue-green", "tokn"]),
        (2, "`all`", ["blue-green"]),
        (2, "no-such-file", ["blue-green", "token", "--settings", "no-such-file"]),
        (1, "must agree", ["blue-green", "token", "--settings", str(tmp_path / "other-database")]),
        (1, "nothing to go back to", ["blue-green", "--rollback"]),
    ]
    for code, word, arguments in refusals:
        refused, words = await stack.change(*arguments)
        assert (refused, word in words) == (code, True), words
    code, words = await StandIn(tmp_path / "nowhere").change("scale", "token=2")
    assert (code, "no stack is running" in words) == (2, True), words

    assert stack.endpoints() == before


async def test_what_fails_to_start_is_undone_and_the_others_serve_on(stack: StandIn) -> None:
    """The new goes first, so its failure costs nothing; it says why on the screen."""
    one = stack.pids("token")
    assert (await stack.change("scale", "token=2"))[0] == 0
    two = stack.pids("token")
    assert two.keys() == {"token-1", "token-2"}
    assert one.items() < two.items()

    for verb, *what in (("scale", "token=4"), ("rolling-restart", "token"), ("blue-green", "token")):
        code, words = await stack.change(verb, *what)
        assert (code, "token-3 ended with exit code 3" in words, "| alas" in words) == (1, True, True), words
        assert stack.pids("token") == two
    code, words = await stack.change("rolling-restart", "rbac")

    assert code == 0, words
    assert stack.pids("rbac").keys() == {"rbac-2"}
    assert (await stack.change("scale", "token=1"))[0] == 0
    assert stack.pids("token") == one


async def test_a_green_set_that_fails_a_trial_gets_no_calls(stack: StandIn, tmp_path: Path) -> None:
    """Health alone is not enough: an instance may be healthy and answer nothing."""
    (tmp_path / "mute").write_text("MUTE=1\n")
    before = stack.pids("token")

    code, words = await stack.change("blue-green", "token", "--settings", str(tmp_path / "mute"), "--watch", "1")

    assert (code, "UNIMPLEMENTED" in words, "blue serves" in words) == (1, True, True), words
    assert "all calls go here now" not in words
    assert stack.pids("token") == before


async def test_a_green_set_that_fails_calls_is_given_up_by_itself(stack: StandIn, tmp_path: Path) -> None:
    """Calls that green fails by its own fault count, and those that it refuses do not."""
    (tmp_path / "guilty").write_text("GUILTY=1\n")
    guilty, before = ("--settings", str(tmp_path / "guilty")), stack.pids("token")

    code, words = await stack.change("blue-green", "token", *guilty, "--watch", "30")
    assert (code, "failed 1 calls by their own fault" in words, "all calls go here now" in words) == (1, True, True), words
    assert stack.pids("token") == before

    code, words = await stack.change("blue-green", "token", *guilty, "--watch", "1", "--tolerate", "1000")
    assert (code, "switched" in words) == (0, True), words
    assert len(stack.pids("token")) == 1
    assert stack.pids("token").items().isdisjoint(before.items())

    (tmp_path / "innocent").write_text("GUILTY=\n")  # or all that follow it would be guilty too
    assert (await stack.change("blue-green", "token", "--settings", str(tmp_path / "innocent"), "--watch", "0"))[0] == 0


def hear_ctrl_c() -> None:
    """Undo what a shell does to what it runs aside, such as these tests: it has them ignore Ctrl-C, and all that they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


async def interruptible(*command: str) -> asyncio.subprocess.Process:
    """Run a command of services.up.change that hears Ctrl-C."""
    whole, pipe = (sys.executable, "-m", "services.up.change", *command), subprocess.PIPE
    return await asyncio.create_subprocess_exec(*whole, stdout=pipe, stderr=pipe, cwd=ROOT, preexec_fn=hear_ctrl_c)


async def until_it_says(process: asyncio.subprocess.Process, words: bytes) -> None:
    """Read what a command prints until it has said so."""
    assert process.stdout is not None
    while words not in (line := await process.stdout.readline()):
        assert line


async def test_who_hangs_up_has_blue_back_and_nothing_else_is_changed_meanwhile(stack: StandIn) -> None:
    """Ctrl-C is a way back; two changes at once would undo each other."""
    before = stack.pids("token")
    switch = await interruptible("blue-green", "token", "--watch", "60", "--home", str(stack.home))
    await until_it_says(switch, b"watching")

    code, words = await stack.change("scale", "rbac=2")
    assert (code, "a switch is under way" in words) == (1, True), words
    switch.send_signal(signal.SIGINT)
    _, complaints = await switch.communicate()

    assert switch.returncode == 130, complaints.decode()
    assert complaints.decode().splitlines()[-1] == "blue serves"
    assert stack.pids("token") == before


async def test_who_comes_too_late_is_not_told_that_blue_serves(stack: StandIn, tmp_path: Path) -> None:
    """Once blue is told to end, green serves: an operator who believed otherwise would look for the fault in the wrong release."""
    (tmp_path / "linger").touch()
    (tmp_path / "slow").write_text(f"LINGER={tmp_path / 'linger'}\n")
    assert (await stack.change("blue-green", "token", "--settings", str(tmp_path / "slow"), "--watch", "0"))[0] == 0
    (blue,) = stack.pids("token")
    switch = await interruptible("blue-green", "token", "--watch", "0", "--home", str(stack.home))
    await until_it_says(switch, b"watching")

    async def blue_ends() -> bool:
        return "asked to end" in (stack.home / "logs" / f"{blue}.log").read_text()

    await eventually(blue_ends)
    late = await interruptible("blue-green", "--rollback", "--home", str(stack.home))
    switch.send_signal(signal.SIGINT)
    for one in (late, switch):
        await until_it_says(one, b"told to go back")
    (tmp_path / "linger").unlink()

    for one in (late, switch):
        _, complaints = await one.communicate()
        assert (one.returncode, b"did not go back" in complaints, b"blue serves" in complaints) == (1, True, False), complaints.decode()
    assert blue not in stack.pids("token")


async def test_who_hangs_up_on_a_stack_that_is_gone_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What became of the switch nobody knows: no reason for a traceback, and none to say that blue serves."""
    options = change.parser().parse_args(["blue-green", "all"])

    assert change.interrupted(Home(tmp_path / "gone"), options) == 1
    assert "no stack is running" in capsys.readouterr().err


async def test_a_stack_that_is_stopped_during_a_switch_leaves_no_process(stack: StandIn) -> None:
    """What the scripts start belongs to the stack."""
    switch = asyncio.create_task(stack.change("blue-green", "token", "--watch", "60"))

    async def both_run() -> bool:
        return len(stack.pids("token")) == 2

    await eventually(both_run)
    assert (await stack.down())[0] == 0

    code, words = await switch
    assert (code, "went away" in words) == (1, True), words
    assert await stack.is_gone()
    assert (await stack.up(*UP))[0] == 0  # for the other tests
