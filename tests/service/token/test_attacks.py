"""Every attack of the catalogue on a running instance: as the token that is asked about, in a batch, and as the credential of the call itself."""

import asyncio
import base64
import ctypes
import os
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from services.chassis.sealing import Sealer, derive
from tests import forgery
from tests.attacks import ATTACKS, ECDSA_CHANGES, REFUSED_UNREAD, Attack
from tests.conftest import SALT, Stores, eventually, instance, serving
from tests.forgery import Original, b64, changed, compact, good_claims
from tests.ring import KINDS, Ring, new_ring
from tests.service.chassis.fault_proxy import FaultProxy
from tests.service.chassis.test_postgres import through
from tests.service.token.conftest import ISSUER, KID, TENANT, TokenInstances
from watchword import status
from watchword.token.v1 import token_pb2, token_pb2_grpc


@dataclass
class Trap:
    """A listener that nobody should ever connect to."""

    port: int
    connections: int = 0


@pytest.fixture(scope="module")
async def trap() -> AsyncIterator[Trap]:
    """Where headers point that want a key fetched."""
    found = Trap(0)

    async def spring(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found.connections += 1
        writer.close()

    async with await asyncio.start_server(spring, "127.0.0.1", 0) as server:
        found.port = server.sockets[0].getsockname()[1]
        yield found


@pytest.fixture
def original(token: TokenInstances, trap: Trap) -> Original:
    """The makings of a token that the instances' key signs."""
    body = good_claims(issuer=ISSUER, tenant_id=TENANT, scope="account tokens.verify")
    return Original.of(token.private_key, KID, body, f"http://127.0.0.1:{trap.port}/jwks.json")


async def verified(token: TokenInstances, text: str, *, at: int = 0) -> str:
    """Return VerifyToken's status, or the reason why the request itself was refused. A refusal carries nothing else."""
    try:
        answer = await token.stubs[at].VerifyToken(token_pb2.VerifyTokenRequest(token=text), metadata=token.identity)
    except grpc.aio.AioRpcError as error:
        return status.decode(error).reason
    if answer.status != token_pb2.VALID:
        assert answer == token_pb2.VerifyTokenResponse(status=answer.status)
    return token_pb2.TokenStatus.Name(answer.status)


async def introspected(token: TokenInstances, text: str) -> bytes | str:
    """Return the bytes of IntrospectToken's answer, or the reason why the request itself was refused."""
    try:
        return (await token.stubs[0].IntrospectToken(token_pb2.IntrospectTokenRequest(token=text), metadata=token.identity)).SerializeToString()
    except grpc.aio.AioRpcError as error:
        return status.decode(error).reason


async def borne(token: TokenInstances, credential: str, *more: str) -> str:
    """Return how a call ends whose `authorization` is this."""
    metadata = tuple(("authorization", value) for value in (credential, *more))
    try:
        await token.stubs[0].VerifyToken(token_pb2.VerifyTokenRequest(token="x"), metadata=metadata)
    except grpc.aio.AioRpcError as error:
        return "HEADERS_TOO_LARGE" if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED else status.decode(error).reason
    return "OK"


def fits_metadata(text: str) -> bool:
    """gRPC's metadata is printable ASCII."""
    return text.isascii() and text.isprintable()


async def test_the_original_is_good(token: TokenInstances, original: Original) -> None:
    """The control: without it, every refusal below could have another cause."""
    for text in (original.token(), original.with_head(typ="AT+JWT"), original.with_head(typ="application/at+jwt")):  # A006
        assert await verified(token, text) == "VALID"
        assert isinstance(found := await introspected(token, text), bytes)
        assert found
        assert await borne(token, f"Bearer {text}") == "OK"


@pytest.mark.parametrize("attack", [pytest.param(attack, id=name) for name, attack in ATTACKS.items()])
async def test_a_forged_token_is_good_for_nothing(token: TokenInstances, original: Original, trap: Trap, attack: Attack) -> None:
    """Asked about, it is invalid for a fitting reason; introspected, it is not active; as a credential, it is no better than rubbish."""
    text = attack.forge(original)

    assert await verified(token, text) in attack.answers
    assert await introspected(token, text) == (REFUSED_UNREAD if attack.answers == {REFUSED_UNREAD} else b"")
    if fits_metadata(text):
        assert await borne(token, f"Bearer {text}") in ("TOKEN_INVALID", *(["HEADERS_TOO_LARGE"] if len(text) > 8192 else []))
    assert trap.connections == 0


@pytest.mark.parametrize("size", [64 * 1024, 900_000], ids=["A025-64-KiB", "A025-900-KB"])
async def test_a_huge_token_is_refused_by_the_requests_own_rules(token: TokenInstances, original: Original, size: int) -> None:
    """Before anything of it is decoded."""
    for text in (forgery.sized(original, size), "x" * size, "." * size):
        assert await verified(token, text) == REFUSED_UNREAD


@pytest.mark.parametrize("depth", [pytest.param(100_000, id="A024-100000-deep")])
async def test_a_token_too_deep_for_any_parser_is_refused_unread(token: TokenInstances, original: Original, depth: int) -> None:
    """It is too long first."""
    for text in (original.token(head=b'{"x":' * depth), original.token(body=b"[" * depth)):
        assert await verified(token, text) == REFUSED_UNREAD


async def test_the_longest_token_that_is_read_is_judged_like_any_other(token: TokenInstances, original: Original) -> None:
    """8,192 bytes are read; one more is not (A025)."""
    assert await verified(token, forgery.sized(original, 8192)) != REFUSED_UNREAD


async def test_in_a_batch_every_forgery_gets_its_own_answer(token: TokenInstances, original: Original) -> None:
    """A hundred at a time, a good one after each: nothing of one answer is in another's."""
    forged = [attack.forge(original) for attack in ATTACKS.values() if attack.answers != {REFUSED_UNREAD}]
    for start in range(0, len(forged), 50):
        texts = [text for each in forged[start : start + 50] for text in (each, original.token())]
        request = token_pb2.BatchVerifyTokensRequest(requests=[token_pb2.VerifyTokenRequest(token=text) for text in texts])
        answers = (await token.stubs[1].BatchVerifyTokens(request, metadata=token.identity)).responses
        assert [answer.status for answer in answers[1::2]] == [token_pb2.VALID] * (len(texts) // 2)
        assert token_pb2.VALID not in {answer.status for answer in answers[::2]}
        assert not any(answer.HasField("principal") for answer in answers[::2])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param(["Bearer {}"], "OK", id="A030-as-it-should-be"),
        pytest.param(["bearer {}"], "OK", id="A030-lower-case"),
        pytest.param(["BEARER {}"], "OK", id="A030-upper-case"),
        pytest.param(["Bearer Bearer {}"], "TOKEN_INVALID", id="A030-bearer-twice"),
        pytest.param(["Bearer  {}"], "TOKEN_INVALID", id="A030-two-spaces"),
        pytest.param(["Bearer {}", "Bearer {}"], "TOKEN_INVALID", id="A030-two-headers"),
        pytest.param(["Bearer x", "Bearer {}"], "TOKEN_INVALID", id="A030-two-headers-first-bad"),
        pytest.param(["Bearer {}, Bearer {}"], "TOKEN_INVALID", id="A030-two-in-one"),
        pytest.param(["Bearer {} x"], "TOKEN_INVALID", id="A030-something-after"),
        pytest.param(["{}"], "TOKEN_INVALID", id="A030-no-scheme"),
        pytest.param(["Bearer:{}"], "TOKEN_INVALID", id="A030-colon"),
        pytest.param(["Basic {}"], "TOKEN_INVALID", id="A030-another-scheme"),
        pytest.param(["DPoP {}"], "TOKEN_INVALID", id="A047-dpop-scheme"),
    ],
)
async def test_a_call_carries_one_bearer_token(token: TokenInstances, original: Original, values: list[str], expected: str) -> None:
    """Two, and a proxy may have checked the one while we take the other."""
    assert await borne(token, *(value.format(original.token(), original.token()) for value in values)) == expected


