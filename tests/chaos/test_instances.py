"""Instances that die, hang and are replaced. Source: reliability, F01-F03."""

import asyncio
from collections.abc import Iterable
from uuid import uuid4

import grpc

from tests.chaos.calls import CHECKS, ms
from tests.chaos.conftest import LONG
from tests.chaos.load import DEADLINE, Load
from tests.chaos.record import record
from tests.chaos.rows import failures, last, sound
from tests.chaos.world import SERVICES, World
from tests.service.token.inquiry import now
from tests.suite.conftest import Person, sql
from watchword.rbac.v1 import rbac_pb2, rbac_pb2_grpc

KILLS = 20 if LONG else 4
READS_WANTED = 10_000 if LONG else 500
ROUNDS = 3 if LONG else 1
OVERDUE = 40  # changes
CHANGERS = 4  # changes under way at a time


async def kill_in_turn(stack: World, names: Iterable[str]) -> None:
    """kill -9, half a second of nothing, a new process; at least 2.5 s from one to the next, and nobody else is missing then."""
    for name in names:
        began = now()
        await stack.end(name)
        await last(0.5)
        await stack.begin(name)
        await stack.whole()
        await last(max(0.0, began + 2.5 - now()))


def victims(stack: World) -> list[str]:
    """Return an instance of each service, and then the other of each."""
    return [stack.pair(service)[at] for at in (0, 1) for service in SERVICES]


async def test_f01_an_instance_is_killed(stack: World, person: Person) -> None:
    """Envoy sends the reads to who is left; changes that were under way are sent again by who made them, and happen once."""
    kills, names = 0, victims(stack)
    async with (load := Load(stack, person)).running():
        idle = now()
        await last(3.0)
        began = now()
        while kills < KILLS or len(load.reads.calls) < READS_WANTED:
            await kill_in_turn(stack, [names[kills % len(names)]])
            kills += 1

    assert load.reads.failed == []
    assert len(load.writes.failed) <= CHANGERS * kills
    said, meanwhile, before = await sound(load), load.reads.between(began).p99, load.reads.between(idle, began).p99
    async with stack.without("retries"):
        without = await reads_lost(stack, person)
    record(
        "F01",
        broken="an instance, kill -9, one of two, each service in turn",
        promised="0 reads fail, their p99 is at most three times that before; no more changes fail than were under way, none is lost or made twice",
        seen=f"{kills} kills: {failures(load.reads)} reads failed, p99 {ms(meanwhile)} ({ms(before)} before); "
        f"{failures(load.writes)} tries of changes failed; {said}",
        without=f"Envoy without retries: {without}",
    )
    if LONG:  # beside other tests the machine is slow by itself
        assert meanwhile < 3 * before


async def reads_lost(stack: World, person: Person) -> str:
    """Kill until reads fail; say how many did."""
    async with (load := Load(stack, person)).running():
        for name in victims(stack):
            await kill_in_turn(stack, [name])
            if load.reads.failed:
                break
    assert load.reads.failed
    return f"{failures(load.reads)} reads failed"


async def restart_all(stack: World, person: Person, rounds: int, *services: str) -> Load:
    """Replace all instances one at a time, under load."""
    async with (load := Load(stack, person, is_direct=False)).running():
        for _ in range(rounds):
            await stack.tell(restart=list(services))
    await stack.whole()
    return load


async def test_f02_everything_is_restarted(stack: World, person: Person) -> None:
    """All eight instances are replaced, and nobody but the operator notices."""
    before = {one.name: one.pid for one in stack.now() if one.service in SERVICES}

    load = await restart_all(stack, person, ROUNDS)

    assert (load.reads.failed, load.writes.failed) == ([], [])
    assert not before.items() & {one.name: one.pid for one in stack.now()}.items()
    said = await sound(load)
    if LONG:
        async with (more := Load(stack, person, is_direct=False)).running():
            loaded = await stops(stack)
        assert (more.reads.failed, more.writes.failed) == ([], [])
        idle = await stops(stack)
        record(
            "F02",
            broken="rolling restart of everything",
            promised="nothing fails, reads and changes, also without Envoy's retries; an instance ends within 5 s under load, 2 s when idle",
            seen=f"{ROUNDS} rounds: {failures(load.reads)} reads and {failures(load.writes)} changes failed; {said}; "
            f"one of each told to end at once: the last had ended after {ms(loaded)} under load, {ms(idle)} when idle; "
            + await drain_alone(stack, person),
            without=await neither(stack, person),
        )
        assert loaded < 5.0
        assert idle < 2.0


