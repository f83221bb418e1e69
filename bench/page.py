"""docs/benchmarks.md and the README's table, written from the results of a run; `python -m bench.page` does so anew from the committed ones."""

from collections.abc import Sequence

from bench import readme
from bench.figures import Figure
from bench.guide import guide
from bench.latency_table import latencies
from bench.plots import draw
from bench.results import Results
from bench.table import HEADINGS, rows
from bench.workers import ROOT

COMMITTED = ROOT / "bench" / "results" / "latest.json"
PAGE = ROOT / "docs" / "benchmarks.md"
PLOTTED = ROOT / "docs" / "benchmarks"

METHOD = """\
## How it was measured

`scripts/bench` does all of it; [the results](../bench/results/latest.json) are as it wrote them.

* **Cost is CPU time** of the measured process, user and system, of all its threads, divided by the answers it gave. Every answer is read: one that
  does not say what it must (VALID, an access token) ends its group without figures. A gRPC error is never counted as an answer, and a slice in which
  the instance's own count of calls that ended with OK (`grpc_server_handled_total`) differs from the load's ends the group as well.
* **Floor and ceiling are of the same run.** What is compared runs in short slices, in turn (A B C A B C …). A ratio is taken within each turn; the
  table gives the median of the turns, and in brackets the least and the most.
* **The echo** is a bare grpc.aio server that reads the same request with the same headers and writes the same answer as the method beside it
  (VerifyToken, CheckPermission), and does nothing else. What these cost above it is ours: proof of the caller, access, limits, field rules, the
  verification or decision, the log line. The echo runs as gRPC's examples do. Our services run on uvloop, and have gRPC's threads wait for their turn
  (decisions 18 and 22), which is part of what they do better: `floor.echo.as-service` is an echo on the same loop and threads.
* **The load** is a closed loop of 32 calls at a time (4 batches at a time) on one channel from another process. The measured process has one core to
  itself; load, Postgres and Valkey share another. Where only one core is left, all share it.
* **New tokens** are signed before, with the key that the instance was given, and each instance sees each of them once.
* **Policies** are made by arithmetic, the same each time: nine tenths of all bindings are of the one tenant that is asked about, taken in by one
  stream of ImportPolicy; the rest is of small tenants, written by SQL. A question is allowed only by the outermost of five groups, the parent of the
  role that is bound to it, two resources above the one asked about. *Warm*: the instance counts no read of Postgres
  (`watchword_rbac_views_total`); *cold*: one for each answer.
* **At a fixed rate** calls come whether others have answered or not, and are timed from when they were due.
* **/CPU s** is units a second of CPU time, which is a second of one core: a rate that does not depend on how fast the load was.
* **Latency** (`latency.*`, `load.*`) is that of an open loop: calls are due at random moments of a schedule drawn before, as those of many callers
  who do not know of each other. Each is timed from the moment when it was *due*, so that a server that is late for one call is late for all that
  were due meanwhile (this corrects for coordinated omission), and so is a load that is late itself, whose own lateness is told. The rate is 70 % of
  what a closed loop of 32 callers got answered in the same turn. On few cores that maximum is often the load's or Envoy's, who share one, and not
  the instance's: `max` says what the machine answered, `core` what a core of the instance (and of Envoy) would answer.
* **Through Envoy** is the internal listener (gRPC) or the edge listener (REST, transcoded), as `scripts/up` sets them up. The echo stands behind an
  Envoy of its own with the same configuration.
* **Logins** are those of `scripts/up`'s stack through Envoy, on all cores. Identity has one hash process here; their ceiling is bcrypt at the same
  cost alone on one core, by the clock on the wall.
* **Scaling**: all instances of token and Envoy share one core, since there is no other, so throughput cannot grow here. What can be promised and
  measured is that a call costs no more CPU when there is one instance more: three are held against two, for one alone pays more for sharing its
  core with Envoy than any number does. `ideal` is what they would answer with a core each.
* **The flood** asks for ten times the logins that can be hashed, in an open loop, each with a deadline of four seconds, while tokens are verified:
  as fast as they are answered in the first half, at half the idle maximum in the second, in which verifications and refusals are timed. *Apart*:
  identity has a core, everything else and the load share the other. *Shared*: everything, the load too, shares all cores; verifications asked as
  fast as they are answered then take what they can, and the hash processes, as idle tasks, the rest. So the ceiling of logins is a target only
  where there is a core for it.
* **Weights** are resident sets. Nearly half of an idle service is pages of libraries' files (gRPC, `cryptography`, OpenSSL, Python),
  which all services of a machine have in common; of what is its own, most is Python's objects, two thirds of those the compiled code of imported
  modules. Identity's hash processes are weighed with it; each holds zxcvbn's lists of words, 12 MiB, once it has judged a password.
* Rate limits are on, at limits that nobody reaches. Postgres writes to disk before it answers.
"""


def page(results: Results, plots: Sequence[str] = ()) -> str:
    """Return the page; `plots` are files in PLOTTED."""
    figures = {figure.name: figure for figure in results.figures}
    parts = (
        ["# Benchmarks", "", *_summary(results), ""],
        [line for name in plots for line in (f"![{name.removesuffix('.svg')}]({PLOTTED.name}/{name})", "")],
        guide(figures, int(results.settings.get("BCRYPT_COST", "12"))),
        latencies(figures),
        ["## All figures", "", *_table(results.figures), "", METHOD],
        [*_titles(results.figures), "", *_facts(results), ""],
    )
    return "\n".join(line for part in parts for line in part)


def publish(results: Results) -> None:
    """Write the page and its plots, and the table."""
    PAGE.write_text(page(results, draw(results.figures, PLOTTED)), encoding="utf-8")
    readme.publish(results)


def _summary(results: Results) -> list[str]:
    missed = [figure.name for figure in results.figures if figure.is_met is False]
    verdict = "Every target was met." if not missed else f"Missed: {', '.join(f'`{name}`' for name in missed)}."
    failed = [f"The group {failure.group} gave no figures: {failure.words.splitlines()[0]}" for failure in results.failures]
    where = f"{results.machine['cores']} cores of {results.machine['processor']}"
    return [f"One run of `scripts/bench`, {results.started[:10]}, {results.seconds:.0f} seconds, on {where}. {verdict}", *failed]


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
    """Write them."""
    publish(Results.decode(COMMITTED.read_bytes()))


if __name__ == "__main__":
    main()
