"""Histories of a fleet in which things break at random, held against the promise: nothing is accepted that was revoked before the question began."""

import asyncio
import itertools
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from redis.exceptions import RedisError

from tests.conftest import Keys, Stores
from tests.service.token.fleet import ISSUER, TENANT, Fleet, Member, running_fleet
from tests.service.token.inquiry import REVOKED, SILENT, VALID, Answer, History, Inquiry, Issued, Name, Revocation, now
from watchword import TokenVerifier, WhenStale
from watchword.refusals import TokenRevoked, VerificationStale
from watchword.token.v1 import token_pb2

SECONDS = 300.0 if os.environ.get("WATCHWORD_LONG") else 15.0
SEED = int(os.environ.get("WATCHWORD_SEED") or random.SystemRandom().randrange(10**6))
MAX_STALENESS = 2.0  # seconds
ASKERS, REVOKERS = 3, 3  # askers of each instance; revokers in all

# The checker, on histories made up by hand.

TOKEN, SESSION = Name("token", "t"), Name("session", "s")


def history(*revocations: Revocation, issued: tuple[float, float] = (0, 1), **answer: Any) -> History:
    """Return a history of one token and one answer."""
    made = History()
    made.issue(Issued("t", frozenset({TOKEN, SESSION}), *issued))
    for revocation in revocations:
        made.revoke(revocation)
    made.answers.append(Answer("token-1", "t", **answer))
    return made


ACKNOWLEDGED = Revocation(TOKEN, 10, 11)
BAD = {
    "accepted after the OK": history(ACKNOWLEDGED, began=11.1, ended=11.2, said=VALID),
    "accepted after the OK of a revocation of its session": history(Revocation(SESSION, 10, 11), began=11.1, ended=11.2, said=VALID),
    "accepted after the first of two OKs": history(ACKNOWLEDGED, Revocation(SESSION, 10, 20), began=12, ended=13, said=VALID),
    "accepted by a verifier that was staler than it may be": history(ACKNOWLEDGED, began=13.1, ended=13.1, said=VALID, may_lag=2),
    "refused before anybody revoked": history(ACKNOWLEDGED, began=8, ended=9, said=REVOKED),
    "refused though nobody revoked": history(began=8, ended=9, said=REVOKED),
    "refused though it was issued after the OK": history(Revocation(SESSION, 2, 3), issued=(4, 5), began=8, ended=9, said=REVOKED),
    "refused as something else": history(ACKNOWLEDGED, began=12, ended=13, said="EXPIRED"),
}
GOOD = {
    "accepted before": history(ACKNOWLEDGED, began=8, ended=9, said=VALID),
    "accepted meanwhile": history(ACKNOWLEDGED, began=10.9, ended=20, said=VALID),
    "refused meanwhile": history(ACKNOWLEDGED, began=9, ended=10.1, said=REVOKED),
    "refused afterwards": history(ACKNOWLEDGED, began=12, ended=13, said=REVOKED),
    "accepted by a verifier within its staleness": history(ACKNOWLEDGED, began=12.9, ended=12.9, said=VALID, may_lag=2),
    "accepted though somebody tried to revoke": history(Revocation(TOKEN, 10), began=12, ended=13, said=VALID),
    "refused because somebody tried to revoke": history(Revocation(TOKEN, 10), began=12, ended=13, said=REVOKED),
    "accepted, issued while its session was revoked": history(Revocation(SESSION, 2, 4), issued=(3, 5), began=8, ended=9, said=VALID),
    "refused, issued while its session was revoked": history(Revocation(SESSION, 2, 4), issued=(3, 5), began=8, ended=9, said=REVOKED),
    "accepted, issued after the OK": history(Revocation(SESSION, 2, 3), issued=(4, 5), began=8, ended=9, said=VALID),
    "not answered": history(began=8, ended=9, said=SILENT),
}


@pytest.mark.parametrize("made_up", BAD.values(), ids=BAD)
def test_the_checker_sees_what_must_not_be(made_up: History) -> None:
    assert len(made_up.wrongs()) == 1


@pytest.mark.parametrize("made_up", GOOD.values(), ids=GOOD)
def test_the_checker_leaves_alone_what_may_be(made_up: History) -> None:
    assert made_up.wrongs() == []


# The history of a fleet.


