"""The figures that the deployment guide promises, for machines of 2 to 8 vCPUs, beside ours for a core."""

from collections.abc import Mapping
from math import floor, log2

from bench.figures import Figure

VCPUS = 8
LOGINS, VERIFICATIONS, CHECKS = 500, 2_000, 3_000  # a second on one instance of 8 vCPUs
SIZES = ((2, 500), (4, 1_500), (8, 3_000))  # vCPUs, requests a second
GAINS = {"login": 2.8, "verification": 2.75}  # of three instances over one

Values = Mapping[str, Figure]


def guide(figures: Values, bcrypt_cost: int) -> list[str]:
    """Return the lines of the table, for what was measured."""
    lines = [*_logins(figures, bcrypt_cost), *_answers(figures), *_gain(figures)]
    if not lines:
        return []
    head = ["## Beside the guide's own figures", "", "| what | the guide, on 8 vCPUs | a vCPU | here, a core |  |", "| --- | --- | --- | --- | --- |"]
    return [*head, *lines, ""]


def _median(figures: Values, name: str) -> float | None:
    return figures[name].value.median if name in figures else None


def _logins(figures: Values, bcrypt_cost: int) -> list[str]:
    cost = _median(figures, "login.cost")
    if cost is None:
        return []
    ours, wanted = 1000 / cost, LOGINS / VCPUS
    reached_at = floor(bcrypt_cost - log2(wanted / ours))
    words = (
        f"no core does this with a safe hash: bcrypt would have to cost {reached_at} at most, OWASP says 10 at least, and it is {bcrypt_cost} here"
    )
    return [f"| logins | {LOGINS}/s | {wanted:.1f}/s | {ours:.2f}/s | {words} |"]


def _answers(figures: Values) -> list[str]:
    rows = (("verifications", VERIFICATIONS, "verify"), ("permission checks", CHECKS, "check"))
    lines = []
    for words, rate, name in rows:
        direct, through = _median(figures, f"latency.{name}.direct.core"), _median(figures, f"latency.{name}.envoy.core")
        if direct and through:
            lines.append(f"| {words} | {rate:,}/s | {rate / VCPUS:,.0f}/s | {direct:,.0f}/s | {through:,.0f}/s where Envoy's CPU is counted too |")
    verify = _median(figures, "latency.verify.envoy.core")
    if verify:
        sizes = "; ".join(f"{vcpus} vCPUs {rate:,}/s" for vcpus, rate in SIZES)
        lines.append(
            f"| requests in general | {sizes} | {SIZES[0][1] // 2} to {SIZES[-1][1] // 8}/s | {verify:,.0f}/s | VerifyToken, Envoy included |"
        )
    return lines


def _gain(figures: Values) -> list[str]:
    one, three = _median(figures, "scaling.1.ideal"), _median(figures, "scaling.3.ideal")
    if not one or not three:
        return []
    words = f"by the CPU that a call costs, if each instance had a core; the guide says {GAINS['login']} for logins"
    if three > 3 * one:  # an instance alone pays more for sharing the core with Envoy than three do
        words += ". What is above three is not the instances' merit, and not counted"
    gain = min(3.0, three / one)
    return [f"| three instances over one | {GAINS['verification']} times the verifications | | {gain:.2f} times | {words} |"]
