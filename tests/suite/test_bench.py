"""scripts/bench runs to its end and writes what others can read. How fast anything is, no test says: machines differ."""

import asyncio
import json
import subprocess
import time
from pathlib import Path

import pytest

import bench.__main__ as command
from bench import readme
from bench.alarm import BILLION
from bench.figures import Bench, Figure
from bench.marked import END, put
from bench.pace import Paced, Times, schedule
from bench.page import COMMITTED, page
from bench.plots import draw
from bench.results import Failure, Results
from bench.slices import Spread
from bench.workers import BenchError
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a quick run of one group."""
    path = tmp_path_factory.mktemp("bench") / "results.json"
    command = [str(ROOT / "scripts" / "bench"), "--quick", "--only", "verify", "--out", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stderr
    assert "verify.repeated" in done.stdout
    return path


def test_each_figure_stands_beside_its_floor(out: Path) -> None:
    results = json.loads(out.read_bytes())

    figures = {figure["name"]: figure for figure in results["figures"]}

    assert {"floor.echo", "verify.repeated", "verify.distinct"} <= set(figures)
    assert all(figure["value"]["median"] > 0 for figure in figures.values())
    assert figures["verify.repeated"]["beside"]["title"] == "echo"
    assert figures["verify.repeated"]["target"]["bound"] == 1.25
    assert isinstance(figures["verify.repeated"]["is_met"], bool)


def test_a_run_says_what_it_ran_on(out: Path) -> None:
    results = Results.decode(out.read_bytes())

    assert {"cores", "python", "grpcio", "envoy", "postgres", "valkey"} <= set(results.machine)
    assert all(results.machine.values())
    assert results.quick


def test_the_page_is_written_from_the_results_alone(out: Path) -> None:
    results = Results.decode(out.read_bytes())

    written = page(results)

    assert all(f"`{figure.name}`" in written for figure in results.figures)


def test_the_readme_says_what_the_committed_run_says() -> None:
    """A figure that somebody corrected by hand, or a row of which no run says anything, is found."""
    written = readme.table(Results.decode(COMMITTED.read_bytes()).figures)

    assert readme.BEGIN + written + END in readme.README.read_text(encoding="utf-8")
    assert written.count("\n") == 2 + len(readme.ROWS)
    with pytest.raises(ValueError, match="an end"):
        put("a page without marks", readme.BEGIN, written)


def test_plots_are_drawn_from_the_figures_alone_and_always_the_same(tmp_path: Path) -> None:
    figures = [Figure(f"scaling.{count}.ideal", "", "/s", Spread.of([count * 1000.0])) for count in (1, 2, 3)]

    drawn = [draw(figures, tmp_path / name) for name in ("one", "two")]

    assert drawn == [["scaling.svg"], ["scaling.svg"]]
    assert (tmp_path / "one" / "scaling.svg").read_bytes() == (tmp_path / "two" / "scaling.svg").read_bytes()


async def test_a_group_that_fails_is_told_and_the_others_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long run that nobody watches must not lose what it found."""

    async def broken(_: Bench) -> list[Figure]:
        raise BenchError("the answers were wrong")

    async def whole(_: Bench) -> list[Figure]:
        return [Figure("good", "a figure", "/s", Spread.of([1.0]))]

    monkeypatch.setattr(command, "GROUPS", {"broken": broken, "whole": whole})

    status = await command.main(["--quick", "--out", str(tmp_path / "results.json")])

    results = Results.decode((tmp_path / "results.json").read_bytes())
    assert status == 1
    assert results.failures == (Failure("broken", "the answers were wrong"),)
    assert [figure.name for figure in results.figures] == ["good"]


async def test_a_stall_counts_for_all_calls_that_were_due_meanwhile() -> None:
    """Coordinated omission: a load that waits with the server would note one slow call where there were many."""
    stalled_until = time.monotonic_ns() + BILLION

    async def call(_: bytes) -> str:
        while time.monotonic_ns() < stalled_until:  # noqa: ASYNC110  (the server that is stood in for does nothing meanwhile)
            await asyncio.sleep(0.01)
        return "OK"

    times = Times()
    await Paced(call, [b""], times).run([number * BILLION // 100 for number in range(50)])

    told = times.told()["OK"]
    assert told["count"] == 50
    assert told["p50"] >= 500_000  # microseconds: half of the calls were due in the first quarter of a second


def test_the_schedule_of_an_open_loop_is_drawn_before() -> None:
    due = schedule(1000, 2.0, seed=7)

    assert due == schedule(1000, 2.0, seed=7) != schedule(1000, 2.0, seed=8)
    assert due == sorted(due)
    assert 1.5 * BILLION < due[-1] < 2.5 * BILLION


def test_an_unknown_group_is_refused_with_the_known_ones() -> None:
    done = subprocess.run([str(ROOT / "scripts" / "bench"), "--only", "nonsense"], capture_output=True, text=True, check=False, timeout=60)

    assert done.returncode == 2
    assert "verify" in done.stderr