async def revoke_for_ever(inquiry: Inquiry, dice: random.Random) -> None:
    """Issue some tokens, let them be asked about, revoke them in some way, and have everybody asked at once."""
    while inquiry.goes_on:
        subject, tenant = str(uuid4()), str(uuid4()) if dice.random() < 0.1 else TENANT
        issued = [await inquiry.issue(dice, subject, tenant) for _ in range(dice.choice((1, 1, 2)))]
        tokens = [one for one in issued if one is not None]
        if not tokens:
            await asyncio.sleep(0.05)
            continue
        await asyncio.sleep(dice.random() * 0.2)
        late = asyncio.create_task(inquiry.issue(dice, subject, tenant)) if dice.random() < 0.3 else None
        await inquiry.revoke(dice, *way_to_revoke(dice, tokens[0], subject, tenant), tries=dice.choice((1, 30, 30, 30)))
        await asyncio.gather(*(inquiry.ask(member, [one.access_token for one in tokens]) for member in inquiry.fleet.members))
        if late is not None:
            await late


def way_to_revoke(dice: random.Random, tokens: token_pb2.TokenSet, subject: str, tenant: str) -> tuple[Name, Any]:
    """Return what is revoked, and the request for it."""
    once = dice.choice((str(uuid4()), ""))  # empty: a repeat does not say that it is one
    by_target = token_pb2.RevokeTokensRequest(tenant_id=tenant, request_id=once)
    if tenant != TENANT:
        by_target.all_of_tenant = True
        return Name("tenant", tenant), by_target
    kind = dice.choice(("token", "refresh token", "session", "subject"))
    if kind == "token":
        return Name("token", tokens.access_token), token_pb2.RevokeTokenRequest(token=tokens.access_token, request_id=once)
    if kind == "refresh token":
        return Name("session", tokens.session_id), token_pb2.RevokeTokenRequest(token=tokens.refresh_token, request_id=once)
    if kind == "session":
        by_target.session_id = tokens.session_id
        return Name("session", tokens.session_id), by_target
    by_target.subject = subject
    return Name("subject", subject), by_target


async def ask_for_ever(inquiry: Inquiry, member: Member, dice: random.Random) -> None:
    """Ask one instance about what is in the pool, mostly about the youngest."""
    while inquiry.goes_on:
        if inquiry.pool:
            young = inquiry.pool[-8:] if dice.random() < 0.7 else inquiry.pool
            await inquiry.ask(member, dice.sample(young, 1 if dice.random() < 0.8 else min(5, len(young))))
        await asyncio.sleep(0.004)


async def consult_for_ever(inquiry: Inquiry, name: str, verifier: TokenVerifier) -> None:
    """Ask a local verifier about everything in the pool that is of its tenant."""
    while inquiry.goes_on:
        for token in inquiry.pool:
            if Name("tenant", TENANT) in inquiry.history.issued[token].names:
                inquiry.history.answers.append(consult(name, verifier, token))
        await asyncio.sleep(0.05)


def consult(name: str, verifier: TokenVerifier, token: str) -> Answer:
    began = now()
    try:
        verifier.verify(token)
        said = VALID
    except TokenRevoked:
        said = REVOKED
    except VerificationStale:
        said = SILENT
    except Exception as error:  # any other is a finding
        said = type(error).__name__
    return Answer(name, token, began, now(), said, MAX_STALENESS)


Fault = Callable[[Fleet, Member], Awaitable[object]]


async def cut_redis(_fleet: Fleet, member: Member) -> None:
    await member.redis.cut()


async def silence_redis(_fleet: Fleet, member: Member) -> None:
    member.redis.freeze()


async def slow_redis(_fleet: Fleet, member: Member) -> None:
    member.redis.delay = 0.06


async def cut_postgres(_fleet: Fleet, member: Member) -> None:
    await member.postgres.cut()


async def silence_postgres(_fleet: Fleet, member: Member) -> None:
    member.postgres.freeze()


async def cut_both(_fleet: Fleet, member: Member) -> None:
    await member.redis.cut()
    await member.postgres.cut()


async def stop(_fleet: Fleet, member: Member) -> None:
    member.pause()


async def kill(_fleet: Fleet, member: Member) -> None:
    member.kill()


async def flush(fleet: Fleet, _member: Member) -> None:
    await fleet.valkey.client.flushall()


async def lose_the_log(fleet: Fleet, _member: Member) -> None:
    await fleet.valkey.client.delete(*await fleet.keys_of("log"))


async def stop_redis(fleet: Fleet, _member: Member) -> None:
    fleet.valkey.pause()


async def restart_redis_empty(fleet: Fleet, _member: Member) -> None:
    fleet.valkey.kill()
    await fleet.valkey.start(empty=True)


