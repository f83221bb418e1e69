"""WatchRevocations as the server serves it: nothing is missed from a cursor on, at any instance, and only what is the caller's own is told."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import groupby, pairwise
from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest

from services.chassis.call import Call, Caller, CallerKind
from services.token import feed as feed_module
from services.token import notices, watch_servicer
from services.token.feed import Feed
from services.token.keys import KeyRing
from services.token.revocations import Revocation, RevokedKind
from services.token.revoked import Revoked
from services.token.store.keys import KeyStore
from services.token.vault import Vault
from services.token.watch_servicer import Watch
from tests.conftest import Keys, Stores, eventually
from tests.service.token.conftest import TENANT, TokenInstances
from tests.service.token.test_coherence import member
from watchword.errors import DeadlineExceeded, ResourceExhausted
from watchword.token.v1 import token_pb2

Response = token_pb2.WatchRevocationsResponse
PATIENCE = 10.0  # seconds


class Stream:
    """One stream, and everything it has told."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.heard: list[Response] = []

    async def until(self, met: Callable[[Response], bool]) -> Response:
        """Read up to the first message that meets a condition, and return it."""
        async with asyncio.timeout(PATIENCE):
            while True:
                response: Response = await self._call.read()
                assert isinstance(response, Response)
                self.heard.append(response)
                if met(response):
                    return response

    @property
    def keys(self) -> set[str]:
        """The keys of all revocations told."""
        return {one.key for response in self.heard for one in response.revocations}


def is_checkpoint(response: Response) -> bool:
    return response.HasField("checkpoint")


@asynccontextmanager
async def watching(token: TokenInstances, at: int, *, cursor: str = "", bearer: str = "") -> AsyncIterator[Stream]:
    """Watch an instance while inside, as a service of the suite or with a token."""
    metadata = (("authorization", f"Bearer {bearer}"),) if bearer else token.identity
    call = token.stubs[at].WatchRevocations(metadata=metadata, timeout=60)
    await call.write(token_pb2.WatchRevocationsRequest(cursor=cursor))
    yield Stream(call)
    call.cancel()


async def revoke(token: TokenInstances, at: int, **fields: Any) -> str:
    """Revoke a new session; return its id."""
    tokens = await token.issue(at=at, **fields)
    request = token_pb2.RevokeTokenRequest(token=tokens.refresh_token)
    await token.stubs[at].RevokeToken(request, metadata=token.identity)
    return str(tokens.session_id)


async def test_a_cursor_of_one_instance_is_good_at_another(token: TokenInstances) -> None:
    """What happened in between comes, and nothing is forgotten: no reset, no snapshot."""
    async with watching(token, 0) as first:
        cursor = (await first.until(is_checkpoint)).cursor
    missed = await revoke(token, 2)

    async with watching(token, 1, cursor=cursor) as second:
        await second.until(lambda response: missed in {one.key for one in response.revocations})

        assert not any(response.reset for response in second.heard)


@pytest.mark.parametrize("cursor", ["", "nonsense", f"{uuid4().hex}:1", f"{uuid4().hex}:99999999999999999999"])
async def test_an_unknown_cursor_begins_anew(token: TokenInstances, cursor: str) -> None:
    """A reset and the key set first, then all that is revoked, and only then a checkpoint."""
    session = await revoke(token, 0)
    async with watching(token, 1, cursor=cursor) as stream:
        await stream.until(is_checkpoint)

    assert [response.reset for response in stream.heard] == [True, *[False] * (len(stream.heard) - 1)]
    assert '"keys"' in stream.heard[0].jwks
    assert session in stream.keys


async def test_checkpoints_come_while_nothing_happens(token: TokenInstances) -> None:
    """Each says how far it is complete, by the server's own clock: about every second, so that a verifier knows how stale it is."""
    async with watching(token, 0) as stream:
        times = [(await stream.until(is_checkpoint)).checkpoint.elapsed.ToMilliseconds() for _ in range(4)]

    assert times == sorted(set(times))
    assert min(late - early for early, late in pairwise(times)) <= 1000


