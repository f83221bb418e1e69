"""Instances that start, whose clocks differ, that share the processor, that are all unavailable. Source: reliability, F04, F23b, F28, F30."""

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc

from tests.chaos.calls import CHECKS, Call, Log, ms
from tests.chaos.load import Load
from tests.chaos.pulse import says_serving
from tests.chaos.record import record
from tests.chaos.rows import failures, last, sound
from tests.chaos.starting import about_callers, about_permissions, about_tokens, starts
from tests.chaos.teller import Teller
from tests.chaos.test_redis import fill
from tests.chaos.world import SERVICES, World
from tests.conftest import process
from tests.service.token.inquiry import now
from tests.suite.conftest import Person
from watchword.token.v1 import token_pb2, token_pb2_grpc

STARTS = 10
TTL = 3600  # seconds, of access tokens: the setting of the tests
BUSY = 10.0  # seconds
REFUSING = 5.0  # seconds
CROWD = 60  # callers at a time


async def test_f04_an_instance_starts(stack: World, person: Person) -> None:
    """It says that it serves once it has its keys and knows what is revoked, and says nothing wrong before."""
    questions = {"token": await about_tokens(stack), "rbac": await about_permissions(stack, person), "identity": await about_callers(stack, person)}
    young, wrong = await starts(stack, "token", questions["token"], STARTS)
    await fill(stack, 100_000)
    full: dict[str, list[float]] = {}
    for service in SERVICES:
        full[service], words = await starts(stack, service, questions.get(service, ()), STARTS)
        wrong += words

    assert wrong == []
    async with stack.without("lease", of=stack.pair("token")[:1]):
        _, words = await starts(stack, "token", questions["token"], 3)
    early = [word for word in words if word == "VALID for REVOKED"]
    assert early
    record(
        "F04",
        broken=f"an instance of token starts, {STARTS} times, and one of each service {STARTS} times with 100,000 revocations in force",
        promised="it serves within 3 s, and says nothing wrong before",
        seen=f"0 wrong answers; served after {ms(young[len(young) // 2])} (median), {ms(young[-1])} (slowest); with the revocations "
        + "; ".join(f"{service} {ms(took[len(took) // 2])}, {ms(took[-1])}" for service, took in full.items()),
        without=f"memory believed before it is loaded: {len(early)} wrong answers in 3 starts ({early[0]})",
    )
    assert max(took[-2] for took in (young, *full.values())) < 3.0


