"""Signing keys on real instances: made once, rotated without a gap, revoked everywhere. Numbers are reliability.md's cases."""

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from services.chassis.tenancy import DEFAULT_TENANT
from tests.conftest import ROOT, Keys, Stores, environment_of, eventually, free_port, instance, serving
from watchword import TokenVerifier, status
from watchword.errors import IdempotencyConflict, NotFound, PermissionDenied, PreconditionFailed, WatchwordError
from watchword.refusals import TokenRevoked
from watchword.token.v1 import key_pb2, key_pb2_grpc, token_pb2, token_pb2_grpc

ISSUER = "https://auth.test"
LOCK = "SELECT pg_advisory_lock(hashtext('watchword/token/signing_key'))"
LONG = 60.0 if os.environ.get("WATCHWORD_LONG") else 12.0  # seconds of rotation
FAST = {"JWT_ALGORITHM": "ES256", "JWKS_MAX_AGE": "0.5", "KEY_ROTATION_PERIOD": "2", "KEY_PROMOTION_LIMIT": "30"}
STILL = {"JWT_ALGORITHM": "ES256", "JWKS_MAX_AGE": "0.3", "KEY_ROTATION_PERIOD": "0"}


@dataclass
class Running:
    """One instance."""

    process: subprocess.Popen[bytes]
    tokens: "token_pb2_grpc.TokenServiceAsyncStub"
    keys: "key_pb2_grpc.KeyServiceAsyncStub"
    log: Path
    address: str


@dataclass
class Deployment:
    """A database, and the instances on it that the test starts and kills."""

    url: str
    environment: dict[str, str]
    service_keys: Keys
    home: Path
    stack: ExitStack
    running: list[Running] = field(default_factory=list)

    async def start(self, **settings: str) -> Running:
        """Start an instance, and wait until it serves."""
        log = self.home / f"{uuid4().hex}.log"
        address, process = self.stack.enter_context(instance("services.token", environment={**self.environment, **settings}, log=log))
        await serving(address, process, log)
        channel = grpc.aio.insecure_channel(address)
        started = Running(process, token_pb2_grpc.TokenServiceStub(channel), key_pb2_grpc.KeyServiceStub(channel), log, address)
        self.running.append(started)
        return started

    def refuses(self, **settings: str) -> str:
        """Start an instance that ends by itself; return what it says."""
        environment = {**os.environ, **self.environment, **settings, "GRPC_ADDRESS": f"127.0.0.1:{free_port()}", "PYTHONPATH": str(ROOT)}
        ended = subprocess.run([sys.executable, "-m", "services.token"], env=environment, capture_output=True, text=True, timeout=20, check=False)
        assert ended.returncode == 1, ended.stdout
        return ended.stderr

    async def kill(self, one: Running) -> None:
        """Kill an instance, as a power cut does. Its row in Postgres goes with it, as it would ten seconds later."""
        one.process.send_signal(signal.SIGKILL)
        await asyncio.to_thread(one.process.wait)
        self.running.remove(one)
        await self.execute("DELETE FROM token.instance")

    async def execute(self, sql: str) -> None:
        connection = await asyncpg.connect(self.url)
        await connection.execute(sql)
        await connection.close()

    async def ring(self) -> dict[str, str]:
        """Return the state of each key, oldest first; a published key that all hold is HELD."""
        connection = await asyncpg.connect(self.url)
        rows = await connection.fetch("SELECT kid, state, held_time FROM token.signing_key ORDER BY create_time")
        await connection.close()
        return {row["kid"]: "HELD" if row["state"] == "PUBLISHED" and row["held_time"] else row["state"] for row in rows}

    async def issue(self, at: Running, *scopes: str, tenant: str = str(DEFAULT_TENANT)) -> str:
        """Return a client's token."""
        request = token_pb2.IssueTokenRequest(
            tenant_id=tenant, type=token_pb2.PRINCIPAL_TYPE_CLIENT, subject=str(uuid4()), scopes=scopes or ["tokens.verify"], revision=2**40
        )
        answer = await at.tokens.IssueToken(request, metadata=self.service_keys.metadata("identity", to="token"))
        return str(answer.tokens.access_token)

    async def status(self, at: Running, token: str) -> str:
        """Return what an instance says of a token."""
        request = token_pb2.VerifyTokenRequest(token=token)
        answer = await at.tokens.VerifyToken(request, metadata=self.service_keys.metadata("identity", to="token"))
        return token_pb2.TokenStatus.Name(answer.status)

    async def as_manager(self, at: Running, **changes: Any) -> tuple[tuple[str, str], ...]:
        """Return the metadata of a client that may manage keys."""
        return (("authorization", f"Bearer {await self.issue(at, 'signing-keys.manage', **changes)}"),)

    async def rotate(self, at: Running) -> str:
        request = key_pb2.RotateSigningKeysRequest(request_id=str(uuid4()))
        return str((await at.keys.RotateSigningKeys(request, metadata=await self.as_manager(at))).key.key_id)