# Keys of every kind, in every state.


@pytest.fixture(scope="module")
async def ring(token: TokenInstances) -> Ring:
    """Put keys into the ring, sealed as they should be, and wait until both instances have read it."""
    made = await new_ring(token.database_url, Sealer(derive(SALT, "signing-keys")))
    probe = made.signed("ring-published", "RS256", good_claims(issuer=ISSUER, tenant_id=TENANT))

    async def is_read() -> bool:
        return {await verified(token, probe, at=number) for number in range(len(token.stubs))} == {"VALID"}

    await eventually(is_read, within=15)
    return made


@pytest.mark.parametrize(("kid", "alg"), [pytest.param(kid, alg, id=f"A004-{alg}") for kid, alg in KINDS.items()])
async def test_each_kind_of_key_verifies_its_own_algorithm(token: TokenInstances, ring: Ring, kid: str, alg: str) -> None:
    """The control of what follows."""
    assert await verified(token, ring.signed(kid, alg, good_claims(issuer=ISSUER, tenant_id=TENANT))) == "VALID"


@pytest.mark.parametrize("kid", [pytest.param(kid, id=f"A004-{kid}") for kid in (*KINDS, "ring-published")])
async def test_a_key_verifies_by_its_own_algorithm_and_no_other(token: TokenInstances, ring: Ring, kid: str) -> None:
    """Whatever the header says, and whichever key of ours made the signature: RS256 for PS256 and back, EC for RSA, and so on."""
    body = good_claims(issuer=ISSUER, tenant_id=TENANT)
    own = KINDS.get(kid, "RS256")
    for alg in {"RS256", *KINDS.values()}:
        for by in (kid, *KINDS, "ring-published"):
            expected = "VALID" if (alg, by) == (own, kid) else "BAD_SIGNATURE"
            assert await verified(token, ring.signed(kid, alg, body, by=by)) == expected, (alg, by)
    for alg in ("EdDSA", "ES384", "ES256K", "RS512", "none", "HS256"):
        text = f"{b64(compact({'alg': alg, 'kid': kid, 'typ': 'at+jwt'}))}.{b64(compact(body))}"
        assert await verified(token, f"{text}.{b64(ring.private['ring-ed25519'].sign(text.encode()))}") == "BAD_SIGNATURE", alg