async def skewed(stack: World, rounds: int, *missing: str) -> list[str]:
    """Issue at each instance while one's clock is off, and ask the other at once; return what was refused."""
    refused: list[str] = []
    one, other = stack.pair("token")
    async with stack.without(*missing, of=(one,)):
        tellers = Teller(stack, one), Teller(stack, other)

        async def both() -> None:
            for issuer, verifier in (tellers, tellers[::-1]):
                said = await verifier.says(await issuer.issue())
                refused.extend([said] if said != "VALID" else [])

        for _ in range(rounds // 10):
            await asyncio.gather(*(both() for _ in range(10)))
    return refused


async def test_f23b_clocks_differ(stack: World) -> None:
    """Five seconds are allowed for, in both directions, and no more; beyond two an instance leaves, unless nobody compares."""
    rounds, skews = 840, (1, 2, 4)

    refused = [said for seconds in skews for said in await skewed(stack, rounds, f"clock{seconds:+d}", *(["comparison"] if seconds > 2 else []))]

    assert refused == []
    at = {after: await said_after(stack, TTL + after) for after in (3, 6)}
    assert at == {3: "VALID", 6: "EXPIRED"}
    strict = await skewed(stack, 20, "clock-2", "leeway")
    assert strict
    record(
        "F23b",
        broken="one instance's clock is 1, 2 and 4 s ahead of the other's, and it serves in spite of it",
        promised="no new token is refused by either; none is accepted later than 5 s after its end",
        seen=f"0 of {rounds * 2 * len(skews):,} refused; 3 s after its end {at[3]}, 6 s after it {at[6]}",
        without=f"no leeway, 2 s: {len(strict)} of 40 refused ({strict[0]})",
    )


async def said_after(stack: World, seconds: int) -> str:
    """Return what an instance says of a new token whose clock is so far ahead."""
    one, other = stack.pair("token")
    async with stack.without(f"clock+{seconds}", "comparison", of=(one,)):
        return await Teller(stack, one).says(await Teller(stack, other).issue())


@contextmanager
def hogs(directory: Path) -> Iterator[None]:
    """Two processes that want all of a processor."""
    with ExitStack() as running:
        for number in range(2):
            running.enter_context(process([sys.executable, "-c", "while True: pass"], log=directory / f"hog-{number}"))
        yield


async def probes(stack: World, seconds: float) -> tuple[Log, dict[str, int]]:
    """Ask every instance for its health, ten times a second; return how it went, and the fewest instances that got calls."""
    log, fewest, until = Log(), dict[str, int](), now() + seconds
    channels = [stack.channel(one.address) for one in stack.now() if one.service in SERVICES]

    async def probe(channel: grpc.aio.Channel) -> None:
        began = now()
        is_serving = await says_serving(channel, timeout=5.0)
        log.calls.append(Call("health", began, now() - began, "" if is_serving else "not serving"))

    while now() < until:
        await asyncio.gather(*(probe(channel) for channel in channels))
        healthy = await stack.healthy()
        fewest = {service: min(count, fewest.get(service, count)) for service, count in healthy.items()}
        await last(0.1)
    return log, fewest


async def crowded(stack: World, person: Person, directory: Path) -> tuple[Load, Log, dict[str, int]]:
    async with (load := Load(stack, person)).running():
        with hogs(directory):
            health, fewest = await probes(stack, BUSY)
    return load, health, fewest


async def test_f28_others_want_the_processor(stack: World, person: Person, tmp_path: Path) -> None:
    """Health answers, nobody is thrown out for being slow, and no call outlives its deadline."""
    load, health, fewest = await crowded(stack, person, tmp_path)

    assert min(fewest.values()) >= 1
    assert load.log.of(*CHECKS).failed == []
    said = await sound(load)
    async with stack.without("priority", of=SERVICES):
        starved, yielding, _ = await crowded(stack, person, tmp_path)
    record(
        "F28",
        broken=f"two busy processes on {os.cpu_count()} cores for {BUSY:.0f} s",
        promised="health answers within 300 ms (p99), checks within 2 s, and none fails; never all instances of a service are out",
        seen=f"health p99 {ms(health.p99)}; at least {min(fewest.values())} of 2 instances got calls; "
        f"{failures(load.log.of(*CHECKS))} checks failed, p99 {ms(load.log.of(*CHECKS).p99)}, "
        f"the slowest {ms(load.log.of(*CHECKS).slowest)}; {said}",
        without=f"services that yield (nice 19): health p99 {ms(yielding.p99)}, {failures(starved.log.of(*CHECKS))} checks failed",
    )
    assert health.p99 < 0.3
    assert load.log.of(*CHECKS).slowest < 2.0
    assert yielding.p99 > 0.3


async def storm(stack: World) -> tuple[float, float, Log]:
    """Have every instance of token refuse everything for a while, with a crowd that asks; return attempts a call, and the seconds of recovery."""
    names, log, ended = stack.names("token"), Log(), now() + 3600
    stub = token_pb2_grpc.TokenServiceStub(stack.channel())
    token = token_pb2.VerifyTokenRequest(token=await Teller(stack, names[0]).issue())

    async def ask() -> None:
        while now() < ended:
            began, failure = now(), ""
            try:
                await stub.VerifyToken(token, metadata=stack.peer("gateway", to="token"), timeout=5)
            except grpc.aio.AioRpcError as error:
                failure = error.code().name
            log.calls.append(Call("VerifyToken", began, now() - began, failure))

    crowd = [asyncio.create_task(ask()) for _ in range(CROWD)]
    await last(1.0)
    before = await counts(stack)
    for name in names:
        os.kill(stack.pid(name), signal.SIGUSR1)
    await last(REFUSING)
    after = await counts(stack)
    for name in names:
        os.kill(stack.pid(name), signal.SIGUSR2)
    resumed = now()
    await last(3.0)
    ended = now()
    await asyncio.gather(*crowd)
    total, retried = (now_ - then for now_, then in zip(after, before, strict=True))
    failed = log.between(resumed).failed
    return total / (total - retried), max((call.ended for call in failed), default=resumed) - resumed, log


async def counts(stack: World) -> tuple[int, int]:
    """Return how many requests Envoy has sent to token, and how many of them again."""
    return await stack.statistic("cluster.token.upstream_rq_total"), await stack.statistic("cluster.token.upstream_rq_retry")


async def test_f30_every_instance_refuses(stack: World) -> None:
    """Sending again cannot help, and so there is little of it; and once they answer, all is well."""
    async with stack.without("answers", of=("token",)):
        attempts, recovery, log = await storm(stack)
    async with stack.without("answers", "budget", of=("token",)):
        unbound, _, _ = await storm(stack)
    record(
        "F30",
        broken=f"every instance of token answers UNAVAILABLE for {REFUSING:.0f} s, {CROWD} callers at a time",
        promised="no storm: at most 1.3 attempts a call; normal within a second",
        seen=f"{attempts:.2f} attempts a call; {failures(log)} calls failed; normal after {ms(recovery)}",
        without=f"no budget for retries: {unbound:.2f} attempts a call",
    )
    assert attempts < 1.3
    assert recovery < 1.0
    assert unbound > 1.5