@asynccontextmanager
async def deployed(stores: Stores, keys: Keys, home: Path, **settings: str) -> AsyncIterator[Deployment]:
    url = await stores.new_database()
    environment = {
        **environment_of("token", url, stores, keys),
        "TOKEN_ISSUER": ISSUER,
        "AUTH_RATE_LIMIT_ENABLED": "false",
        "DRAIN_TIMEOUT": "0",
        **settings,
    }
    with ExitStack() as stack:
        yield Deployment(url, environment, keys, home, stack)


@pytest.fixture
async def still(stores: Stores, service_keys: Keys, tmp_path: Path) -> AsyncIterator[Deployment]:
    """No instance yet; keys change when asked."""
    async with deployed(stores, service_keys, tmp_path, **STILL) as deployment:
        yield deployment


def kid_of(token: str) -> str:
    head = token.partition(".")[0]
    return str(json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))["kid"])


async def jwks(at: Running) -> dict[str, Any]:
    """Return the key set of an instance, by kid."""
    return {key["kid"]: key for key in json.loads((await at.keys.GetJwks(key_pb2.GetJwksRequest())).data)["keys"]}


async def refusal(call: Any) -> WatchwordError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return status.decode(caught.value)


def pem() -> str:
    key = rsa.generate_private_key(65537, 2048)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


@dataclass
class Watched:
    """What everybody could see of the key sets while they changed: until when each kid was missing somewhere."""

    missing_until: dict[str, float] = field(default_factory=lambda: defaultdict(lambda: float("-inf")))
    polls: int = 0

    async def poll(self, at: Running, seen: set[str]) -> None:
        """Note which of all kids this instance does not publish. The question's start is the last instant at which it surely did not."""
        began = time.monotonic()
        published = set(await jwks(at))
        seen |= published
        self.polls += 1
        for kid in seen - published:
            self.missing_until[kid] = max(self.missing_until[kid], began)


async def test_keys_rotate_under_load_and_nobody_is_refused(stores: Stores, service_keys: Keys, tmp_path: Path) -> None:
    """F32, T22: rotation every two seconds on three instances, one of them without Redis. 60 s of it with WATCHWORD_LONG=1.

    Somebody presses for the next key all the while, so that each is promoted as soon as it may be, which the schedule alone would not show.
    """
    async with deployed(stores, service_keys, tmp_path, **FAST) as deployment:
        for redis in (stores.redis, stores.redis, f"redis://127.0.0.1:{free_port()}/0"):
            await deployment.start(REDIS_URL=redis)
        end = time.monotonic() + LONG
        watched, verified = [Watched() for _ in range(3)], 0
        refused: list[str] = []
        early: list[str] = []
        old: list[str] = []
        first: set[str] = {kid_of(await deployment.issue(deployment.running[0]))}
        signers: list[str] = [*first]
        seen: set[str] = set()

        async def watch(number: int) -> None:
            while time.monotonic() < end:
                await watched[number].poll(deployment.running[number], seen)
                await asyncio.sleep(0.01)

        async def use(number: int) -> None:
            nonlocal verified
            while time.monotonic() < end:
                token = await deployment.issue(deployment.running[number])
                done, kid = time.monotonic(), kid_of(token)
                if kid not in first and max(view.missing_until[kid] for view in watched) > done - 2 * float(FAST["JWKS_MAX_AGE"]):
                    early.append(kid)
                if kid not in signers:
                    signers.append(kid)
                    old.append(token)
                for one in [token, *old[-3:], old[0]] if old else [token]:
                    answers = [await deployment.status(at, one) for at in deployment.running]
                    refused.extend(answer for answer in answers if answer != "VALID")
                    verified += len(answers)

        async def press() -> None:
            while time.monotonic() < end:
                await deployment.rotate(deployment.running[len(signers) % 3])
                await asyncio.sleep(0.3)

        await asyncio.gather(press(), *(watch(number) for number in range(3)), *(use(number) for number in range(3)))

        ring = await deployment.ring()
        assert (refused, early) == ([], [])
        assert len(signers) >= LONG / 2 * 0.6  # it did rotate
        assert verified >= (10_000 if LONG >= 60 else 500)
        assert min(view.polls for view in watched) >= 5 * LONG
        assert list(ring.values()).count("ACTIVE") == 1
        assert set(signers) <= set(await jwks(deployment.running[0]))  # D10: every kid that ever signed a live token is published