@pytest.mark.parametrize("curve", [pytest.param(ec.SECP384R1(), id="A004-ES384-for-an-ES256-key")])
async def test_another_curve_signs_nothing(token: TokenInstances, ring: Ring, curve: ec.EllipticCurve) -> None:
    """ES384 is not among the algorithms, whatever key made it."""
    theirs, body = ec.generate_private_key(curve), good_claims(issuer=ISSUER, tenant_id=TENANT)
    for alg in ("ES384", "ES256"):
        text = forgery.ecdsa_token(theirs, {"alg": alg, "kid": "ring-es256", "typ": "at+jwt"}, body)
        assert await verified(token, text) == "BAD_SIGNATURE"


@pytest.mark.parametrize("name", ECDSA_CHANGES)
async def test_an_ecdsa_signature_is_r_and_s_and_nothing_else(token: TokenInstances, ring: Ring, name: str) -> None:
    """CVE-2022-21449 and its kin: zeros, the order itself, ASN.1, other lengths."""
    head, body = {"alg": "ES256", "kid": "ring-es256", "typ": "at+jwt"}, good_claims(issuer=ISSUER, tenant_id=TENANT)
    assert await verified(token, forgery.ecdsa_token(ring.private["ring-es256"], head, body)) == "VALID"

    assert await verified(token, forgery.ecdsa_token(ring.private["ring-es256"], head, body, ECDSA_CHANGES[name])) in ("BAD_SIGNATURE", "MALFORMED")


