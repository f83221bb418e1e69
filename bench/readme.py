"""The README's table of costs, written from the results of a whole run."""

from collections.abc import Sequence

from bench.figures import Figure
from bench.marked import put
from bench.results import Results
from bench.table import number
from bench.workers import ROOT

README = ROOT / "README.md"
BEGIN = "<!-- written by scripts/bench -->\n"
ROWS = (  # what, the figure, and the group that it is of
    ("VerifyToken of a token seen before", "verify.repeated", "verify"),
    ("VerifyToken of a new token", "verify.distinct", "verify"),
    ("BatchVerifyTokens, new tokens, a hundred a call", "batch.distinct", "batch"),
    ("CheckPermission from memory", "check.warm", "check"),
    ("CheckPermission with a million bindings", "check.growth.1000000", "growth"),
    ("BatchCheckPermissions, a thousand a call", "checks.distinct", "checks"),
    ("`watchword.TokenVerifier`, a token seen before", "local.seen", "local"),
    ("`watchword.TokenVerifier`, a new token", "local.new", "local"),
    ("from the OK of a revocation to the refusal by a verifier in another process, p99", "propagation.p99", "propagation"),
    ("RevokeToken with three instances to tell, p50", "revoke.3.p50", "propagation"),
    ("memory for each live revocation", "memory.each", "memory"),
    ("IssueToken, an access token alone, signed together with others", "issue.alone / signing", "issue"),
    ("IssueToken, an access token alone, signed one by one", "issue.alone.singly / signing", "issue"),
    ("Login at bcrypt cost 12", "login.rate", "login"),
    ("VerifyToken in a flood of logins, identity on a core of its own", "flood.apart.verify", "flood"),
    ("VerifyToken in a flood of logins, all on two cores", "flood.shared.verify", "flood"),
)


def table(figures: Sequence[Figure]) -> str:
    """Return the table; figures that a run did not give are left out."""
    named = {figure.name: figure for figure in figures}
    lines = ["| what | figure | of what stands beside it | command |", "|---|---|---|---|"]
    lines += [_row(words, named[name], group) for words, name, group in ROWS if name in named]
    return "\n".join([*lines, ""])


def publish(results: Results) -> None:
    """Write the table."""
    README.write_text(put(README.read_text(encoding="utf-8"), BEGIN, table(results.figures)), encoding="utf-8")


def _row(words: str, figure: Figure, group: str) -> str:
    beside = f"{number(figure.beside.ratio.median)} of {figure.beside.title}" if figure.beside else ""
    return f"| {words} | {number(figure.value.median)} {figure.unit} | {beside} | `scripts/bench --only {group}` |"