async def test_two_instances_that_rotate_at_once_make_one_key(still: Deployment) -> None:
    """A056; and two that start at once make one first key."""
    one, two = await asyncio.gather(still.start(), still.start())
    assert list((await still.ring()).values()) == ["ACTIVE"]

    asked = await asyncio.gather(*(still.rotate(at) for at in (one, two) * 5))

    assert len(set(asked)) == 1
    assert len(await still.ring()) == 2
    await eventually(lambda: is_state(still, asked[0], "ACTIVE"), within=30)
    assert sorted((await still.ring()).values()) == ["ACTIVE", "RETIRING"]


async def is_state(deployment: Deployment, kid: str, state: str) -> bool:
    return (await deployment.ring()).get(kid) == state


async def says(one: Running, event: str) -> bool:
    return event in one.log.read_text()


async def coming(deployment: Deployment) -> int:
    return sum(state in ("PENDING", "PUBLISHED", "HELD") for state in (await deployment.ring()).values())


class Gate:
    """Holds the ring's lock, and lets through one change at a time."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def close(self) -> None:
        self._holder = await asyncpg.connect(self._url)
        await self._holder.execute(LOCK)

    async def open(self) -> None:
        await self._holder.close()

    async def let_one_through(self) -> None:
        """Postgres hands the lock on in the order of asking: to whoever waits now, and then to us again."""
        await eventually(lambda: self.waits(1))
        former, self._holder = self._holder, await asyncpg.connect(self._url)
        asking = asyncio.create_task(self._holder.execute(LOCK))
        try:
            await eventually(lambda: self.waits(2), within=0.5)  # fails when he who waited has given up: then nobody comes through
        except TimeoutError:
            pass
        finally:
            await former.close()
            await asking

    async def waits(self, count: int) -> bool:
        connection = await asyncpg.connect(self._url)
        waiting = await connection.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        await connection.close()
        return int(waiting) >= count


async def test_two_instances_that_saw_the_same_step_take_it_once(still: Deployment) -> None:
    """A056: both have made a key and wait for the lock; who comes second looks again, and keeps his to himself."""
    await still.kill(await still.start())
    gate = Gate(still.url)
    await gate.close()
    for _ in range(2):
        await still.start(KEY_ROTATION_PERIOD="1.2")

    await eventually(lambda: gate.waits(2))
    await gate.open()

    most = 0
    async with asyncio.timeout(40):
        while list((await still.ring()).values())[:1] != ["RETIRING"]:
            most = max(most, await coming(still))
    assert most == 1


async def test_a_rotation_killed_between_any_two_steps_goes_on(still: Deployment) -> None:
    """A057, D10: after each step the instance that took it is killed, and another goes on. Nothing is made twice, nothing signs too soon."""
    first = await still.start()
    token = await still.issue(first)
    await still.kill(first)
    gate = Gate(still.url)
    await gate.close()
    fast = {"KEY_ROTATION_PERIOD": "1.2"}
    steps = []

    for expected in ("PENDING", "PUBLISHED", "HELD", "ACTIVE"):
        running = await still.start(**fast)
        async with asyncio.timeout(40):
            while list((await still.ring()).values())[1:2] != [expected]:
                await gate.let_one_through()
        await still.kill(running)
        steps.append(list((await still.ring()).values()))

    await gate.open()
    last = await still.start()  # KEY_ROTATION_PERIOD is 0: nothing new is made
    assert steps == [["ACTIVE", "PENDING"], ["ACTIVE", "PUBLISHED"], ["ACTIVE", "HELD"], ["RETIRING", "ACTIVE"]]
    assert await still.status(last, token) == "VALID"
    assert kid_of(await still.issue(last)) == list(await still.ring())[1]
    assert list((await still.ring()).values()) == ["RETIRING", "ACTIVE"]

    await gate.close()
    await still.execute("UPDATE token.signing_key SET state_time = state_time - interval '2 hours' WHERE state = 'RETIRING'")
    async with asyncio.timeout(40):
        while "RETIRING" in (await still.ring()).values():
            await gate.let_one_through()
    await still.kill(last)
    await gate.open()

    again = await still.start()
    assert list((await still.ring()).values()) == ["RETIRED", "ACTIVE"]
    assert await still.status(again, token) == "UNKNOWN_KEY"


async def test_a_key_waits_for_a_verifier_elsewhere_that_has_not_reported_it(still: Deployment) -> None:
    """It would refuse the first tokens of that key. Once it has reported it, the key signs."""
    one = await still.start(KEY_PROMOTION_LIMIT="60")
    present = kid_of(await still.issue(one))
    watch = one.tokens.WatchRevocations(metadata=still.service_keys.metadata("identity", to="token"), timeout=60)
    await watch.write(token_pb2.WatchRevocationsRequest(key_ids=[present]))
    kid = await still.rotate(one)
    while True:
        told = await watch.read()
        assert isinstance(told, token_pb2.WatchRevocationsResponse)
        if kid in told.jwks:
            break
    for _ in range(3):  # it says what is held about every second, and looks at what is due more often
        await eventually(partial(has_said, still, await said_at(still)))
    assert (await still.ring())[kid] == "PUBLISHED"

    await watch.write(token_pb2.WatchRevocationsRequest(key_ids=[present, kid]))

    await eventually(lambda: is_state(still, kid, "ACTIVE"), within=20)
    watch.cancel()


async def said_at(deployment: Deployment) -> Any:
    connection = await asyncpg.connect(deployment.url)
    seen = await connection.fetchval("SELECT max(seen_time) FROM token.instance")
    await connection.close()
    return seen


async def has_said(deployment: Deployment, since: Any) -> bool:
    return bool(await said_at(deployment) > since)


async def test_a_key_waits_for_an_instance_that_does_not_hold_it(still: Deployment) -> None:
    """A published key signs nothing while some instance may refuse its tokens; beyond the limit it does, and that is said."""
    one = await still.start(KEY_PROMOTION_LIMIT="2")
    silent = (
        "INSERT INTO token.instance (id, name, mode, version, seen_time) VALUES (gen_random_uuid(), 'silent', 'leased', 1, now() + interval '1 h')"
    )
    await still.execute(silent)

    kid = await still.rotate(one)
    began = time.monotonic()
    assert kid in await jwks(one)

    await eventually(lambda: is_state(still, kid, "ACTIVE"), within=30)
    assert time.monotonic() - began > 2
    await eventually(lambda: says(one, "key_promoted_before_all_reported"))


async def test_a_key_does_not_wait_for_guests(still: Deployment) -> None:
    """Instances of rbac and identity have rows there too; they verify with no key."""
    one = await still.start()
    row = "(gen_random_uuid(), 'rbac', 'leased', 1, now() + interval '1 h', true)"
    await still.execute(f"INSERT INTO token.instance (id, name, mode, version, seen_time, guest) VALUES {row}")

    kid = await still.rotate(one)

    await eventually(lambda: is_state(still, kid, "ACTIVE"), within=30)


@pytest.mark.timeout(600 if os.environ.get("WATCHWORD_LONG") else 120)
async def test_a_revoked_key_is_refused_everywhere_when_the_call_returns(still: Deployment) -> None:
    """A058: with a successor at once, which every instance knows already when it signs first."""
    one, two, cut_off = await still.start(), await still.start(), await still.start(REDIS_URL=f"redis://127.0.0.1:{free_port()}/0")
    everywhere = (one, two, cut_off)
    for round_number in range(100 if os.environ.get("WATCHWORD_LONG") else 6):
        token = await still.issue(everywhere[round_number % 3])
        kid = kid_of(token)
        assert [await still.status(at, token) for at in everywhere] == ["VALID"] * 3
        request = key_pb2.RevokeSigningKeyRequest(key_id=kid, request_id=str(uuid4()))
        by = everywhere[round_number % 2]

        answer = await by.keys.RevokeSigningKey(request, metadata=await still.as_manager(by))

        refusals = await asyncio.gather(*(still.status(at, token) for at in everywhere))
        assert set(refusals) <= {"REVOKED", "UNKNOWN_KEY"}
        assert kid not in {**await jwks(one), **await jwks(two)}
        assert (answer.key.state, answer.key.revoked) == (key_pb2.RETIRED, True)
        fresh = [await still.issue(at) for at in (one, two)]
        assert kid not in {kid_of(token) for token in fresh}
        assert [await still.status(at, token) for token in fresh for at in (one, two)] == ["VALID"] * 4
        await eventually(partial(verifies, still, cut_off, fresh[0]))
        await eventually(partial(signs_with_another, still, cut_off, kid))


ALGORITHMS = ["PS256", "RS256", "ES256", "Ed25519"] if os.environ.get("WATCHWORD_LONG") else ["PS256"]  # the others sign in other tests


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_what_is_signed_by_any_algorithm_is_verified_everywhere(still: Deployment, algorithm: str) -> None:
    """Signed at one instance; verified at another, by the key set that anybody may read, and by a verifier in another process."""
    one, two = await still.start(JWT_ALGORITHM=algorithm), await still.start(JWT_ALGORITHM=algorithm)
    token = await still.issue(one)
    kid = kid_of(token)

    assert [await still.status(at, token) for at in (one, two)] == ["VALID"] * 2
    assert (await jwks(two))[kid]["alg"] == algorithm
    async with TokenVerifier(two.address, credentials=partial(still.issue, two, "tokens.verify"), issuer=ISSUER) as verifier:
        assert verifier.verify(token).subject
        await one.tokens.RevokeToken(token_pb2.RevokeTokenRequest(token=token), metadata=still.service_keys.metadata("identity", to="token"))

        async def is_refused() -> bool:
            try:
                verifier.verify(token)
            except TokenRevoked:
                return True
            return False

        await eventually(is_refused)


async def verifies(deployment: Deployment, at: Running, token: str) -> bool:
    return await deployment.status(at, token) == "VALID"


async def signs_with_another(deployment: Deployment, at: Running, kid: str) -> bool:
    try:
        return kid_of(await deployment.issue(at)) != kid
    except grpc.aio.AioRpcError:
        return False


async def test_nobody_can_rotate_until_the_key_set_is_too_large(still: Deployment) -> None:
    """Whoever verifies elsewhere refuses a set of more than a hundred."""
    one = await still.start()
    retiring = "INSERT INTO token.signing_key (kid, algorithm, state, public_pem, sealed_private, create_time, state_time)"
    copied = "SELECT 'old-' || n, algorithm, 'RETIRING', public_pem || repeat(' ', n), sealed_private, create_time, now() FROM token.signing_key"
    active = kid_of(await still.issue(one))
    manager = await still.as_manager(one)
    await still.execute(f"{retiring} {copied}, generate_series(1, 89) AS n WHERE state = 'ACTIVE'")

    refused = await refusal(one.keys.RotateSigningKeys(key_pb2.RotateSigningKeysRequest(request_id=str(uuid4())), metadata=manager))

    assert isinstance(refused, PreconditionFailed)
    await still.execute("DELETE FROM token.signing_key WHERE kid LIKE 'old-%'")
    assert kid_of(await still.issue(one)) == active


async def test_a_revoked_key_does_not_come_back(still: Deployment) -> None:
    """Its private part may be in a thief's hands: neither a restart with the same environment nor another name revives it."""
    given = {"JWT_ALGORITHM": "RS256", "JWT_PRIVATE_KEY": pem(), "JWT_KEY_ID": "stolen"}
    one = await still.start(**given)
    token = await still.issue(one)
    assert kid_of(token) == "stolen"
    await one.keys.RevokeSigningKey(key_pb2.RevokeSigningKeyRequest(key_id="stolen"), metadata=await still.as_manager(one))

    again = await still.start(**given)

    assert kid_of(await still.issue(again)) != "stolen"
    assert await still.status(again, token) in ("REVOKED", "UNKNOWN_KEY")
    assert "environment_key_is_retired" in again.log.read_text()
    assert "under the JWT_KEY_ID stolen" in still.refuses(**{**given, "JWT_KEY_ID": "innocent"})
    connection = await asyncpg.connect(still.url)
    assert await connection.fetchval("SELECT length(sealed_private) FROM token.signing_key WHERE kid = 'stolen'") == 0
    await connection.close()