@pytest.mark.parametrize("kid", [pytest.param(kid, id=f"A014-beside-{kid}") for kid in ("ring-published", "ring-es256")])
async def test_a_kid_is_required_however_many_keys_there_are(token: TokenInstances, ring: Ring, kid: str) -> None:
    """Otherwise the header's silence would choose among the keys. One key alone: see the catalogue."""
    alg, body = KINDS.get(kid, "RS256"), good_claims(issuer=ISSUER, tenant_id=TENANT)
    head = {"alg": alg, "typ": "at+jwt"}
    text = f"{b64(compact(head))}.{b64(compact(body))}"
    signed = forgery.ecdsa_token(ring.private[kid], head, body) if alg == "ES256" else Original.of(ring.private[kid], kid, body).sign(text)

    assert await verified(token, signed) == "MALFORMED"


@pytest.mark.parametrize(
    ("kid", "expected"),
    [
        pytest.param("ring-retiring", "VALID", id="A015-retired-within-its-grace"),
        pytest.param("ring-retired", "UNKNOWN_KEY", id="A015-retired-after-its-grace"),
        pytest.param("ring-published", "VALID", id="A015-published-before-it-signs"),
    ],
)
async def test_published_keys_verify_and_others_do_not(token: TokenInstances, ring: Ring, kid: str, expected: str) -> None:
    """What the key set shows to the world is what we accept."""
    assert await verified(token, ring.signed(kid, "RS256", good_claims(issuer=ISSUER, tenant_id=TENANT))) == expected


# What a kid costs.


class Eavesdropper(FaultProxy):
    """Passes everything on, and keeps what was said to the server."""

    said = b""

    def _ask(self, data: bytes) -> bytes:
        self.said += data
        return data


@pytest.mark.parametrize("count", [pytest.param(1000, id="A013-A054-1000-unknown-kids")])
async def test_unknown_kids_cost_the_database_next_to_nothing(
    token: TokenInstances, original: Original, stores: Stores, tmp_path: Path, count: int
) -> None:
    """A stranger who names a new key in every token causes next to no reload, and no other statement about tokens."""
    from urllib.parse import urlsplit

    environment = {
        "REDIS_URL": stores.redis,
        "SECURITY_SALT": SALT,
        "SERVICE_KEY": token.keys.private["token"],
        "SERVICE_PUBLIC_KEYS": token.keys.public_json,
        "TOKEN_ISSUER": ISSUER,
        "DATABASE_STATEMENT_CACHE_SIZE": "0",  # so that every statement travels as text
    }
    async with Eavesdropper.before("127.0.0.1", urlsplit(token.database_url).port or 0) as proxy:
        assert isinstance(proxy, Eavesdropper)
        environment["DATABASE_URL"] = through(proxy.port, token.database_url)
        with instance("services.token", environment=environment, log=tmp_path / "log") as (address, running):
            await serving(address, running, tmp_path / "log")
            async with grpc.aio.insecure_channel(address) as channel:
                stub: token_pb2_grpc.TokenServiceAsyncStub = token_pb2_grpc.TokenServiceStub(channel)

                async def ask(text: str) -> int:
                    return int((await stub.VerifyToken(token_pb2.VerifyTokenRequest(token=text), metadata=token.identity)).status)

                assert await ask(original.token()) == token_pb2.VALID
                assert b"signing_key" in proxy.said, "the eavesdropper hears the statements"
                proxy.said = b""
                texts = [original.with_head(kid=str(uuid4())) for _ in range(count)]
                answers = [await asyncio.gather(*(ask(text) for text in texts[start : start + 20])) for start in range(0, count, 20)]

    assert {answer for some in answers for answer in some} == {token_pb2.UNKNOWN_KEY}
    # Some there are: the ring is looked at by the clock, and memory is loaded anew when a busy machine costs the lease.
    for table in (b"signing_key", b"FROM revocation", b"FROM session", b"FROM refresh_token"):
        assert proxy.said.count(table) < count / 20, "the kids of strangers make no statements"


IN_OPEN = 0x20
IN_NONBLOCK = 0o4000


