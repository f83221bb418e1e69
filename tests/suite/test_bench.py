"""scripts/bench runs to its end and writes what others can read. How fast anything is, no test says: machines differ."""

import json
import subprocess
from pathlib import Path

import pytest

from bench.page import page
from bench.results import Results
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


def test_an_unknown_group_is_refused_with_the_known_ones() -> None:
    done = subprocess.run([str(ROOT / "scripts" / "bench"), "--only", "nonsense"], capture_output=True, text=True, check=False, timeout=60)

    assert done.returncode == 2
    assert "verify" in done.stderr
