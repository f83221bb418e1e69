"""docs/benchmarks.md, written from the results of a run; `python -m bench.page` writes it anew from the committed ones."""

from collections.abc import Sequence

from bench.figures import Figure
from bench.results import Results
from bench.table import HEADINGS, rows
from bench.workers import ROOT

COMMITTED = ROOT / "bench" / "results" / "latest.json"
PAGE = ROOT / "docs" / "benchmarks.md"

METHOD = """\
## How it was measured

`scripts/bench` does all of it; [the results](../bench/results/latest.json) are as it wrote them.

* **Cost is CPU time** of the measured process, user and system, of all its threads, divided by the answers it gave. Every answer is read: one that
  does not say what it must (VALID, an access token) ends the run without figures. A gRPC error is never counted as an answer, and a slice in which
  the instance's own count of calls that ended with OK (`grpc_server_handled_total`) differs from the load's ends the run as well.
* **Floor and ceiling are of the same run.** What is compared runs in short slices, in turn (A B C A B C …). A ratio is taken within each turn; the
  table gives the median of the turns, and in brackets the least and the most.
* **The echo** is a bare grpc.aio server that reads the same request with the same headers and writes the same answer as the method beside it
  (VerifyToken, CheckPermission), and does nothing else. What these cost above it is ours: proof of the caller, access, limits, field rules, the
  verification or decision, the log line.
* **The load** is a closed loop of 32 calls at a time (4 batches at a time) on one channel from another process. The measured process has one core to
  itself; load, Postgres and Valkey share another. Where only one core is left, all share it.
* **New tokens** are signed before, with the key that the instance was given, and each instance sees each of them once.
* **Policies** are made by arithmetic, the same each time: nine tenths of all bindings are of the one tenant that is asked about, taken in by one
  stream of ImportPolicy; the rest is of small tenants, written by SQL. A question is allowed only by the outermost of five groups, the parent of the
  role that is bound to it, two resources above the one asked about. *Warm*: the instance counts no read of Postgres
  (`watchword_rbac_views_total`); *cold*: one for each answer.
* **At a fixed rate** calls come whether others have answered or not, and are timed from when they were due.
* **/CPU s** is units a second of CPU time, which is a second of one core: a rate that does not depend on how fast the load was.
* Rate limits are on, at limits that nobody reaches. Postgres writes to disk before it answers.
"""


def page(results: Results) -> str:
    """Return the page."""
    return "\n".join(
        ["# Benchmarks", "", *_summary(results), "", *_table(results.figures), "", METHOD, *_titles(results.figures), "", *_facts(results), ""]
    )


def _summary(results: Results) -> list[str]:
    missed = [figure.name for figure in results.figures if figure.is_met is False]
    verdict = "Every target was met." if not missed else f"Missed: {', '.join(f'`{name}`' for name in missed)}."
    where = f"{results.machine['cores']} cores of {results.machine['processor']}"
    return [f"One run of `scripts/bench`, {results.started[:10]}, {results.seconds:.0f} seconds, on {where}. {verdict}"]


def _table(figures: Sequence[Figure]) -> list[str]:
    lines = [list(HEADINGS), ["---"] * len(HEADINGS), *([f"`{row[0]}`", *row[1:]] for row in rows(figures))]
    return [f"| {' | '.join(line)} |" for line in lines]


def _titles(figures: Sequence[Figure]) -> list[str]:
    lines = [f"* `{figure.name}`: {figure.title}. {'; '.join(figure.notes)}".rstrip(" ") for figure in figures]
    return ["## What each figure is", "", *lines]


def _facts(results: Results) -> list[str]:
    facts = [f"| {name.replace('_', ' ')} | {value} |" for name, value in results.machine.items()]
    settings = [f"| `{name}` | {value} |" for name, value in results.settings.items()]
    return ["## On what", "", "| what | |", "|---|---|", *facts, *settings]


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(Results.decode(COMMITTED.read_bytes())), encoding="utf-8")


if __name__ == "__main__":
    main()