@pytest.fixture
def bait(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A file, and a descriptor that says when somebody opens it."""
    path = tmp_path / "bait.pem"
    path.write_text("x")
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(IN_NONBLOCK)
    assert libc.inotify_add_watch(descriptor, str(path).encode(), IN_OPEN) >= 0
    yield path, descriptor
    os.close(descriptor)


@pytest.mark.parametrize(
    "form",
    [
        pytest.param("{}", id="A013-opens-no-file-absolute"),
        pytest.param("file://{}", id="A013-opens-no-file-url"),
        pytest.param("../../../../../../../..{}", id="A013-opens-no-file-relative"),
    ],
)
async def test_a_kid_opens_no_file(token: TokenInstances, original: Original, bait: tuple[Path, int], form: str) -> None:
    """A kid is only ever a name in our ring."""
    path, descriptor = bait
    text = original.with_head(kid=form.format(path))

    assert await verified(token, text) == "UNKNOWN_KEY"
    assert await borne(token, f"Bearer {text}") == "TOKEN_INVALID"

    with pytest.raises(BlockingIOError):
        os.read(descriptor, 1)
    path.read_text()
    assert os.read(descriptor, 4096), "the watch works"


# Claims that mean something only beside the state of things.


@pytest.mark.parametrize("audience", [pytest.param(aud, id=f"A037-{aud}") for aud in ("billing", "*", "watchword2")])
async def test_an_empty_audience_means_ours_and_never_any(token: TokenInstances, original: Original, audience: str) -> None:
    """A caller who names none would otherwise take every service's tokens."""
    text = original.with_body(aud=audience)
    assert await verified(token, text) == "WRONG_AUDIENCE"
    assert await token.status(text, audience=audience) == "VALID"
    assert await token.status(original.token(), audience=audience) == "WRONG_AUDIENCE"
    assert await borne(token, f"Bearer {text}") == "TOKEN_INVALID"


@pytest.mark.parametrize("count", [pytest.param(200, id="A042-200-tokens")])
async def test_no_two_tokens_have_one_id(token: TokenInstances, count: int) -> None:
    """A jti that came twice would revoke two tokens, or none."""
    subject = str(uuid4())
    issued = [(await token.issue(subject=subject, with_refresh_token=False, at=number % 2)).access_token for number in range(count)]
    assert len({forgery.claims_of(text)["jti"] for text in issued}) == count


@pytest.mark.parametrize("disabled", [pytest.param(True, id="A043-disabled"), pytest.param(False, id="A044-all-until-now")])
async def test_a_revoked_subjects_tokens_are_refused_everywhere(token: TokenInstances, disabled: bool) -> None:
    """With and without a session, at every instance and endpoint, refresh and introspection included; a later login is good."""
    subject = str(uuid4())
    login = await token.issue(subject=subject)
    alone = (await token.issue(subject=subject, with_refresh_token=False)).access_token
    request = token_pb2.RevokeTokensRequest(tenant_id=TENANT, subject=subject, subject_disabled=disabled)
    await token.stubs[0].RevokeTokens(request, metadata=token.identity)

    for text in (login.access_token, alone):
        assert {await verified(token, text, at=number) for number in (0, 1)} == {"SUBJECT_DISABLED" if disabled else "REVOKED"}
        assert await borne(token, f"Bearer {text}") == "TOKEN_INVALID"
        assert await introspected(token, text) == b""
    assert await introspected(token, login.refresh_token) == b""
    refreshing = token.stubs[1].RefreshToken(token_pb2.RefreshTokenRequest(refresh_token=login.refresh_token), metadata=token.identity)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await refreshing
    assert status.decode(failure.value).reason == "TOKEN_INVALID"
    assert await token.status((await token.issue(subject=subject)).access_token) == "VALID"


@pytest.mark.parametrize("first", [pytest.param("subject", id="A045-client-later"), pytest.param("client_id", id="A045-subject-later")])
async def test_of_two_revocations_the_later_one_decides(token: TokenInstances, first: str) -> None:
    """A token between the two is refused on every instance, whichever was set first; one after both is good."""
    names: dict[str, Any] = {"subject": str(uuid4()), "client_id": str(uuid4())}
    second = "client_id" if first == "subject" else "subject"

    async def revoke(kind: str) -> None:
        await token.stubs[0].RevokeTokens(token_pb2.RevokeTokensRequest(tenant_id=TENANT, **{kind: names[kind]}), metadata=token.identity)

    before = (await token.issue(**names)).access_token
    await revoke(first)
    between = (await token.issue(**names)).access_token
    for at in range(len(token.stubs)):
        assert (await verified(token, before, at=at), await verified(token, between, at=at)) == ("REVOKED", "VALID")
    await revoke(second)
    after = (await token.issue(**names)).access_token
    for at in range(len(token.stubs)):
        assert [await verified(token, text, at=at) for text in (before, between, after)] == ["REVOKED", "REVOKED", "VALID"]


async def test_a_forged_revision_of_the_past_is_refused_too(token: TokenInstances, original: Original) -> None:
    """A044: rightly signed, and from before the revocation by its revision, whatever its times say."""
    subject, seen = str(uuid4()), await token.revision()
    await token.stubs[0].RevokeTokens(token_pb2.RevokeTokensRequest(tenant_id=TENANT, subject=subject), metadata=token.identity)
    now = int(time.time())

    assert await verified(token, original.with_body(sub=subject, rev=seen, iat=now + 2)) == "REVOKED"
    assert await verified(token, original.with_body(sub=subject, rev=await token.revision(), iat=now - 30)) == "VALID"


@pytest.mark.parametrize("edit", [pytest.param({"roles": ["clerk"]}, id="A046-role"), pytest.param({"scope": "tokens.revoke"}, id="A046-scope")])
async def test_what_a_token_says_was_said_at_its_issue(token: TokenInstances, edit: dict[str, Any]) -> None:
    """Its claims, changed and encoded anew, are not ours any more."""
    text = (await token.issue(roles=["reader"])).access_token
    head, _, signature = text.split(".")
    forged = f"{head}.{b64(compact(changed(forgery.claims_of(text), edit)))}.{signature}"

    assert await verified(token, forged) == "BAD_SIGNATURE"
    answer = await token.stubs[0].VerifyToken(token_pb2.VerifyTokenRequest(token=text), metadata=token.identity)
    assert (list(answer.principal.roles), "tokens.revoke" in answer.principal.scopes) == (["reader"], False)


@pytest.mark.parametrize("secret", [pytest.param("KEY_ENCRYPTION_KEY", id="A053-another-key"), pytest.param("SECURITY_SALT", id="A053-another-salt")])
async def test_a_wrong_key_encryption_key_stops_start_up_and_makes_no_key(token: TokenInstances, stores: Stores, tmp_path: Path, secret: str) -> None:
    """An instance that made its own key in silence would sign what no other instance knows."""
    environment = {
        "DATABASE_URL": token.database_url,
        "REDIS_URL": stores.redis,
        "SECURITY_SALT": SALT,
        "SERVICE_KEY": token.keys.private["token"],
        "SERVICE_PUBLIC_KEYS": token.keys.public_json,
        "TOKEN_ISSUER": ISSUER,
        secret: base64.b64encode(os.urandom(32)).decode(),
    }
    before = await kids(token)

    with instance("services.token", environment=environment, log=tmp_path / "log") as (_, process):
        assert await asyncio.to_thread(process.wait, 20) == 1

    words = (tmp_path / "log").read_text()
    assert "cannot start: " in words
    assert "KEY_ENCRYPTION_KEY" in words
    assert "Traceback" not in words
    assert await kids(token) == before


async def kids(token: TokenInstances) -> list[str]:
    """Return the names in the ring."""
    connection = await asyncpg.connect(token.database_url)
    try:
        return [row["kid"] for row in await connection.fetch("SELECT kid FROM token.signing_key ORDER BY kid")]
    finally:
        await connection.close()