async def test_a_new_key_of_the_environment_is_published_before_it_signs(still: Deployment) -> None:
    """A new JWT_KEY_ID, as in a rolling restart: instances that have the old one still verify, and sign on with it."""
    old = {"JWT_ALGORITHM": "RS256", "JWT_PRIVATE_KEY": pem(), "JWT_KEY_ID": "old"}
    one = await still.start(**old)
    assert kid_of(await still.issue(one)) == "old"

    two = await still.start(**{**old, "JWT_PRIVATE_KEY": pem(), "JWT_KEY_ID": "new"})

    assert set(await jwks(two)) == {"old", "new"}
    assert kid_of(await still.issue(two)) == "old"
    await eventually(lambda: is_state(still, "new", "ACTIVE"), within=30)
    await eventually(lambda: signs_with_another(still, one, "old"))
    assert await still.status(two, await still.issue(one)) == "VALID"
    assert "already names another key" in still.refuses(**{**old, "JWT_PRIVATE_KEY": pem()})
    assert "a key has one algorithm" in still.refuses(**{**old, "JWT_ALGORITHM": "PS256"})


async def test_a_wrong_key_encryption_key_ends_the_start_and_makes_no_key(still: Deployment) -> None:
    """A053; and the way to change it is to give both."""
    first, second = (base64.b64encode(os.urandom(32)).decode() for _ in range(2))
    await still.start(KEY_ENCRYPTION_KEY=first)
    before = await still.ring()

    assert "KEY_ENCRYPTION_KEY" in still.refuses(KEY_ENCRYPTION_KEY=second)
    assert await still.ring() == before
    await still.start(KEY_ENCRYPTION_KEY=f"{second},{first}")
    await still.start(KEY_ENCRYPTION_KEY=second)

    assert await still.ring() == before
    assert "KEY_ENCRYPTION_KEY" in still.refuses(KEY_ENCRYPTION_KEY=first)


