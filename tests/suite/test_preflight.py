"""`scripts/preflight` on a running stack: what it finds good, what not, and that it says so by its exit status."""

from services.preflight.__main__ import BY_HAND
from tests.preflight import preflight
from tests.suite.conftest import Person, Suite, new_client


async def test_a_stack_for_development_is_right_but_for_what_is_for_development(suite: Suite, admin: Person) -> None:
    """One machine, plain HTTP, a Postgres that trades safety for speed: all else is as in production."""
    client = await new_client(suite, admin, "tokens.verify")

    status, found = preflight("--home", str(suite.home), CLIENT_ID=client.id, CLIENT_SECRET=client.secret)

    assert status == 1
    assert {name for name, (state, _) in found.items() if state == "FAILED"} == {"instances", "environment", "durability", "tls"}
    assert {name for name, (state, _) in found.items() if state == "BY HAND"} == set(BY_HAND)
    assert {state for state, _ in found.values()} == {"OK", "FAILED", "BY HAND"}
    assert found["revocation"] == ("OK", "30 of 30 VALID before, 30 of 30 REVOKED after")
    assert found["guesses"] == ("OK", "10 of 12 guesses compared, 2 refused")
    assert found["balancing"] == ("OK", "all 3 instances of token were asked")


def test_what_is_not_named_is_not_tried_and_nothing_passes_for_good(suite: Suite) -> None:
    status, found = preflight("--rest", suite.endpoints.rest)

    assert status == 1
    assert [found[name][0] for name in ("numbers", "postgres", "redis", "revocation")] == ["NOT TRIED"] * 4
