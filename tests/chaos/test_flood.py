"""Ten times as many logins as can be hashed, whether or not the others are answered. Source: reliability, F34."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

from bench.flood_figures import REFUSED, SERVED
from bench.lanes import NOTHING, Lane
from bench.load import write_requests
from bench.machine import MIB, resident_bytes
from bench.workers import Answer, worker
from services.top.scrape import Target, look
from tests.chaos.calls import CHECKS, ms
from tests.chaos.load import Load
from tests.chaos.record import record
from tests.chaos.rows import failures, last, sound
from tests.chaos.world import World
from tests.service.token.inquiry import now
from tests.suite.conftest import PASSWORD, Person
from watchword.identity.v1 import authentication_pb2, user_pb2

TIMES = 10  # what can be hashed
FLOOD = 20.0  # seconds
BRIEF = 8.0  # seconds: twice the patience, so that who came first has gone when it ends
PATIENCE = 4.0  # seconds: the deadline of each login
LATE = "DEADLINE_EXCEEDED"  # how outcomes begin that are no answer in time
COST = "cost12"  # of a hash: that of production
ACCOUNTS = 32  # one account's logins under way at once are counted as guesses until they succeed
AT_ONCE = 8  # logins under way while it is measured how many can be hashed


async def flood(logins: Lane, rate: float, seconds: float) -> dict[str, Answer]:
    """Ask for so many logins a second; return how many ended how, with percentiles in microseconds from the moment when each was due."""
    told: dict[str, Answer] = (await logins.worker.ask(**logins.job(rate=rate, seconds=seconds, seed=1, limit=PATIENCE)))["told"]
    return told


@asynccontextmanager
async def storming(stack: World, person: Person, directory: Path) -> AsyncIterator[Lane]:
    """Have accounts that log in, and who logs them in, while inside."""
    requests, emails = directory / "logins", [f"{uuid4().hex[:12]}@example.com" for _ in range(ACCOUNTS)]
    for first in range(0, ACCOUNTS, AT_ONCE):
        made = [user_pb2.CreateUserRequest(email=email, password=PASSWORD, email_verified=True) for email in emails[first : first + AT_ONCE]]
        await asyncio.gather(*(stack.grpc.users.CreateUser(one, metadata=person.metadata, timeout=10) for one in made))
    write_requests(requests, [authentication_pb2.LoginRequest(login=email, password=PASSWORD).SerializeToString() for email in emails])
    try:
        async with worker("bench.pace", log=directory / "pace.log", core=None) as running:
            yield Lane(running, stack.endpoints.grpc, "Login", requests, SERVED, may_fail=True)
    finally:  # whoever waited in vain for what had begun counts as somebody who guesses, and so does his address, which is everybody's here
        async with stack.redis() as redis:
            await redis.delete("nothing", *await redis.keys("identity:attempts:*"))


async def resident(stack: World) -> float:
    """Return the MiB that identity holds, its hash processes included."""
    identities = [one for one in stack.now() if one.service == "identity"]
    told = await look([Target(one.name, one.metrics) for one in identities])
    return (sum(resident_bytes(one.pid or 0) for one in identities) + sum(one.sum("watchword_identity_hash_memory_bytes") for one in told)) / MIB


async def test_f34_a_flood_of_logins(stack: World, person: Person, tmp_path: Path) -> None:
    """Whoever asks for anything else hardly notices; who logs in gets a session, or hears at once when to come back."""
    async with stack.without(COST, of=("identity",)), storming(stack, person, tmp_path) as logins:
        most = (await logins.closed(3.0, callers=AT_ONCE)).rate
        async with (load := Load(stack, person)).running():
            idle, before = now(), await resident(stack)
            await last(5.0)
            began = now()
            flooding = asyncio.create_task(flood(logins, TIMES * most, FLOOD))
            await last(FLOOD)
            grown, told = await resident(stack) - before, await flooding
            ended = now()
        said = await sound(load)
    async with stack.without(COST, "admission", of=("identity",)), storming(stack, person, tmp_path) as logins:
        queued = await flood(logins, TIMES * most, BRIEF)

    checks, quiet = (load.log.of(*CHECKS).between(*times) for times in ((began, ended), (idle, began)))
    share = len(checks.calls) / (ended - began) / (len(quiet.calls) / (began - idle))
    served, refused = told[SERVED]["count"], told.get(REFUSED, NOTHING)
    others = sum(one["count"] for how, one in told.items() if how not in (SERVED, REFUSED))
    asked, late = (sum(one["count"] for how, one in queued.items() if how.startswith(prefix)) for prefix in ("", LATE))
    record(
        "F34",
        broken=f"{TIMES * most:.0f} logins a second, {TIMES} times what can be hashed, for {FLOOD:.0f} s on {os.cpu_count()} cores",
        promised="no read fails; checks keep 0.7 of their rate, and three times their p99; a login is served, or refused long before its "
        "deadline, with RetryInfo; no more memory",
        seen=f"{failures(load.reads)} reads failed; {share:.2f} of the checks a second, p99 {ms(checks.p99)} ({ms(quiet.p99)} before); "
        f"{served / (ended - began):.1f} logins a second served ({most:.1f} without flood and load), {refused['count']:,} refused after "
        f"{ms(refused['p50'] / 1e6)} (p50), {ms(refused['p95'] / 1e6)} (p95), {others} others; {grown:+.1f} MiB; {said}",
        without=f"every login waits for its hash: {late:,} of {asked:,} waited in vain for {PATIENCE:.0f} s",
    )
    assert load.reads.failed == []
    assert share > 0.7
    assert checks.p99 < 3 * quiet.p99
    assert refused["count"] > 0.7 * (served + refused["count"] + others)
    assert refused["p95"] / 1e6 < PATIENCE / 8
    assert others <= refused["count"] / 50
    assert grown < 16
    assert late > asked / 5