async def test_a_key_file_that_others_can_read_is_refused(still: Deployment, tmp_path: Path) -> None:
    """A052."""
    file = tmp_path / "key.pem"
    file.write_text(pem())
    file.chmod(0o644)
    given = {"JWT_ALGORITHM": "RS256", "JWT_PRIVATE_KEY_FILE": str(file), "JWT_KEY_ID": "filed"}

    assert "JWT_PRIVATE_KEY_FILE" in still.refuses(**given)
    allowed = await still.start(**given, ALLOW_OPEN_KEY_FILE="true")
    assert "key_file_open" in allowed.log.read_text()
    file.chmod(0o640)
    private = await still.start(**given)
    assert "key_file_open" not in private.log.read_text()


async def test_a_thousand_unknown_kids_do_not_burden_postgres(still: Deployment) -> None:
    """A054: an instance looks at the ring once a second anyway, and no kid makes it look more often."""
    one = await still.start(JWKS_MAX_AGE="300")
    _, body, signature = (await still.issue(one)).split(".")

    async def ask(worker: int) -> set[str]:
        answers = set()
        for number in range(250):
            head = json.dumps({"alg": "ES256", "kid": f"kid-{worker}-{number}", "typ": "at+jwt"}).encode()
            answers.add(await still.status(one, f"{base64.urlsafe_b64encode(head).rstrip(b'=').decode()}.{body}.{signature}"))
        return answers

    began = time.monotonic()
    answers = await asyncio.gather(*(ask(worker) for worker in range(4)))

    assert answers == [{"UNKNOWN_KEY"}] * 4
    await asyncio.sleep(0.9)  # Postgres counts a moment later
    at_start = 25  # the same statement reads the ring when an instance starts and makes its first key
    assert await scans(still) <= at_start + 2 * (time.monotonic() - began)


