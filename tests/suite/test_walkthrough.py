"""What a stranger does first: paste the lines that `scripts/up` printed."""

import json

from tests.suite.conftest import Suite, Walk


def test_the_walkthrough_works_when_pasted(suite: Suite, walk: Walk) -> None:
    """Five curl lines: a login, a token that is valid, a permission that is held, a revocation, and its bite."""
    replaced, login, verify_and_check, revoke, again = walk.answers

    assert json.loads(replaced)["tokens"]["token_type"] == "Bearer"
    assert login == ""  # it fills $ADMIN and $TOKEN
    verified, checked = (json.loads(part) for part in verify_and_check.replace("}{", "}\n{").split("\n"))
    assert verified["status"] == "VALID"
    assert checked["decision"] == "ALLOW"
    assert "consistency_token" in json.loads(revoke)
    assert json.loads(again)["status"] == "REVOKED"


def test_nothing_of_the_walkthrough_is_readable_to_others(suite: Suite) -> None:
    """The home holds keys and passwords."""
    assert suite.home.stat().st_mode & 0o077 == 0
    for path in (suite.home / "endpoints.json", suite.home / "admin-password", *(suite.home / "keys").iterdir(), *(suite.home / "secrets").iterdir()):
        assert path.stat().st_mode & 0o077 == 0, path
