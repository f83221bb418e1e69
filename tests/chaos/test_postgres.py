"""Postgres dies, restarts, hangs, breaks its connections and is slow. Source: reliability, F05-F12."""

import asyncio
import signal
from uuid import uuid4

import grpc

from tests.chaos.calls import CHECKS, READS, WRITES, Call, Log, ms
from tests.chaos.conftest import LONG
from tests.chaos.load import Load
from tests.chaos.record import record
from tests.chaos.rows import failures, last, sound
from tests.chaos.teller import Teller
from tests.chaos.test_redis import LONGER, alone
from tests.chaos.world import SERVICES, World
from tests.service.token.inquiry import now
from tests.suite.conftest import Person
from watchword.rbac.v1 import rbac_pb2, rbac_pb2_grpc

OUTAGE = 5.0 if LONG else 2.0  # seconds
FROZEN = 10.0  # seconds
TERMINATIONS = 10
SLOW = 0.1  # seconds each way
CROWD = 200  # callers at once
ALL_USED = "no database connection is free; try again"
REFUSALS = {ALL_USED, "temporarily unavailable; try again"}  # the second: one more could not be made in time
PATIENT = 15.0  # seconds: the deadline of one who has time


async def out_of_order(stack: World, load: Load, number: str, seconds: float) -> tuple[float, float]:
    """End Postgres in some way, and start it again; return when it ended and when it accepted again."""
    began = now()
    await stack.end("postgres", number)
    await last(seconds)
    await stack.begin("postgres")
    accepted = now()
    await load.goes_on()
    return began, accepted


async def test_f05_postgres_is_killed(stack: World, person: Person) -> None:
    """Memory answers meanwhile; changes are refused at once, and those that were acknowledged are there afterwards."""
    pids = {one.name: one.pid for one in stack.now() if one.service in SERVICES}

    async with (load := Load(stack, person)).running():
        began, accepted = await out_of_order(stack, load, "KILL", OUTAGE)

    outage = load.log.between(began, accepted)
    assert load.log.of(*CHECKS).failed == []
    assert outage.of(*WRITES).failed
    recovery, said = load.log.recovery(accepted, (*READS, *WRITES)), await sound(load)
    assert {one.name: one.pid for one in stack.now() if one.service in SERVICES} == pids
    record(
        "F05",
        broken=f"Postgres, kill -9, gone for {OUTAGE:.0f} s",
        promised="no check fails; changes are answered within a second; all is normal 2 s after it accepts; nothing acknowledged is lost",
        seen=f"{failures(outage.of(*CHECKS))} checks failed; changes were refused within {ms(outage.of(*WRITES).slowest)}; "
        f"normal after {ms(recovery)}; no process restarted; {said}",
        without=f"{await never_remembering(stack, person, 'KILL', OUTAGE)}; {await not_written(stack, person)}" if LONG else "",
    )
    assert recovery < 2.0
    assert outage.of(*WRITES).slowest < (1.0 if LONG else 1.5)


async def never_remembering(stack: World, person: Person, number: str, seconds: float) -> str:
    """Memory off."""
    async with stack.without("memory", of=("token",)):
        for _ in range(4):  # a short outage may meet none, and Envoy tries again
            async with (load := Load(stack, person)).running():
                await out_of_order(stack, load, number, seconds)
            checks = load.log.of("VerifyToken")
            if checks.failed:
                break
    assert checks.failed
    return f"memory off: {failures(checks)} verifications failed"


async def not_written(stack: World, person: Person) -> str:
    """Postgres answers before it has written to disk."""
    async with stack.sql() as connection:
        await connection.execute("ALTER SYSTEM SET synchronous_commit = off")
        await connection.execute("SELECT pg_reload_conf()")
    lost: list[str] = []
    for _ in range(5):
        async with (load := Load(stack, person, makes_only_roles=True)).running():
            await out_of_order(stack, load, "KILL", 0.5)
        lost = await load.lost_or_doubled()
        if lost:
            break
    async with stack.sql() as connection:
        await connection.execute("ALTER SYSTEM RESET synchronous_commit")
        await connection.execute("SELECT pg_reload_conf()")
    assert lost
    return f"synchronous_commit off: {len(lost)} of {sum(load.roles.values())} acknowledged roles lost"