async def stops(stack: World) -> float:
    """Replace one instance of each service, all at once; return the seconds until the last had ended."""
    names = [stack.pair(service)[1] for service in SERVICES]
    began = now()
    await asyncio.gather(*(stack.end(name, "TERM") for name in names))
    took = now() - began
    await stack.renew(*names)
    return took


async def drain_alone(stack: World, person: Person) -> str:
    async with stack.without("retries"):
        load = await restart_all(stack, person, 1)
    assert (load.reads.failed, load.writes.failed) == ([], [])
    return f"without retries: {failures(load.reads)} and {failures(load.writes)}"


async def neither(stack: World, person: Person) -> str:
    async with stack.without("retries", "drain", of=SERVICES):
        load = await restart_all(stack, person, 1)
    assert load.reads.failed
    assert load.writes.failed
    return f"neither retries nor drain: {failures(load.reads)} reads and {failures(load.writes)} changes failed"


async def hang_in_turn(stack: World, person: Person, *names: str) -> Load:
    """SIGSTOP for three seconds."""
    async with (load := Load(stack, person)).running():
        for name in names:
            await stack.end(name, "STOP")
            await last(3.0)
            await stack.end(name, "CONT")
            await stack.whole()
    return load


async def overdue(stack: World, person: Person) -> list[str]:
    """Have a hanging instance asked for changes whose callers then give up; return those that it makes on waking."""
    name, prefix = stack.pair("rbac")[0], f"overdue-{uuid4().hex}"
    stub = rbac_pb2_grpc.RoleServiceStub(stack.channel(next(one.address for one in stack.now() if one.name == name)))

    async def create(what: str, deadline: float) -> str:
        request = rbac_pb2.CreateRoleRequest(name=f"{prefix}-{what}", permissions=["things.read"], request_id=str(uuid4()))
        try:
            await stub.CreateRole(request, metadata=person.metadata, timeout=deadline)
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "OK"

    assert await create("before", DEADLINE) == "OK"
    await stack.end(name, "STOP")
    assert set(await asyncio.gather(*(create(str(number), 0.5) for number in range(OVERDUE)))) == {"DEADLINE_EXCEEDED"}
    await stack.end(name, "CONT")
    await stack.whole()
    assert await create("after", DEADLINE) == "OK"
    made = {row["name"].rpartition("-")[2] for row in await sql(stack, "SELECT name FROM rbac.role WHERE name LIKE $1", f"{prefix}%")}
    assert made >= {"before", "after"}
    return sorted(made - {"before", "after"})


async def test_f03_an_instance_hangs(stack: World, person: Person) -> None:
    """The others answer; on waking it believes nothing that it remembered, and does nothing that nobody waits for any more."""
    names = [stack.names(service)[0] for service in (SERVICES if LONG else ("token", "rbac"))]

    load = await hang_in_turn(stack, person, *names)

    assert load.reads.failed == []
    slowest = load.log.of(*CHECKS).slowest
    said = await sound(load)
    assert await overdue(stack, person) == []
    async with stack.without("try-timeout"):
        stuck = (await hang_in_turn(stack, person, stack.names("token")[0])).log.of(*CHECKS)
    record(
        "F03",
        broken="an instance hangs for 3 s (SIGSTOP)",
        promised="0 reads fail; a check takes 400 ms at most; on waking it makes no change whose caller has given up",
        seen=f"{failures(load.reads)} reads failed, the slowest of {len(load.log.of(*CHECKS).calls):,} checks took {ms(slowest)}; {said}; "
        f"0 of {OVERDUE} overdue changes made",
        without=f"no limit a try: {failures(stuck)} checks failed, the slowest took {ms(stuck.slowest)}",
    )
    assert slowest < 0.4
    assert stuck.slowest > 1.0