async def scans(deployment: Deployment) -> int:
    """Return how often the table of keys was read."""
    connection = await asyncpg.connect(deployment.url)
    count = await connection.fetchval("SELECT seq_scan + coalesce(idx_scan, 0) FROM pg_stat_user_tables WHERE relname = 'signing_key'")
    await connection.close()
    return int(count)


async def test_the_key_set_is_served_from_memory_and_says_how_long_it_keeps(still: Deployment) -> None:
    """A055, A049: 5,000 requests while the table is locked away; private members are never in it."""
    one = await still.start(JWKS_MAX_AGE="300")
    call = one.keys.GetJwks(key_pb2.GetJwksRequest())
    full, headers = await call, dict(await call.initial_metadata())
    etag = str(headers["etag"])
    locker = await asyncpg.connect(still.url)
    transaction = locker.transaction()
    await transaction.start()
    await locker.execute("LOCK TABLE token.signing_key, token.revocation, token.session IN ACCESS EXCLUSIVE MODE")

    for _ in range(50):
        answers = await asyncio.gather(*(one.keys.GetJwks(key_pb2.GetJwksRequest()) for _ in range(100)))
        assert {answer.data for answer in answers} == {full.data}
    await transaction.rollback()
    await locker.close()

    assert headers["cache-control"] == "public, max-age=300"
    for tag in (etag, f"W/{etag}", f'"other", {etag}'):
        unchanged = one.keys.GetJwks(key_pb2.GetJwksRequest(), metadata=(("if-none-match", tag),))
        assert (await unchanged).data == b""
        assert dict(await unchanged.initial_metadata())["x-http-status"] == "304"
    for key in json.loads(full.data)["keys"]:
        assert not {"d", "p", "q", "dp", "dq", "qi", "k"} & set(key)
        assert (key["use"], key["alg"]) == ("sig", "ES256")