async def test_f05b_postgres_is_restarted(stack: World, person: Person) -> None:
    """As an operator does it."""
    async with (load := Load(stack, person)).running():
        await out_of_order(stack, load, "INT", 0.0)

    assert load.log.of(*CHECKS).failed == []
    gap, said = load.log.longest_gap("role"), await sound(load)
    record(
        "F05b",
        broken="Postgres, restarted by its operator (fast)",
        promised="no check fails; changes are out for 3 s at most",
        seen=f"{failures(load.log.of(*CHECKS))} checks failed; no role could be made for {ms(gap)}; {said}",
        without=await never_remembering(stack, person, "INT", 0.0),
    )
    assert gap < 3.0


async def frozen(stack: World, person: Person) -> tuple[Log, float]:
    """Let Postgres hang; return what became of who waits without a deadline, and when it went on."""
    stack.signal_postgres(signal.SIGSTOP)
    try:
        asked = asyncio.gather(*(create(stack, person) for _ in range(5)))
        await last(FROZEN)
    finally:
        stack.signal_postgres(signal.SIGCONT)
    return Log(list(await asked)), now()


async def test_f06_postgres_hangs(stack: World, person: Person) -> None:
    """Nobody waits past his deadline, and the pools are whole afterwards."""
    async with (load := Load(stack, person)).running():
        waiting, ended = await frozen(stack, person)
        await last(5.0)
        most, there = await connections(stack)

    assert load.log.of(*CHECKS).failed == []
    recovery, said = load.log.recovery(ended, (*READS, *WRITES)), await sound(load)
    async with stack.without("bounds", of=("rbac",)):
        stuck, _ = await frozen(stack, person)
    record(
        "F06",
        broken=f"Postgres hangs for {FROZEN:.0f} s (SIGSTOP)",
        promised="no check fails; nobody waits 0.1 s past his deadline (2 s for who names none); pools keep their size; normal after 2 s",
        seen=f"{failures(load.log.of(*CHECKS))} checks failed; who named no deadline was refused after {ms(waiting.slowest)}; "
        f"{there} connections of {most} five seconds later; normal after {ms(recovery)}; {said}",
        without=f"no time limits: {ms(stuck.slowest)}",
    )
    assert waiting.slowest < 2.1
    assert there <= most
    assert recovery < 2.0
    assert stuck.slowest > 4.0


async def connections(stack: World) -> tuple[int, int]:
    """Return how many connections instances may have, and how many they have."""
    question = """
        SELECT coalesce(sum(most), 0) AS most, coalesce(sum(there), 0) AS there FROM (
            SELECT (regexp_match(application_name, 'max=(\\d+)'))[1]::int AS most, count(*) AS there
            FROM pg_stat_activity WHERE application_name LIKE 'watchword/%' GROUP BY application_name) AS instances
    """
    async with stack.sql() as connection:
        row = await connection.fetchrow(question)
    return int(row["most"]), int(row["there"])


async def terminated(stack: World, times: int, *, pause: float) -> None:
    """Break every session of the services, again and again; `pause` in seconds."""
    for _ in range(times):
        async with stack.sql() as connection:
            await connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'watchword/%'")
        await last(pause)


async def test_f08_sessions_are_terminated(stack: World, person: Person) -> None:
    """A read that lost its connection is tried once more on another."""
    async with (load := Load(stack, person)).running():
        await terminated(stack, TERMINATIONS, pause=2.0)

    assert load.reads.failed == []
    assert {call.failure.split()[0] for call in load.writes.failed} <= {"UNAVAILABLE", "503"}  # so that who made it asks again
    said = await sound(load)
    async with stack.without("retries", "second-try", of=SERVICES), (once := Load(stack, person)).running():
        for _ in range(30):  # most reads need no session: it takes many to meet one
            await terminated(stack, 10, pause=0.1)
            if once.reads.failed:
                break
    assert once.reads.failed
    record(
        "F08",
        broken=f"every session with Postgres is terminated, {TERMINATIONS} times, every 2 s",
        promised="no read fails; a change fails only if its outcome is unknown, and asking again tells",
        seen=f"{failures(load.reads)} reads and {failures(load.writes)} tries of changes failed; {said}",
        without=f"no second try, neither in the service nor in Envoy: {failures(once.reads)} reads failed",
    )


