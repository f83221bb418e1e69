"""The promise: after a revoking call has answered, no instance accepts; and while the lease lives, none asks Postgres."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import asyncpg
import pytest
import redis.asyncio as aioredis

from services import embedded
from services.chassis import coherence as membership
from services.chassis import coherent as assembly
from services.chassis import lease_log as log_module
from services.chassis.coherence import Coherence
from services.chassis.coherent import coherent
from services.chassis.lease_log import AT_ONCE, LOG_LENGTH, Entry, Grant, LeaseLog, Standing
from services.chassis.outbox import BATCH
from services.chassis.postgres import Database, Posted
from services.chassis.redis import Redis
from services.chassis.settings import ChassisSettings, load
from services.chassis.tenancy import DEFAULT_TENANT
from services.token import notices
from services.token.feed import Feed, Place
from services.token.revocations import Revocation, RevokedKind
from services.token.revoked import Revoked
from services.token.store.revocations import ENDED_AT_ONCE
from tests.conftest import SALT, Keys, Stores, eventually, free_port, process
from tests.service.chassis.fault_proxy import FaultProxy
from tests.service.token.conftest import TENANT, TokenInstances
from watchword.token.v1 import token_pb2

ROUNDS = 12_000 if os.environ.get("WATCHWORD_LONG") else 480
Revoke = Callable[[TokenInstances, token_pb2.TokenSet, str, int], Awaitable[object]]


async def tokens_are(token: TokenInstances, text: str) -> list[str]:
    """Return what each instance says of a token, asked all at once."""
    return list(await asyncio.gather(*(token.status(text, at=at) for at in range(len(token.stubs)))))


async def warm(token: TokenInstances) -> None:
    """Wait until every instance answers from memory."""

    async def leased() -> bool:
        connection = await asyncpg.connect(token.database_url)
        try:
            alive = "SELECT count(*) FROM token.instance WHERE mode = 'leased' AND seen_time > clock_timestamp() - interval '3 seconds'"
            return bool(await connection.fetchval(alive) >= len(token.stubs))
        finally:
            await connection.close()

    await eventually(leased)


async def by_token(token: TokenInstances, tokens: token_pb2.TokenSet, _subject: str, at: int) -> object:
    return await token.stubs[at].RevokeToken(token_pb2.RevokeTokenRequest(token=tokens.access_token), metadata=token.identity)


async def by_refresh_token(token: TokenInstances, tokens: token_pb2.TokenSet, _subject: str, at: int) -> object:
    return await token.stubs[at].RevokeToken(token_pb2.RevokeTokenRequest(token=tokens.refresh_token), metadata=token.identity)


async def by_session(token: TokenInstances, tokens: token_pb2.TokenSet, _subject: str, at: int) -> object:
    request = token_pb2.RevokeTokensRequest(tenant_id=TENANT, session_id=tokens.session_id)
    return await token.stubs[at].RevokeTokens(request, metadata=token.identity)


async def by_subject(token: TokenInstances, _tokens: token_pb2.TokenSet, subject: str, at: int) -> object:
    return await token.stubs[at].RevokeTokens(token_pb2.RevokeTokensRequest(tenant_id=TENANT, subject=subject), metadata=token.identity)


async def by_client(token: TokenInstances, _tokens: token_pb2.TokenSet, client: str, at: int) -> object:
    return await token.stubs[at].RevokeTokens(token_pb2.RevokeTokensRequest(tenant_id=TENANT, client_id=client), metadata=token.identity)


async def by_tenant(token: TokenInstances, _tokens: token_pb2.TokenSet, tenant: str, at: int) -> object:
    return await token.stubs[at].RevokeTokens(token_pb2.RevokeTokensRequest(tenant_id=tenant, all_of_tenant=True), metadata=token.identity)


async def by_time(token: TokenInstances, _tokens: token_pb2.TokenSet, subject: str, at: int) -> object:
    request = token_pb2.RevokeTokensRequest(tenant_id=TENANT, subject=subject)
    request.issued_before.FromDatetime(datetime.now(UTC))
    return await token.stubs[at].RevokeTokens(request, metadata=token.identity)


@pytest.mark.timeout(120 + ROUNDS // 20)
@pytest.mark.parametrize(
    ("revoke", "of"),
    [(by_token, ""), (by_refresh_token, ""), (by_session, ""), (by_subject, "subject"), (by_client, "client_id"), (by_tenant, "tenant_id")],
)
async def test_after_the_answer_no_instance_accepts(token: TokenInstances, revoke: Revoke, of: str) -> None:
    """The headline: warmed on all instances, revoked at one, asked at all at once."""
    await warm(token)
    accepted = []

    for number in range(ROUNDS // 6):
        subject = str(uuid4())
        named: dict[str, Any] = {of: subject} if of else {}
        if of == "tenant_id":
            named["revision"] = 0
        tokens = await token.issue(**named)
        assert await tokens_are(token, tokens.access_token) == ["VALID"] * 3
        await revoke(token, tokens, subject, number % 3)
        if await tokens_are(token, tokens.access_token) != ["REVOKED"] * 3:
            accepted.append(number)

    assert accepted == []


async def test_a_revocation_by_time_refuses_what_was_issued_before_it(token: TokenInstances) -> None:
    """Whole seconds are what a token knows of its time of issue."""
    subject = str(uuid4())
    tokens = await token.issue(subject=subject)
    await asyncio.gather(*(token.status(tokens.access_token, at=at) for at in range(3)))

    async def revoked() -> bool:
        await by_time(token, tokens, subject, 0)
        return await tokens_are(token, tokens.access_token) == ["REVOKED"] * 3

    await eventually(revoked, within=3)


@pytest.mark.timeout(120 + ROUNDS // 20)
async def test_after_a_revocation_by_time_no_instance_accepts(token: TokenInstances) -> None:
    """Of tokens that are a second older, one after another."""
    await warm(token)
    subjects = [str(uuid4()) for _ in range(ROUNDS // 20)]
    issued = [await token.issue(subject=subject) for subject in subjects]
    over = int(time.time()) + 1
    await eventually(lambda: _is_past(over))
    accepted = []

    for number, (subject, tokens) in enumerate(zip(subjects, issued, strict=True)):
        assert await tokens_are(token, tokens.access_token) == ["VALID"] * 3
        await by_time(token, tokens, subject, number % 3)
        if await tokens_are(token, tokens.access_token) != ["REVOKED"] * 3:
            accepted.append(number)

    assert accepted == []


async def _is_past(seconds: float) -> bool:
    return time.time() >= seconds


async def test_a_session_outlives_the_revocation_of_one_of_its_tokens(token: TokenInstances) -> None:
    """A075: who revokes an access token takes that, and no more: the next one is good."""
    tokens = await token.issue()
    await by_token(token, tokens, "", 0)

    request = token_pb2.RefreshTokenRequest(refresh_token=tokens.refresh_token, revision=await token.revision())
    refreshed = (await token.stubs[1].RefreshToken(request, metadata=token.identity)).tokens

    assert await tokens_are(token, tokens.access_token) == ["REVOKED"] * 3
    assert await tokens_are(token, refreshed.access_token) == ["VALID"] * 3


async def test_a_tenant_can_be_revoked_whole(token: TokenInstances) -> None:
    """Whoever logs in afterwards is let in again."""
    tenant = str(uuid4())
    tokens = await token.issue(tenant_id=tenant, revision=0)
    assert await tokens_are(token, tokens.access_token) == ["VALID"] * 3

    request = token_pb2.RevokeTokensRequest(tenant_id=tenant, all_of_tenant=True)
    await token.stubs[1].RevokeTokens(request, metadata=token.identity)

    assert await tokens_are(token, tokens.access_token) == ["REVOKED"] * 3
    later = await token.issue(tenant_id=tenant, revision=1)
    assert await tokens_are(token, later.access_token) == ["VALID"] * 3


SESSIONS = """
    INSERT INTO token.session
        (id, tenant_id, subject, kind, scopes, audience, acr, address, user_agent, auth_time, create_time, last_used_time, expire_time)
    SELECT gen_random_uuid(), $1, gen_random_uuid(), 'user', '{}', '', '', '', '',
           now(), now() - interval '2 days', now() - $3::interval, now() + interval '1 day'
    FROM generate_series(1, $2)
