"""What `scripts/top` makes of numbers: rates, quantiles, and processes that come and go."""

import json
from pathlib import Path

import pytest

from services.top.__main__ import draw, main
from services.top.figures import durations, instances, methods, pairs
from services.top.scrape import Look, Sample, Target, parse
from watchword.__main__ import main as watchword
from watchword.__main__ import top

ONE = Target("token-1", "http://127.0.0.1:1/metrics")
LABELS = {"grpc_service": "watchword.token.v1.TokenService", "grpc_method": "VerifyToken", "grpc_type": "unary"}
HANDLED = "grpc_server_handled_total"


def looked(at: float, *samples: tuple[str, float, dict[str, str]], target: Target = ONE) -> Look:
    found: dict[str, list[Sample]] = {"watchword_ready": [Sample("watchword_ready", {}, 1)]}
    for name, value, labels in samples:
        found.setdefault(name, []).append(Sample(name, labels, value))
    return Look(target, at, is_up=True, samples=found)


def handled(count: float, code: str = "OK") -> tuple[str, float, dict[str, str]]:
    return HANDLED, count, {**LABELS, "grpc_code": code}


def test_prometheus_text_is_read_with_its_quoting() -> None:
    text = '# HELP a x\na{b="say \\"hi\\"\\nto, {me}",c="\\\\"} 1.5\nbare 2\nnan NaN\nenvoy_x{le="+Inf"} 3 1700000000000\n'

    assert [(one.name, one.labels, one.value) for one in parse(text) if one.name != "nan"] == [
        ("a", {"b": 'say "hi"\nto, {me}', "c": "\\"}, 1.5),
        ("bare", {}, 2.0),
        ("envoy_x", {"le": "+Inf"}, 3.0),
    ]


def test_a_rate_is_the_growth_by_the_time_between_the_looks() -> None:
    every = pairs([looked(10, handled(100), handled(5, "Internal"))], [looked(12, handled(300), handled(7, "Internal"))])

    (row,) = instances(every)
    (method,) = methods(every)

    assert (row.calls, row.errors, row.state) == (101, 1, "ready")
    assert (method.name, method.calls, method.failed) == ("token.VerifyToken", 101, 1)


def test_an_instance_that_was_started_anew_began_at_nought() -> None:
    """Its counters are smaller than before; a negative rate would be nonsense."""
    (row,) = instances(pairs([looked(0, handled(1000))], [looked(2, handled(10))]))

    assert row.calls == 5


def test_one_that_does_not_answer_is_down_and_the_others_are_told() -> None:
    two = Target("token-2", "http://127.0.0.1:2/metrics")
    before, after = looked(0, handled(0)), looked(1, handled(3))

    rows = list(instances(pairs([before], [after, Look(two, 1.0, is_up=False)])))

    assert [(row.name, row.state, row.calls) for row in rows] == [("token-1", "ready", 3), ("token-2", "down", 0)]
    assert "down" in draw([before], [after, Look(two, 1.0, is_up=False)])


@pytest.mark.parametrize(
    ("buckets", "expected"),
    [
        ({0.1: 50.0, 0.2: 100.0, float("inf"): 100.0}, (0.1, 0.19, 0.198)),
        ({0.1: 0.0, float("inf"): 10.0}, (0.1, 0.1, 0.1)),  # beyond the last bound: that bound, as histogram_quantile does
        ({0.1: 0.0, float("inf"): 0.0}, (None, None, None)),
        ({}, (None, None, None)),
    ],
)
def test_quantiles_are_read_as_prometheus_reads_them(buckets: dict[float, float], expected: tuple[float | None, ...]) -> None:
    took = durations([buckets])

    assert (took.p50, took.p95, took.p99) == pytest.approx(expected)


def test_without_a_stack_it_says_where_it_looked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--home", str(tmp_path / "nowhere"), "--once"]) == 1
    assert str(tmp_path / "nowhere") in capsys.readouterr().err


def test_a_stack_of_which_nobody_answers_is_shown_as_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "endpoints.json").write_text(json.dumps({"instances": [{"name": "token-1", "metrics": "http://127.0.0.1:1/metrics"}]}))

    assert main(["--home", str(tmp_path), "--once", "--interval", "0.01"]) == 0
    assert "token-1   down" in capsys.readouterr().out


def test_the_command_of_the_package_shows_the_same(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`watchword top` is what the seed calls it."""
    assert watchword(["top", "--once", "--home", str(tmp_path)]) == main(["--once", "--home", str(tmp_path)])

    first, second = capfd.readouterr().err.strip().splitlines()
    assert first == second
    assert "no stack runs" in first


def test_without_a_checkout_it_says_what_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert top(["--once"], tmp_path / "scripts" / "top") == 1
    assert "a checkout" in capsys.readouterr().err