async def test_a_change_is_told_to_its_own_tenant_only(token: TokenInstances) -> None:
    tenants = [str(uuid4()), str(uuid4())]
    clients = [await token.issue(tenant_id=tenant, type=token_pb2.PRINCIPAL_TYPE_CLIENT, revision=0) for tenant in tenants]
    async with watching(token, 1, bearer=clients[0].access_token) as own, watching(token, 1, bearer=clients[1].access_token) as others:
        await own.until(is_checkpoint)
        await others.until(is_checkpoint)

        session = await revoke(token, 0, tenant_id=tenants[0], revision=0)
        later = await revoke(token, 0, tenant_id=tenants[1], revision=0)

        await own.until(lambda response: session in {one.key for one in response.revocations})
        await others.until(lambda response: later in {one.key for one in response.revocations})
        assert session not in others.keys


async def test_whose_own_token_is_revoked_watches_no_more(token: TokenInstances) -> None:
    client = await token.issue(type=token_pb2.PRINCIPAL_TYPE_CLIENT)
    async with watching(token, 1, bearer=client.access_token) as stream:
        await stream.until(is_checkpoint)
        await token.stubs[0].RevokeToken(token_pb2.RevokeTokenRequest(token=client.access_token), metadata=token.identity)

        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await stream.until(lambda _response: False)

    assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED


# One watch in this process, with little room.


@asynccontextmanager
async def small(stores: Stores, keys: Keys) -> AsyncIterator[tuple[Watch, Feed, Any]]:
    """Serve watches of one member, and return its log too, while inside."""
    async with member(stores, keys) as one:
        await eventually(one.is_current)
        feed = Feed(Revoked())
        feed.follow(one.coherence)
        ring = KeyRing(KeyStore(one.database), Vault([bytes(32)]))
        yield Watch(feed, ring, NoTokens()), feed, one


class NoTokens:
    """Nobody comes with a token here."""

    async def authenticate(self, token: str) -> Caller:
        raise AssertionError(token)


def call() -> Call:
    return Call("WatchRevocations", Caller(CallerKind.SERVICE, "rbac"))


async def saying(*requests: token_pb2.WatchRevocationsRequest) -> AsyncIterator[token_pb2.WatchRevocationsRequest]:
    """Say something, or nothing, and stay on the line."""
    for request in requests:
        yield request
    await asyncio.Event().wait()