"""


async def test_a_tenant_of_many_sessions_can_be_revoked_whole(token: TokenInstances) -> None:
    """The more it has, the more it matters. By one statement it took longer than a statement may, and nothing was revoked, however often.

    Nor by one that Postgres has planned for a table of few sessions: it keeps that plan once it has seen a statement some times.
    """
    tenant = uuid4()
    before = datetime.now(UTC) - timedelta(minutes=1)
    connection = await asyncpg.connect(token.database_url)

    async def revoke(whole: UUID) -> None:
        request = token_pb2.RevokeTokensRequest(tenant_id=str(whole), all_of_tenant=True)
        request.issued_before.FromDatetime(before)
        await token.stubs[1].RevokeTokens(request, metadata=token.identity, timeout=25)

    try:
        for small in (uuid4() for _ in range(30)):
            await connection.execute(SESSIONS, small, 1, timedelta())
            await revoke(small)
        await connection.execute(SESSIONS, tenant, ENDED_AT_ONCE + 1000, timedelta(days=1))
        await connection.execute(SESSIONS, tenant, 20, timedelta())  # used since: their access tokens may be of any time
        await revoke(tenant)

        assert await connection.fetchval("SELECT count(*) FROM token.session WHERE tenant_id = $1 AND end_time IS NULL", tenant) == 0
        told = await connection.fetchval("SELECT count(*) FROM token.revocation WHERE tenant_id = $1 AND kind = 'session'", tenant)
        assert told == 20
    finally:
        await connection.close()


async def test_a_verification_asks_nobody_while_the_lease_lives(token: TokenInstances) -> None:
    """Memory speed: with the tables of token locked away, whoever asks Postgres waits for the lock; tokens old and new are verified all the same."""
    await warm(token)
    seen, unseen = [[(await token.issue()).access_token for _ in range(20)] for _ in range(2)]
    assert {await token.status(text, at=at) for text in seen for at in range(3)} == {"VALID"}
    connection = await asyncpg.connect(token.database_url)
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE token.revocation, token.signing_key, token.session IN ACCESS EXCLUSIVE MODE")

            async with asyncio.timeout(5):
                statuses = [await token.status(text, at=at) for text in (*seen, *unseen) for at in range(3)]

        assert statuses == ["VALID"] * 120
    finally:
        await connection.close()


async def test_a_revocation_that_nobody_was_told_of_is_passed_on(token: TokenInstances) -> None:
    """A writer that dies between its commit and the log leaves the change in the outbox; a relay finds it."""
    await warm(token)
    tokens = await token.issue()
    assert await tokens_are(token, tokens.access_token) == ["VALID"] * 3
    payload = (
        f'{{"type":"revocation","tenant_id":"{DEFAULT_TENANT}","kind":"session","key":"{UUID(tokens.session_id)}","revision":1,'
        f'"expire_time":"{(datetime.now(UTC) + timedelta(hours=1)).isoformat()}"}}'
    )
    connection = await asyncpg.connect(token.database_url)
    try:
        await connection.execute("INSERT INTO token.change (takes_away, payload) VALUES (true, $1)", payload)

        async def refused() -> bool:
            return await tokens_are(token, tokens.access_token) == ["REVOKED"] * 3

        await eventually(refused, within=5)

        async def struck_off() -> bool:
            return bool(await connection.fetchval("SELECT count(*) FROM token.change") == 0)

        await eventually(struck_off, within=5)
    finally:
        await connection.close()


# One member in this process, whose memory the tests can look into.


UNREADABLE = "unreadable"


class Heard:
    """A memory that keeps what it was told, and whose loading a test can hold."""

    def __init__(self) -> None:
        self.loads = 0
        self.changes: list[str] = []
        self.may_load = asyncio.Event()
        self.may_load.set()

    async def load(self) -> None:
        self.loads += 1
        await self.may_load.wait()

    def apply(self, change: str) -> None:
        if change == UNREADABLE:
            raise ValueError
        self.changes.append(change)


@dataclass
class Member:
    """A member, its memory, its wire to Postgres, and its log in Redis as a stranger reaches it."""

    coherence: Coherence
    memory: Heard
    database: Database
    postgres: FaultProxy
    log: LeaseLog

    async def is_current(self) -> bool:
        return self.coherence.is_current

    async def has_heard(self) -> bool:
        return bool(self.memory.changes)

    async def is_loading(self) -> bool:
        return self.memory.loads > 1

    async def is_waited_for(self) -> bool:
        return self.coherence.instance in (await self.log.standing()).leases


@asynccontextmanager
async def member(stores: Stores, keys: Keys, *, redis_url: str = "") -> AsyncIterator[Member]:
    """Be the only member of a new deployment while inside, with the Redis of the tests or one of its own."""
    url, memory = await stores.new_database(), Heard()
    parts = urlsplit(url)
    async with FaultProxy.before("127.0.0.1", parts.port or 0) as postgres:
        settings = load(
            ChassisSettings,
            {
                "DATABASE_URL": url.replace(f":{parts.port}/", f":{postgres.port}/"),
                "REDIS_URL": redis_url or stores.redis,
                "SECURITY_SALT": SALT,
                "SERVICE_KEY": keys.private["token"],
                "SERVICE_PUBLIC_KEYS": keys.public_json,
            },
        )
        async with Redis.open(settings) as redis, Database.open(settings, "token") as database, coherent(settings, database, memory) as coherence:
            row = await database.fetch_row("SELECT id FROM suite.deployment")
            assert row is not None
            yield Member(coherence, memory, database, postgres, LeaseLog(redis, f"token:{row['id']}"))


async def test_a_row_that_is_refreshed_too_late_makes_its_instance_join_anew(
    stores: Stores, service_keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writers without Redis did not wait for it any more, so what they took away may be missing here: only a snapshot brings it."""
    monkeypatch.setattr(membership, "REGISTERED_FOR", 0.5)
    monkeypatch.setattr(membership, "REGISTER_EVERY", 0.1)
    async with member(stores, service_keys) as one:
        await eventually(one.is_current)
        loads = one.memory.loads

        one.postgres.freeze()
        await eventually(lambda: _not(one.is_current))
        await one.postgres.restore()
        await eventually(one.is_current)

        assert one.memory.loads == loads + 1


