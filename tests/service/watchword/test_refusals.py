"""A local verifier refuses what the suite's own instances refuse: forged, misdirected, outdated, revoked."""

import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from services.token import revocations as of_the_suite
from tests import attacks
from tests.attacks import Attack
from tests.conftest import eventually
from tests.forgery import Original, good_claims
from tests.service.watchword.fake import (
    EVERYWHERE,
    ISSUER,
    KEY,
    KID,
    OTHER_KEY,
    OTHER_TENANT,
    SESSION,
    SUBJECT,
    TENANT,
    FakeSuite,
    revocation,
    token,
)
from watchword import SubjectKind, TokenVerifier, refusals, rules
from watchword.errors import InsufficientScope, TokenInvalid
from watchword.refusals import TokenRefused
from watchword.rules import Verdict
from watchword.token.v1 import token_pb2

ID, CLIENT_ID, ACTOR, PARENT = (str(uuid4()) for _ in range(4))


async def test_a_good_token_says_whom_it_speaks_for(verifier: TokenVerifier, fake: FakeSuite) -> None:
    """The control. Twice: the second time it is remembered. Nobody was asked."""
    act = {"sub": ACTOR, "act": {"sub": PARENT}}
    text = token(jti=ID, client_id=CLIENT_ID, roles=["clerk"], acr="pwd", act=act)
    for _ in range(2):
        principal = verifier.verify(text, scopes=["invoices.read"])
    assert (principal.subject, principal.tenant_id, principal.session_id, principal.client_id) == (SUBJECT, TENANT, SESSION, CLIENT_ID)
    assert (principal.kind, principal.roles, principal.acr, principal.actors) == (SubjectKind.USER, ("clerk",), "pwd", (ACTOR, PARENT))
    assert (principal.token_id, principal.scopes) == (ID, frozenset({"account", "invoices.read"}))
    assert principal.expires_at.timestamp() == principal.expire_time
    assert fake.verified == []


@pytest.mark.parametrize(
    ("make", "refusal"),
    [
        (lambda: "", refusals.TokenMalformed),
        (lambda: "a.b.c", refusals.TokenMalformed),
        (lambda: token(exp=int(time.time()) - 60), refusals.TokenExpired),
        (lambda: token(iat=int(time.time()) + 60), refusals.TokenNotYetValid),
        (lambda: token(iss="https://other.test"), refusals.WrongIssuer),
        (lambda: token(aud="other"), refusals.WrongAudience),
        (lambda: token(aud=["watchword", "other"]), refusals.WrongAudience),
        (lambda: token(kid="nobody"), refusals.KeyUnknown),
        (lambda: token(tenant_id=OTHER_TENANT), refusals.KeyUnknown),
        (lambda: token(key=OTHER_KEY), refusals.SignatureInvalid),
        (lambda: token(sub="x"), refusals.TokenMalformed),
    ],
    ids=["empty", "rubbish", "expired", "future", "issuer", "audience", "two-audiences", "kid", "tenant", "signature", "claims"],
)
async def test_each_refusal_has_its_class(fake: FakeSuite, make: Callable[[], str], refusal: type[TokenRefused]) -> None:
    """The same one whether the token is new or was seen before."""
    text = make()
    async with fake.refusing() as verifier:
        for _ in range(2):
            with pytest.raises(refusal) as raised:
                verifier.verify(text)
        assert raised.value.verdict is refusal.verdict


async def test_a_stranger_is_told_one_reason_only(verifier: TokenVerifier) -> None:
    """TOKEN_INVALID, whatever it was."""
    reasons, texts = set(), set()
    for text in ("", token(exp=1), token(key=OTHER_KEY)):
        with pytest.raises(TokenInvalid) as raised:
            verifier.verify(text)
        reasons.add(raised.value.reason)
        texts.add(raised.value.text)
    assert (reasons, len(texts)) == ({"TOKEN_INVALID"}, 1)


async def test_missing_scopes_are_another_matter(verifier: TokenVerifier) -> None:
    """The token is good: 403, not 401. All that are asked for must be there."""
    with pytest.raises(InsufficientScope) as raised:
        verifier.verify(token(), scopes=["invoices.read", "invoices.write"])
    assert raised.value.metadata == {"scope": "invoices.read invoices.write"}


async def test_the_audience_may_be_another_for_one_question(verifier: TokenVerifier) -> None:
    """Exactly that one then."""
    assert verifier.verify(token(aud="reports"), audience="reports")
    with pytest.raises(refusals.WrongAudience):
        verifier.verify(token(), audience="reports")


@pytest.mark.parametrize("group", [attacks.algorithms, attacks.headers, attacks.spellings, attacks.json_objects, attacks.signatures])
async def test_the_catalogue_of_attacks_is_refused(fake: FakeSuite, group: Callable[[], attacks.Named]) -> None:
    """What VerifyToken refuses, this refuses, and it says the same of it."""
    original = Original.of(KEY, KID, good_claims(issuer=ISSUER, tenant_id=TENANT))
    accepted: list[str] = []
    async with fake.refusing() as verifier:
        assert verifier.verify(original.token())
        for name, attack in group():
            answer = answer_to(verifier, attack.forge(original))
            if answer not in allowed(attack):
                accepted.append(f"{name}: {answer}")
    assert accepted == []


def answer_to(verifier: TokenVerifier, text: str) -> str:
    try:
        verifier.verify(text)
    except TokenRefused as refused:
        return refused.verdict.value
    return "VALID"


