"""Access tokens are of a size that every hop takes, and their size is known before they are signed."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from services.token.issuer import MAX_TOKEN_BYTES, Grant, Issuer
from services.token.keys import SigningKey
from services.token.messages import tokens_of
from services.token.prompt_servicer import issued
from services.token.sessions import without_session
from watchword.errors import PreconditionFailed
from watchword.token.v1 import token_pb2
from watchword.tokens import SubjectKind

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEYS = {
    "RS256": SigningKey("kid", "RS256", rsa.generate_private_key(65537, 2048)),
    "RS256-2050": SigningKey("kid", "RS256", rsa.generate_private_key(65537, 2050)),
    "PS256": SigningKey("kid", "PS256", rsa.generate_private_key(65537, 3072)),
    "ES256": SigningKey("kid", "ES256", ec.generate_private_key(ec.SECP256R1())),
    "Ed25519": SigningKey("kid", "Ed25519", ed25519.Ed25519PrivateKey.generate()),
}


def issuer(key: SigningKey) -> Issuer:
    """Return an issuer whose clock is right."""
    ring: Any = SimpleNamespace(signing=key)
    skew: Any = SimpleNamespace(require=lambda: None)
    return Issuer(ring, skew, issuer="https://auth.test", audience="watchword", ttl=timedelta(minutes=5))


def grant(*, roles: tuple[str, ...] = (), scopes: tuple[str, ...] = ("account",)) -> Grant:
    return Grant(uuid4(), uuid4(), SubjectKind.USER, None, None, scopes, roles, "", "pwd", NOW, 7)


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("roles", [(), ("clerk",), tuple(f"role-{number}" for number in range(40))])
def test_the_size_of_a_draft_is_the_tokens(name: str, roles: tuple[str, ...]) -> None:
    draft = issuer(KEYS[name]).draft(grant(roles=roles), NOW)
    token = draft.signed(draft.key.sign(draft.text))

    assert draft.size == len(token.text)
    assert token.claims.roles == roles


@pytest.mark.parametrize("scopes", [(), ("account",), tuple(f"scope-{number}" for number in range(30))])
@pytest.mark.parametrize("not_after", [None, NOW + timedelta(seconds=1), NOW])
def test_the_encoded_answer_is_protobufs(scopes: tuple[str, ...], not_after: datetime | None) -> None:
    """It is put together by hand, because most of it is the same for many."""
    access = issuer(KEYS["RS256"]).issue(grant(scopes=scopes)._replace(not_after=not_after), NOW)
    tokens = tokens_of(without_session(access.text, access.expires_in, access.claims.scope))

    assert token_pb2.IssueTokenResponse.FromString(issued(access)) == token_pb2.IssueTokenResponse(tokens=tokens)
    assert tokens.access_token == access.text
    assert tokens.scope.split() == list(scopes)
    assert tokens.expires_in == (300 if not_after is None else (not_after - NOW).total_seconds())


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("count", [600, 601, 602, 603])
def test_roles_that_do_not_fit_are_left_out(name: str, count: int) -> None:
    token = issuer(KEYS[name]).issue(grant(roles=tuple(f"role-{number}" for number in range(count))), NOW)

    assert len(token.text) <= MAX_TOKEN_BYTES
    assert 0 < len(token.claims.roles) < count


def test_scopes_that_do_not_fit_are_refused_before_anything_is_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SigningKey, "sign", lambda *_: pytest.fail("signed in vain"))

    with pytest.raises(PreconditionFailed):
        issuer(KEYS["RS256"]).issue(grant(scopes=tuple(f"scope-{number}" for number in range(1000)), roles=("clerk",)), NOW)