async def test_only_clients_of_the_default_tenant_manage_keys(still: Deployment) -> None:
    """They sign for everybody."""
    one = await still.start()
    stranger = await still.as_manager(one, tenant=str(uuid4()))
    powerless = (("authorization", f"Bearer {await still.issue(one, 'tokens.verify')}"),)

    for who in (stranger, powerless):
        assert isinstance(await refusal(one.keys.ListSigningKeys(key_pb2.ListSigningKeysRequest(), metadata=who)), PermissionDenied)
        assert isinstance(await refusal(one.keys.RotateSigningKeys(key_pb2.RotateSigningKeysRequest(), metadata=who)), PermissionDenied)
        assert isinstance(await refusal(one.keys.RevokeSigningKey(key_pb2.RevokeSigningKeyRequest(key_id="x"), metadata=who)), PermissionDenied)
    assert list((await still.ring()).values()) == ["ACTIVE"]


async def test_keys_are_listed_and_changes_are_made_once(still: Deployment) -> None:
    """A repeat with the same request_id causes nothing, and everything is audited."""
    one = await still.start(JWKS_MAX_AGE="300")
    manager = await still.as_manager(one)
    request = key_pb2.RotateSigningKeysRequest(request_id=str(uuid4()))

    answers = [(await one.keys.RotateSigningKeys(request, metadata=manager)).key for _ in range(2)]
    revoke = key_pb2.RevokeSigningKeyRequest(key_id=answers[0].key_id, request_id=str(uuid4()))
    revoked = [(await one.keys.RevokeSigningKey(revoke, metadata=manager)).key for _ in range(2)]
    other = key_pb2.RevokeSigningKeyRequest(key_id="other", request_id=revoke.request_id)

    assert answers[0] == answers[1]
    assert answers[0].state == key_pb2.PUBLISHED
    assert revoked[0] == revoked[1]
    assert isinstance(await refusal(one.keys.RevokeSigningKey(other, metadata=manager)), IdempotencyConflict)
    unknown = key_pb2.RevokeSigningKeyRequest(key_id="nobody")
    assert isinstance(await refusal(one.keys.RevokeSigningKey(unknown, metadata=manager)), NotFound)
    listed = (await one.keys.ListSigningKeys(key_pb2.ListSigningKeysRequest(), metadata=manager)).keys
    assert [(key.state, key.revoked) for key in listed] == [(key_pb2.ACTIVE, False), (key_pb2.RETIRED, True)]
    connection = await asyncpg.connect(still.url)
    rows = await connection.fetch("SELECT type, actor_type FROM suite.audit_event WHERE target_type = 'signing_key' ORDER BY id")
    await connection.close()
    assert [(row["type"].removeprefix("signing_key_"), row["actor_type"]) for row in rows] == [
        *((step, "service") for step in ("made", "published", "activated")),
        *((step, "client") for step in ("made", "published", "revoked")),
    ]