def allowed(attack: Attack) -> set[str]:
    """What the request's own rules refuse unread is malformed here."""
    return {("MALFORMED" if answer == attacks.REFUSED_UNREAD else answer) for answer in attack.answers}


REVOKED: list[tuple[str, Callable[[], token_pb2.Revocation], dict[str, Any], type[TokenRefused] | None]] = [
    ("its id", lambda: revocation("TOKEN", ID), {"jti": ID}, refusals.TokenRevoked),
    ("another id", lambda: revocation("TOKEN", ID), {}, None),
    ("an id of another tenant", lambda: revocation("TOKEN", ID, tenant_id=OTHER_TENANT), {"jti": ID}, None),
    ("an id that is revoked as a session", lambda: revocation("SESSION", ID), {"jti": ID}, None),
    ("what it was exchanged from", lambda: revocation("TOKEN", PARENT), {"parents": [str(uuid4()), PARENT]}, refusals.TokenRevoked),
    ("its session", lambda: revocation("SESSION", SESSION), {}, refusals.TokenRevoked),
    ("another session", lambda: revocation("SESSION", str(uuid4())), {}, None),
    ("its key", lambda: revocation("KEY", str(rules.id_of_key(KID)), tenant_id=EVERYWHERE), {}, refusals.TokenRevoked),
    ("another key", lambda: revocation("KEY", str(rules.id_of_key("key-2")), tenant_id=EVERYWHERE), {}, None),
    ("its subject, later", lambda: revocation("SUBJECT", SUBJECT, revision=101), {}, refusals.TokenRevoked),
    ("its subject, before", lambda: revocation("SUBJECT", SUBJECT, revision=100), {}, None),
    ("its subject, disabled", lambda: revocation("SUBJECT", SUBJECT, revision=101, subject_disabled=True), {}, refusals.SubjectDisabled),
    (
        "its subject, but for another session",
        lambda: revocation("SUBJECT", SUBJECT, spared_revision=101, spared_session_id=ID),
        {},
        refusals.TokenRevoked,
    ),
    ("its subject, but for its session", lambda: revocation("SUBJECT", SUBJECT, spared_revision=101, spared_session_id=SESSION), {}, None),
    ("its subject, older tokens", lambda: revocation("SUBJECT", SUBJECT, issued_before=time.time() + 2), {}, refusals.TokenRevoked),
    ("its subject, much older tokens", lambda: revocation("SUBJECT", SUBJECT, issued_before=time.time() - 60), {}, None),
    ("its client", lambda: revocation("CLIENT", CLIENT_ID, revision=101), {"client_id": CLIENT_ID}, refusals.TokenRevoked),
    ("its client, before", lambda: revocation("CLIENT", CLIENT_ID, revision=100), {"client_id": CLIENT_ID}, None),
    ("the client that it is", lambda: revocation("CLIENT", SUBJECT, revision=101), {"sub_type": "client"}, refusals.TokenRevoked),
    ("who acts", lambda: revocation("SUBJECT", ACTOR, revision=101), {"act": {"sub": PARENT, "act": {"sub": ACTOR}}}, refusals.TokenRevoked),
    ("the client that acts", lambda: revocation("CLIENT", ACTOR, revision=101), {"act": {"sub": ACTOR}}, refusals.TokenRevoked),
    ("its tenant", lambda: revocation("TENANT", TENANT, revision=101), {}, refusals.TokenRevoked),
    ("its tenant, before", lambda: revocation("TENANT", TENANT, revision=100), {}, None),
]


@pytest.mark.parametrize(("tell", "changes", "refusal"), [case[1:] for case in REVOKED], ids=[case[0] for case in REVOKED])
async def test_a_revocation_refuses_exactly_what_it_names(
    fake: FakeSuite, tell: Callable[[], token_pb2.Revocation], changes: dict[str, Any], refusal: type[TokenRefused] | None
) -> None:
    """Also a token that was good a moment ago, and is remembered."""
    text, told = token(**changes), tell()
    async with fake.refusing() as verifier:
        assert verifier.verify(text)
        fake.stream.say(told, checkpoint=True, cursor="told")
        await until_applied(verifier, 0 if told.tenant_id == OTHER_TENANT else 1)
        if refusal is None:
            assert verifier.verify(text)
            return
        with pytest.raises(refusal) as raised:
            verifier.verify(text)
        assert type(raised.value) is refusal


async def until_applied(verifier: TokenVerifier, count: int) -> None:
    """Wait until so many revocations are held, and then for one more checkpoint."""
    through = verifier._view().through

    async def is_applied() -> bool:
        view = verifier._view()
        return len(view.revoked) == count and view.through > through

    await eventually(is_applied)


def test_the_rules_are_those_of_the_suite() -> None:
    """Names and meanings may not part ways between the instances and this package."""
    assert [kind.value for kind in of_the_suite.RevokedKind] == [kind.value for kind in rules.RevokedKind]
    assert of_the_suite.id_of_key("a key") == rules.id_of_key("a key")
    assert set(of_the_suite.Revocation.__dataclass_fields__) == set(rules.Revocation.__dataclass_fields__)
    names = {value.name for value in token_pb2.TokenStatus.DESCRIPTOR.values if value.number}
    assert {verdict.value for verdict in Verdict} == names
    assert set(refusals.REFUSALS) == set(Verdict) - {Verdict.VALID, Verdict.INSUFFICIENT_SCOPE}