@pytest.mark.parametrize(
    ("breaks", "mends", "refusal"),
    [
        (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE"), "READONLY"),
        (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0"), "OOM"),
    ],
    ids=["replica", "full"],
)
async def test_nothing_is_loaded_where_no_lease_can_be_had(
    stores: Stores, service_keys: Keys, tmp_path: Path, breaks: tuple[str, ...], mends: tuple[str, ...], refusal: str
) -> None:
    """A Redis that reads and does not write would have every instance load all of its memory, several times a second, for nothing."""
    url = f"redis://127.0.0.1:{(port := free_port())}"
    valkey = [str(embedded.valkey_binary()), "--port", str(port), "--save", "", "--dir", str(tmp_path)]
    async with AsyncExitStack() as stack:
        stack.enter_context(process(valkey, log=tmp_path / "valkey.log"))
        redis: Any = await stack.enter_async_context(aioredis.Redis.from_url(url))

        async def refusals() -> int:
            return int((await redis.info("errorstats")).get(f"errorstat_{refusal}", {"count": 0})["count"])

        async def refused_again() -> bool:
            return await refusals() > before + 10

        one = await stack.enter_async_context(member(stores, service_keys, redis_url=url))
        await eventually(one.is_current)
        await redis.execute_command(*breaks)
        await eventually(lambda: _not(one.is_current))
        before = await refusals()
        await eventually(refused_again, within=20)

        assert one.memory.loads == 1
        assert not one.coherence.is_current
        await redis.execute_command(*mends)
        await eventually(one.is_current)
        assert one.memory.loads == 2


async def _not(question: Callable[[], Awaitable[bool]]) -> bool:
    return not await question()


class Busy(LeaseLog):
    """A log to which somebody adds a change before each look at a lease: there is never nothing left to apply."""

    async def renew(self, instance: str, epoch: str, applied: int) -> Standing:
        await self.publish(["change"])
        return await super().renew(instance, epoch, applied)


async def test_an_instance_joins_while_others_write_without_pause(stores: Stores, service_keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the busiest hour is when an instance that lost its lease never gets another."""
    monkeypatch.setattr(assembly, "LeaseLog", Busy)
    async with member(stores, service_keys) as one:
        await eventually(one.is_current, within=3)

        assert one.memory.loads == 1


class Held(LeaseLog):
    """A busy log that hands out nothing, once it has granted a lease, until it is told to."""

    may_read = asyncio.Event()
    has_granted = False

    async def renew(self, instance: str, epoch: str, applied: int) -> Standing:
        if not self.has_granted:
            await self.publish(["revocation"])
        standing = await super().renew(instance, epoch, applied)
        self.has_granted = self.has_granted or standing.grant is not Grant.REFUSED
        return standing

    async def read(self, after: int, *, wait: float) -> list[Entry]:
        if self.has_granted:
            await self.may_read.wait()
        return await super().read(after, wait=wait)


async def test_who_lags_when_it_gets_its_lease_is_waited_for_and_does_not_believe_its_memory(
    stores: Stores, service_keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waited for it when the change was written; so until it has applied that, memory must not answer."""
    monkeypatch.setattr(assembly, "LeaseLog", Held)
    async with member(stores, service_keys) as one:
        await eventually(one.is_waited_for)
        assert one.memory.changes == []
        assert not one.coherence.is_current

        Held.may_read.set()
        await eventually(one.is_current)

        assert one.memory.changes == ["revocation"]


async def test_a_repeat_is_answered_when_its_change_is_known_however_many_wait_before_it(stores: Stores, service_keys: Keys) -> None:
    """The writer died after its commit, and after a long time without Redis the outbox is long: its oldest part is not the whole."""
    async with member(stores, service_keys) as one:
        await eventually(one.is_current)
        await _post(one, BATCH + 1)

        assert one.database._spreader is not None
        await one.database._spreader.settle(budget=5)

        assert str(BATCH + 1) in one.memory.changes


async def _post(one: Member, count: int) -> None:
    """Leave so many changes to be passed on, as others do who die or whose Redis is away."""
    await one.database.execute("INSERT INTO change (takes_away, payload) SELECT true, n::text FROM generate_series(1, $1::int) n", count)


class Sizes(LeaseLog):
    """A log that notes how much is written and read at once."""

    written: list[int]
    read_: list[int]

    async def publish(self, changes: Sequence[str]) -> Standing:
        self.written.append(len(changes))
        return await super().publish(changes)

    async def read(self, after: int, *, wait: float) -> list[Entry]:
        entries = await super().read(after, wait=wait)
        self.read_.append(len(entries))
        return entries


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> type[Sizes]:
    """The log of the members of this test."""
    Sizes.written, Sizes.read_ = [], []
    monkeypatch.setattr(assembly, "LeaseLog", Sizes)
    return Sizes


async def test_more_is_left_over_than_the_log_holds_and_nobody_loads_in_vain(stores: Stores, service_keys: Keys) -> None:
    """After a long time without Redis. Who noted its place before, and then put all of that into the log, had lost its place when it had loaded."""
    async with member(stores, service_keys) as one:
        await eventually(one.is_current)
        await _post(one, 2 * LOG_LENGTH)
        await one.log.publish([UNREADABLE])  # it joins anew

        await eventually(lambda: _not(one.is_current))
        await eventually(one.is_current, within=20)

        assert one.memory.loads == 2
        assert await one.database.fetch("SELECT 1 FROM change OFFSET 2000") == []


async def test_who_is_far_behind_catches_up_piece_by_piece_and_keeps_its_lease(
    stores: Stores, service_keys: Keys, sizes: type[Sizes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten thousand changes in one piece would hold up every call; and who renewed after each piece would seem to be stuck."""
    monkeypatch.setattr(membership, "AT_ONCE", 100)
    monkeypatch.setattr(log_module, "AT_ONCE", 100)
    async with member(stores, service_keys) as one:
        await eventually(one.is_current)
        await one.log.publish(["change"] * 550)  # in one step, between two renewals

        async def has_all() -> bool:
            return len(one.memory.changes) == 550

        await eventually(has_all)
        await eventually(one.is_current)
        assert one.memory.loads == 1
        assert max(sizes.read_) == 100


async def test_changes_of_many_calls_go_to_the_log_a_thousand_at_a_time(stores: Stores, service_keys: Keys, sizes: type[Sizes]) -> None:
    """A script of ten thousand takes longer than a command may, is given up, and is sent again."""
    async with member(stores, service_keys) as one:
        await eventually(one.is_current)
        await _post(one, 2700)
        rows = await one.database.fetch("SELECT id, payload, takes_away FROM change ORDER BY id")
        posted = [Posted(*row) for row in rows]
        spreader = one.database._spreader
        assert spreader is not None

        await asyncio.gather(*(spreader.spread(posted[at : at + 900], budget=5) for at in range(0, 2700, 900)))

        assert 0 < max(sizes.written) <= AT_ONCE
        assert sum(sizes.written) >= 2700
        assert set(one.memory.changes) >= {posted.payload for posted in posted}


async def test_where_nobody_answers_from_memory_nothing_that_waits_is_read(stores: Stores, service_keys: Keys) -> None:
    """While Redis is away the outbox grows, and any revocation that finds nothing to revoke would apply all of it."""
    async with member(stores, service_keys, redis_url=f"redis://127.0.0.1:{free_port()}") as one:
        await _post(one, 10)
        spreader = one.database._spreader
        assert spreader is not None

        await spreader.settle(budget=1)

        assert one.memory.changes == []
        assert not one.coherence.is_current


async def test_who_watches_an_instance_that_joins_anew_begins_anew_too(stores: Stores, service_keys: Keys) -> None:
    """While it had no lease others went on without it: whoever follows it must never be moved past what it was not told."""
    revocation = notices.encode(Revocation(DEFAULT_TENANT, RevokedKind.SUBJECT, uuid4(), 1, datetime.now(UTC) + timedelta(hours=1)))
    async with member(stores, service_keys) as one:
        await eventually(one.is_current)
        feed = Feed(Revoked())
        feed.follow(one.coherence)
        await one.log.publish([revocation])
        await eventually(one.has_heard)
        watched = Place(*one.coherence.position)

        one.memory.may_load.clear()
        await one.log.publish([UNREADABLE, revocation])  # the first makes it join anew, at a place beyond the second
        await eventually(one.is_loading)

        happened = feed.since(watched, None)
        assert happened is None or happened.place == watched
        one.memory.may_load.set()
        await eventually(one.is_current)
        assert feed.since(watched, None) is None