async def crowd(stack: World, person: Person) -> tuple[Log, Log]:
    """Ask one instance of rbac many times at once for what only Postgres knows, with time enough; return who was answered, and who was refused."""
    stub = rbac_pb2_grpc.RoleServiceStub(stack.channel(next(one.address for one in stack.now() if one.service == "rbac")))

    async def ask() -> Call:
        began, failure = now(), ""
        try:
            await stub.ListRoles(rbac_pb2.ListRolesRequest(page_size=1), metadata=person.metadata, timeout=PATIENT)
        except grpc.aio.AioRpcError as error:
            failure = error.details() or error.code().name
        return Call("list", began, now() - began, failure)

    asked = Log(list(await asyncio.gather(*(ask() for _ in range(CROWD)))))
    return Log([call for call in asked.calls if not call.failure]), Log(asked.failed)


async def test_f12_postgres_is_far_away(stack: World, person: Person) -> None:
    """+200 ms a question: memory does not notice; who would wait too long for a connection is refused."""

    async def breaks() -> None:
        await stack.wires("slow", "postgres", value=SLOW)

    async def mends() -> None:
        await stack.wires("restore", "postgres")

    async with (load := Load(stack, person)).running():
        before = now()
        await last(5.0)
        began = now()
        await breaks()
        await last(5.0)
        served, refused = await crowd(stack, person)
        await mends()
        ended = now()
        await load.goes_on()

    idle, slow = load.log.of("VerifyToken").between(before, began), load.log.of("VerifyToken").between(began, began + 5.0)
    assert load.log.of("VerifyToken").failed == []
    recovery, said = load.log.recovery(ended, (*READS, *WRITES)), await sound(load)
    asked = await alone(stack, person, breaks, mends)
    async with stack.without("memory", of=("token",)):
        await breaks()
        teller = Teller(stack, stack.pair("token")[0])
        token, began = await teller.issue(), now()
        for _ in range(20):
            assert await teller.says(token) == "VALID"
        asking = (now() - began) / 20
        await mends()
    async with stack.without("bounds", of=("rbac",)):
        await breaks()
        unbound, _ = await crowd(stack, person)
        await mends()
    record(
        "F12",
        broken="Postgres is 200 ms further away",
        promised="VerifyToken does not notice (by itself at most 10 ms more, p99); who finds no connection within a second is refused, "
        "the others are served; normal 2 s after it is over",
        seen=f"VerifyToken p99 {ms(slow.p99)} ({ms(idle.p99)} before), by itself {asked.slower('VerifyToken') * 1000:+.1f} ms; "
        f"of {CROWD} who asked one instance at once {len(served.calls)} were answered and {len(refused.calls)} refused, "
        f"the first after {ms(refused.quickest)}, the last after {ms(refused.slowest)}; normal after {ms(recovery)}; {said}",
        without=f"memory off: VerifyToken takes {ms(asking)}; no time limits: the last was answered after {ms(unbound.slowest)}",
    )
    assert slow.p99 < max(idle.p99 * 1.2, idle.p99 + 0.05)
    assert asked.slower("VerifyToken") < LONGER
    assert served.calls
    assert ALL_USED in {call.failure for call in refused.calls} <= REFUSALS
    assert refused.slowest < 3.0  # a second of waiting, and two hundred answers by one busy processor
    assert recovery < 2.0
    assert asking > 0.2
    assert unbound.slowest > 3.0


async def create(stack: World, person: Person) -> Call:
    """Ask one instance of rbac for a role, past Envoy, and name no deadline."""
    stub = rbac_pb2_grpc.RoleServiceStub(stack.channel(next(one.address for one in stack.now() if one.service == "rbac")))
    began, failure = now(), ""
    try:
        request = rbac_pb2.CreateRoleRequest(name=f"crowd-{uuid4()}", permissions=["a.b"])
        await asyncio.wait_for(stub.CreateRole(request, metadata=person.metadata), 2 * FROZEN)
    except grpc.aio.AioRpcError as error:
        failure = error.code().name
    return Call("create", began, now() - began, failure)