async def restart_redis_from_an_old_snapshot(fleet: Fleet, _member: Member) -> None:
    await fleet.valkey.client.save()
    await asyncio.sleep(0.3)  # so that changes are lost
    fleet.valkey.kill()
    await fleet.valkey.start()


FAULTS: tuple[Fault, ...] = (
    cut_redis,
    silence_redis,
    slow_redis,
    cut_postgres,
    silence_postgres,
    cut_both,
    stop,
    kill,
    flush,
    flush,
    lose_the_log,
    stop_redis,
    restart_redis_empty,
    restart_redis_from_an_old_snapshot,
)


async def break_for_ever(inquiry: Inquiry, dice: random.Random, faults: list[str]) -> None:
    """Break one thing or two for up to two leases, mend them, and break others, sometimes before everybody has a lease again."""
    fleet = inquiry.fleet
    bag: list[Fault] = []
    while inquiry.goes_on:
        for _ in range(dice.choice((1, 1, 2))):
            bag = bag or dice.sample(FAULTS, len(FAULTS))
            fault, member = bag.pop(), dice.choice(fleet.members)
            faults.append(f"{now():.2f} {fault.__name__} of {member.name}")
            with suppress(RedisError, OSError, TimeoutError):  # the second may find nothing left to break
                await asyncio.wait_for(fault(fleet, member), 5)
            await asyncio.sleep(dice.random() * 0.3)
        await asyncio.sleep(dice.choice((0.1, 0.7, 1.5)))
        await fleet.valkey.mend()
        await asyncio.gather(*(member.mend() for member in fleet.members))
        await asyncio.sleep(dice.choice((0.0, 0.3, 1.2)))


@pytest.fixture(scope="module")
async def fleet(stores: Stores, service_keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    """Three instances."""
    async with running_fleet(stores, service_keys, tmp_path_factory.mktemp("history")) as running:
        await running.heal()
        yield running


async def following(fleet: Fleet, member: Member) -> TokenVerifier:
    """Return a local verifier that follows an instance, not started."""
    own = (await fleet.issue(type=token_pb2.PRINCIPAL_TYPE_CLIENT, with_refresh_token=False, scopes=["tokens.verify"])).access_token

    async def source() -> str:
        return own

    return TokenVerifier(
        member.address, credentials=source, issuer=ISSUER, max_staleness=timedelta(seconds=MAX_STALENESS), when_stale=WhenStale.REFUSE
    )


@pytest.mark.timeout(SECONDS + 180)
async def test_whatever_breaks_nothing_is_accepted_after_its_revocation(fleet: Fleet) -> None:
    """Every answer of three instances and two local verifiers. WATCHWORD_SEED repeats the choices (not the timing) of a run that failed."""
    print(f"WATCHWORD_SEED={SEED}")
    async with AsyncExitStack() as stack:
        verifiers = [await stack.enter_async_context(await following(fleet, member)) for member in fleet.members[:2]]
        inquiry, faults = Inquiry(fleet, until=now() + SECONDS), list[str]()
        async with asyncio.TaskGroup() as group:
            group.create_task(break_for_ever(inquiry, random.Random(f"{SEED} faults"), faults))
            for number in range(REVOKERS):
                group.create_task(revoke_for_ever(inquiry, random.Random(f"{SEED} revoker {number}")))
            for number, member in itertools.product(range(ASKERS), fleet.members):
                group.create_task(ask_for_ever(inquiry, member, random.Random(f"{SEED} asker {number} of {member.name}")))
            for number, verifier in enumerate(verifiers, 1):
                group.create_task(consult_for_ever(inquiry, f"local-{number}", verifier))
        await fleet.heal()
        for member in fleet.members:
            for token in inquiry.history.issued:
                await inquiry.ask(member, [token])

    said = Counter((answer.by, answer.said) for answer in inquiry.history.answers)
    wrongs = inquiry.history.wrongs()
    print(f"{inquiry.acknowledged} revocations acknowledged, {len(faults)} faults, answers {dict(said)}")
    if wrongs:
        print(*faults, *wrongs[:20], Counter((wrong.answer.by, wrong.why) for wrong in wrongs), sep="\n")
    assert len(wrongs) == 0
    assert inquiry.acknowledged > SECONDS
    assert all(said[name, status] > 0 for name in ("token-1", "token-2", "token-3", "local-1", "local-2") for status in (VALID, REVOKED))