async def test_who_says_nothing_has_a_place_and_not_for_long(stores: Stores, service_keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else as many as like could wait at the door, and all get in at once."""
    monkeypatch.setattr(feed_module, "MAX_WATCHERS", 1)
    monkeypatch.setattr(watch_servicer, "FIRST_WITHIN", 0.3)
    async with small(stores, service_keys) as (watch, feed, _one), asyncio.timeout(PATIENCE):
        silent = asyncio.ensure_future(anext(watch.watch(saying(), call())))

        async def is_inside() -> bool:
            return feed.watchers == 1

        await eventually(is_inside)
        with pytest.raises(ResourceExhausted):
            await anext(watch.watch(saying(token_pb2.WatchRevocationsRequest()), call()))
        with pytest.raises(DeadlineExceeded):
            await silent
        first = await anext(watch.watch(saying(token_pb2.WatchRevocationsRequest()), call()))

    assert first.reset


async def test_who_reads_too_slowly_begins_anew(stores: Stores, service_keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's queue grows for him: the record has gone on."""
    monkeypatch.setattr(feed_module, "KEPT", 2)
    async with small(stores, service_keys) as (watch, _feed, one), asyncio.timeout(PATIENCE):
        stream = watch.watch(saying(token_pb2.WatchRevocationsRequest()), call())
        while not (await anext(stream)).HasField("checkpoint"):
            continue
        notice = notices.encode(notices.SessionsNotice.of(UUID(TENANT), [], revision=1, expire_time=datetime.now(UTC)))
        await one.log.publish([notice] * 3)

        async def has_heard() -> bool:
            return len(one.memory.changes) == 3

        await eventually(has_heard)
        assert (await anext(stream)).reset


async def test_a_whole_tenant_is_told_in_parts_and_a_checkpoint_comes_after_the_last(stores: Stores, service_keys: Keys) -> None:
    """A hundred thousand sessions at once would hold up every call, once for each who watches."""
    async with small(stores, service_keys) as (watch, _feed, one), asyncio.timeout(PATIENCE):
        stream = watch.watch(saying(token_pb2.WatchRevocationsRequest()), call())
        while not (await anext(stream)).HasField("checkpoint"):
            continue
        ids = [uuid4() for _ in range(5 * feed_module.ENOUGH)]
        end = datetime.now(UTC) + timedelta(hours=1)
        parts = [ids[at : at + feed_module.ENOUGH] for at in range(0, len(ids), feed_module.ENOUGH)]
        await one.log.publish([notices.encode(notices.SessionsNotice.of(UUID(TENANT), part, revision=1, expire_time=end)) for part in parts])

        told: set[str] = set()
        checkpoints: list[int] = []
        places: set[str] = set()
        while len(told) < len(ids) or not checkpoints:
            response = await anext(stream)
            assert len(response.revocations) <= watch_servicer.CHUNK
            told |= {one.key for one in response.revocations}
            if response.cursor:
                places.add(response.cursor)
            if response.HasField("checkpoint"):
                checkpoints.append(len(told))

    assert told == {str(one) for one in ids}
    assert set(checkpoints) <= {0, len(ids)}
    assert len(places) >= 5


async def test_of_memory_each_is_told_its_own_in_small_messages() -> None:
    """Of a tenant with few among many, of one with many, and of all; the few that are kept whole are among them."""
    memory, few, many = Revoked(), uuid4(), uuid4()
    end = datetime.now(UTC) + timedelta(hours=1)
    own = {
        tenant: [Revocation(tenant, RevokedKind.SESSION, uuid4(), 1, end) for _ in range(count)]
        + [Revocation(tenant, RevokedKind.SUBJECT, uuid4(), 1, end, issued_before=end) for _ in range(count // 4)]
        for tenant, count in ((few, 8), (many, 5000))
    }
    for one in (*own[few], *own[many]):
        memory.add(one)

    for tenants, wanted in ((frozenset({few}), own[few]), (frozenset({many}), own[many]), (None, own[few] + own[many])):
        messages = list(watch_servicer._messages(memory.of_tenants(tenants)))
        assert sorted(one.key for message in messages for one in message.revocations) == sorted(str(one.key) for one in wanted)
        assert max(len(message.revocations) for message in messages) < watch_servicer.CHUNK + 200
        assert len(messages) >= 16  # so that nobody waits while all of memory is looked through


async def test_those_who_begin_anew_take_turns_and_rest() -> None:
    """However many they are, half of the time is left to the calls."""
    feed, log = Feed(Revoked()), []

    def work(name: str) -> str:
        log.append(f"{name} begins")
        began = time.thread_time()
        while time.thread_time() < began + 0.02:
            pass
        return name

    async def rests() -> None:
        while True:
            await asyncio.sleep(0.001)
            log.append("others")

    others = asyncio.create_task(rests())
    assert await asyncio.gather(*(feed.paced(partial(work, name)) for name in "abc")) == ["a", "b", "c"]
    others.cancel()

    assert [entry for entry, _ in groupby(log) if entry != "others"] == ["a begins", "b begins", "c begins"]
    assert all(log[log.index(f"{name} begins") + 1 :][:5] == ["others"] * 5 for name in "ab")
