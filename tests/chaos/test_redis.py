"""Redis dies, hangs, forgets, refuses and is half there. Source: reliability, F13-F22, F33."""

import asyncio
import contextlib
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from uuid import uuid4

from redis.exceptions import RedisError

from services.chassis.tenancy import DEFAULT_TENANT
from tests.chaos.calls import CHECKS, Call, Log, ms
from tests.chaos.conftest import LONG
from tests.chaos.load import DEADLINE, Load
from tests.chaos.record import record
from tests.chaos.rows import failures, last, sound
from tests.chaos.teller import Teller
from tests.chaos.world import SERVICES, World
from tests.conftest import eventually
from tests.service.token.inquiry import now
from tests.suite.conftest import Person
from watchword.rbac.v1 import permission_pb2, rbac_pb2
from watchword.token.v1 import token_pb2

AT_ONCE = 10  # rounds
QUESTIONS = 200
LONGER = 0.010  # seconds that a verification may take in addition while Redis is away
OUTAGE = 10.0 if LONG else 3.0  # seconds
HOLDERS = ("token", "rbac")
MOST_COMPARED = 20  # of thirty guesses at once, while two instances count them each alone
WAITING = 0.09  # seconds: who takes longer has waited for a Redis that does not answer
MOST_WAITING = 20  # questions
SLOWEST = 0.3  # seconds: a tenth for each of two services that count calls, and the answer
LEASE_OFF = "memory believed without a lease"
Act = Callable[[], Awaitable[object]]


@dataclass(frozen=True)
class Seen:
    """What happened while something was broken.

    before    calls before
    later     calls from two seconds on
    fewest    instances that got calls, by service
    compared  of thirty guesses of a password, tried as it broke
    """

    load: Load
    before: Log
    later: Log
    fewest: dict[str, int]
    compared: int

    @property
    def words(self) -> str:
        """The calls, in words."""
        checks = self.load.log.of(*CHECKS)
        late = ", ".join(
            f"{kind} {ms(self.later.of(kind).p99)} ({ms(self.before.of(kind).p99)} before)" for kind in ("VerifyToken", "CheckPermission")
        )
        return f"{failures(checks)} checks failed, the slowest took {ms(checks.slowest)}, p99 of {late}; of 30 guesses {self.compared} were compared"


async def through(stack: World, person: Person, breaks: Act, mends: Act, *, lasting: float = OUTAGE) -> Seen:
    """Break something under load, and mend it."""
    fewest: dict[str, int] = {}
    async with (load := Load(stack, person)).running():
        idle = now()
        await last(2.0)
        began = now()
        await breaks()
        compared = await guess(stack)
        broken = now()
        while now() < broken + lasting:
            healthy = await stack.healthy()
            fewest = {service: min(count, fewest.get(service, count)) for service, count in healthy.items()}
            await last(0.2)
        ended = now()
        await mends()
        await load.goes_on()
    await stack.whole()
    return Seen(load, load.log.between(idle, began), load.log.between(began + 2.0, ended), fewest, compared)


async def by_themselves(stack: World, person: Person) -> Log:
    """Ask one question after the other, and nothing else."""
    stubs, subject = stack.grpc, rbac_pb2.Subject(type=rbac_pb2.SUBJECT_TYPE_USER, id=person.id)
    token, question = (
        token_pb2.VerifyTokenRequest(token=person.token),
        permission_pb2.CheckPermissionRequest(subject=subject, permission="users.read"),
    )
    log = Log()
    for _ in range(QUESTIONS):
        began = now()
        verified = await stubs.tokens.VerifyToken(token, metadata=stack.peer("gateway", to="token"), timeout=DEADLINE)
        between = now()
        checked = await stubs.permissions.CheckPermission(question, metadata=person.metadata, timeout=DEADLINE)
        assert (verified.status, checked.decision) == (token_pb2.VALID, permission_pb2.ALLOW)
        log.calls += [Call("VerifyToken", began, between - began), Call("CheckPermission", between, now() - between)]
    return log


async def accepted_anyway(stack: World, person: Person, breaks: Act, mends: Act) -> str:
    """The same with the lease off: something is accepted after its OK."""
    async with stack.without("lease", of=HOLDERS):
        seen = await through(stack, person, breaks, mends, lasting=4.0)
    wrongs = seen.load.wrongs
    assert any("acknowledged" in wrong.why for wrong in wrongs)
    return f"{LEASE_OFF}: {len(wrongs)} accepted of {seen.load.asked_afterwards:,}"


async def guess(stack: World) -> int:
    """Try thirty passwords for one name at once; return how many were compared.

    The address of all of them is everybody's here, and would be used up by the rows together: what Redis counted of it is forgotten.
    """
    name = f"{uuid4().hex[:10]}@example.com"
    async with stack.rest as rest:
        guesses = (rest.post("/v1/auth/login", json={"login": name, "password": f"guess {number}"}) for number in range(30))
        compared = sum(answer.status_code == 401 for answer in await asyncio.gather(*guesses))
    with contextlib.suppress(RedisError, OSError):  # it is what is broken
        async with asyncio.timeout(1.0), stack.redis() as redis:
            await redis.delete("nothing", *await redis.keys("identity:attempts:*"))
    return compared


@dataclass(frozen=True)
class Alone:
    """Questions one after the other, before something is broken and from two seconds on."""

    before: tuple[Log, Log]
    meanwhile: Log

    def slower(self, kind: str) -> float:
        """Return how many seconds longer 99 of 100 take; of the two times before, the quieter counts."""
        return self.meanwhile.of(kind).p99 - min(log.of(kind).p99 for log in self.before)

    @property
    def words(self) -> str:
        """How much longer, in words."""
        told = ", ".join(f"{kind} {self.slower(kind) * 1000:+.1f} ms" for kind in ("VerifyToken", "CheckPermission"))
        return f"by themselves {told}, the slowest {ms(self.meanwhile.slowest)}"


async def alone(stack: World, person: Person, breaks: Act, mends: Act) -> Alone:
    """Ask by themselves before something is broken, and while it is; and mend it."""
    before = await by_themselves(stack, person), await by_themselves(stack, person)
    await breaks()
    await last(2.0)
    meanwhile = await by_themselves(stack, person)
    await mends()
    await stack.whole()
    return Alone(before, meanwhile)


async def test_f13_f22_redis_is_killed(stack: World, person: Person) -> None:
    """Postgres is asked instead of memory, for every single question, and no instance leaves."""
    breaks, mends = (lambda: stack.end("redis")), (lambda: stack.begin("redis"))

    seen = await through(stack, person, breaks, mends)

    assert seen.load.reads.failed == []
    assert seen.fewest == dict.fromkeys(SERVICES, 2)
    assert 0 < seen.compared <= MOST_COMPARED
    said = await sound(seen.load)
    if LONG:
        asked = await alone(stack, person, breaks, mends)
        record(
            "F13",
            broken=f"Redis, kill -9, gone for {OUTAGE:.0f} s",
            promised="no read fails, nothing revoked is accepted, guesses are counted; by itself VerifyToken takes at most 10 ms more (p99)",
            seen=f"{seen.words}; {asked.words}; {failures(seen.load.writes)} tries of changes failed; {said}",
            without=await accepted_anyway(stack, person, breaks, mends),
        )
        record(
            "F22",
            broken="Redis, as above: what health says",
            promised="every instance stays: Redis alone decides nothing",
            seen=f"never fewer than {min(seen.fewest.values())} of 2 instances a service got calls",
            without=await fleet_lost(stack, person),
        )
        assert asked.slower("VerifyToken") < LONGER


async def fleet_lost(stack: World, person: Person) -> str:
    """Health that depends on Redis empties the fleet."""
    async with stack.without("indifference", of=SERVICES):
        seen = await through(stack, person, lambda: stack.end("redis"), lambda: stack.begin("redis"), lasting=6.0)
    assert min(seen.fewest.values()) == 0
    return f"health that asks Redis: no instance left, {failures(seen.load.reads)} reads failed"


async def test_f14_redis_hangs(stack: World, person: Person) -> None:
    """The worst of its faults: it accepts and does not answer."""
    breaks, mends = (lambda: stack.end("redis", "STOP")), (lambda: stack.end("redis", "CONT"))

    seen = await through(stack, person, breaks, mends)

    assert seen.load.reads.failed == []
    said = await sound(seen.load)
    asked = await alone(stack, person, breaks, mends)
    waited = [call for call in asked.meanwhile.calls if call.took > WAITING]
    record(
        "F14",
        broken=f"Redis hangs for {OUTAGE:.0f} s (SIGSTOP)",
        promised=f"as F13; of those by themselves at most {MOST_WAITING} wait for it, a tenth of a second in each service that they pass",
        seen=f"{seen.words}; {asked.words}, {len(waited)} of {len(asked.meanwhile.calls)} waited; {said}",
        without=f"{await accepted_anyway(stack, person, breaks, mends)}; {await unhurried(stack, person, breaks, mends)}",
    )
    assert 0 < seen.compared <= MOST_COMPARED
    assert asked.slower("VerifyToken") < LONGER
    assert len(waited) <= MOST_WAITING
    assert asked.meanwhile.slowest < SLOWEST


async def unhurried(stack: World, person: Person, breaks: Act, mends: Act) -> str:
    async with stack.without("breaker", of=SERVICES):
        seen = await through(stack, person, breaks, mends, lasting=4.0)
    assert seen.load.reads.failed or seen.load.reads.slowest > 1.0
    return f"no time limit, no breaker: {failures(seen.load.reads)} reads failed, the slowest took {ms(seen.load.reads.slowest)}"


async def test_f15_redis_comes_back_empty(stack: World, person: Person) -> None:
    """Another epoch: no lease of the former counts, and all is loaded anew."""
    await fill(stack, 100_000)

    async def empty() -> None:
        await stack.end("redis")
        shutil.rmtree(stack.home / "redis" / "appendonlydir")
        await stack.begin("redis")

    seen = await through(stack, person, empty, stack.whole, lasting=4.0)
    loads, began = await stack.loads(), now()
    await empty()

    async def are_loaded_anew() -> bool:
        after = await stack.loads()
        return all(after[name] > loads[name] for name in loads) and await stack.are_leased()

    await eventually(are_loaded_anew, within=20)
    took = now() - began

    said = await sound(seen.load)
    record(
        "F15",
        broken="Redis restarts with nothing, with 100,000 revocations in force",
        promised="nothing revoked is accepted; memory answers again within 10 s",
        seen=f"{seen.words}; memory of every instance answers {ms(took)} after Redis was killed once more; {said}",
        without=await young_epoch_believed(stack),
    )
    assert took < 10


async def fill(stack: World, count: int) -> None:
    """Have so many revocations in force; another row's may be among them."""
    statement = """
        INSERT INTO token.revocation
            (tenant_id, key, kind, revision, spared_revision, spared_session_id, is_disabled, revoke_time, expire_time)
        SELECT $2, gen_random_uuid(), 'token', 1, 0, NULL, false, now(), now() + interval '1 hour'
        FROM generate_series(1, $1 - (SELECT count(*) FROM token.revocation WHERE expire_time > now()))
    """
    async with stack.sql() as connection:
        await connection.execute(statement, count, DEFAULT_TENANT)


async def young_epoch_believed(stack: World) -> str:
    """A writer that believes an emptied Redis to know all leases answers before the others know."""
    tries, accepted = 0, 0
    one, other = stack.pair("token")
    async with stack.without("epoch", of=(one,)), stack.redis() as redis:
        while not accepted and tries < 20:
            tries += 1
            await stack.wires("slow", "redis", other, value=0.05)
            accepted += await accepted_after(stack, one, other, redis.flushall)
            await stack.wires("restore", "redis")
            await stack.whole()
    assert accepted
    return f"a writer that believes a young epoch: accepted after OK in round {tries}"


async def accepted_after(stack: World, writer: str, other: str, just_before: Act) -> bool:
    """Whether a token that one instance has revoked is good at another at once after the OK."""
    one, two = (Teller(stack, name) for name in (writer, other))
    token = await one.issue()
    assert [await one.says(token), await two.says(token)] == ["VALID", "VALID"]
    await just_before()
    await one.revoke(token)
    return await two.says(token) == "VALID"


async def test_f16_redis_is_a_replica(stack: World, person: Person) -> None:
    """After a failover it reads and does not write."""
    async with stack.redis() as redis:
        breaks, mends = (lambda: redis.execute_command("REPLICAOF", "127.0.0.1", "1")), (lambda: redis.execute_command("REPLICAOF", "NO", "ONE"))

        seen = await through(stack, person, breaks, mends)

        assert seen.load.reads.failed == []
        said, asked = await sound(seen.load), await alone(stack, person, breaks, mends)
        record(
            "F16",
            broken=f"Redis takes no writes for {OUTAGE:.0f} s (READONLY)",
            promised="as F13",
            seen=f"{seen.words}; {asked.words}; {said}",
            without=await accepted_anyway(stack, person, breaks, mends),
        )
        assert 0 < seen.compared <= MOST_COMPARED
        assert asked.slower("VerifyToken") < LONGER


async def test_f17_redis_is_full(stack: World, person: Person) -> None:
    """It refuses to write; or, set up against our advice, it throws away what it likes."""
    async with stack.redis() as redis:

        async def refuse() -> None:
            await redis.config_set("maxmemory", 1)

        async def evict() -> None:
            await redis.config_set("maxmemory-policy", "allkeys-random")
            await redis.config_set("maxmemory", int((await redis.info("memory"))["used_memory"]) + 100_000)
            for _ in range(3000):
                await redis.set(f"filler:{uuid4()}", "x" * 1000, ex=60)

        async def mend() -> None:
            await redis.config_set("maxmemory", 0)
            await redis.config_set("maxmemory-policy", "noeviction")

        refusing = await through(stack, person, refuse, mend)
        loads, evicted = await stack.loads(), int((await redis.info("stats"))["evicted_keys"])
        evicting = await through(stack, person, evict, mend, lasting=6.0)
        evicted = int((await redis.info("stats"))["evicted_keys"]) - evicted
        noticed = sum((await stack.loads()).values()) - sum(loads.values())

        assert (refusing.load.reads.failed, evicting.load.reads.failed) == ([], [])
        assert 0 < refusing.compared <= MOST_COMPARED
        assert evicted > 0
        assert noticed > 0
        said, asked = [await sound(refusing.load), await sound(evicting.load)], await alone(stack, person, refuse, mend)
        record(
            "F17",
            broken=f"Redis is out of memory for {OUTAGE:.0f} s: it refuses writes; then, as a cache, it evicts at random",
            promised="as F13; what is evicted is noticed",
            seen=f"refusing: {refusing.words}; {asked.words}; {said[0]}. "
            f"Evicting: {evicted:,} keys, after which instances loaded anew {noticed:.0f} times; {evicting.words}; {said[1]}",
            without=f"{await accepted_anyway(stack, person, refuse, mend)}; evicting, {await accepted_anyway(stack, person, evict, mend)}",
        )
        assert asked.slower("VerifyToken") < LONGER


async def test_f19_redis_answers_and_nobody_hears(stack: World, person: Person) -> None:
    """One direction of one instance's wire: what it says arrives, what it is told does not."""
    half = tuple(stack.pair(service)[1] for service in ("token", "rbac"))
    breaks, mends = (lambda: stack.wires("lose_answers", "redis", *half)), (lambda: stack.wires("cut_and_restore", "redis", *half))

    seen = await through(stack, person, breaks, mends)

    assert seen.load.reads.failed == []
    said = await sound(seen.load)
    record(
        "F19",
        broken=f"one instance of token and of rbac hears nothing of Redis for {OUTAGE:.0f} s, and is heard",
        promised="it asks Postgres; nothing revoked is accepted",
        seen=f"{seen.words}; {said}",
        without=await accepted_anyway(stack, person, breaks, mends),
    )


async def test_f33_an_instance_is_cut_off_from_everything(stack: World, person: Person) -> None:
    """It answers nothing rather than something old, and leaves."""
    half = tuple(stack.pair(service)[1] for service in ("token", "rbac"))
    left: list[float] = []

    async def cut() -> None:
        for store in ("redis", "postgres"):
            await stack.wires("freeze", store, *half)
        began = now()

        async def has_left() -> bool:
            healthy = await stack.healthy()
            return (healthy["token"], healthy["rbac"]) == (1, 1)

        await eventually(has_left)
        left.append(now() - began)

    async def mend() -> None:
        for store in ("redis", "postgres"):
            await stack.wires("cut_and_restore", store, *half)

    seen = await through(stack, person, cut, mend)

    assert seen.load.reads.failed == []
    said = await sound(seen.load)
    record(
        "F33",
        broken=f"one instance of token and of rbac reaches neither Redis nor Postgres for {OUTAGE:.0f} s, the others do",
        promised="it accepts nothing after its lease; within 2 s Envoy gives it no calls; no read fails",
        seen=f"{seen.words}; out after {ms(left[0])}; {said}",
        without=await accepted_anyway(stack, person, cut, mend),
    )
    assert left[0] < 2.0


async def test_f19b_nobody_accepts_after_the_ok(stack: World) -> None:
    """All is well, and all are asked at the instant of the OK."""
    rounds = 2_500  # ten thousand, with three instances: tests/service/token/test_coherence.py in its long form
    tellers = [Teller(stack, name) for name in stack.names("token")]

    accepted: list[int] = []
    for number in range(0, rounds, AT_ONCE):
        accepted += await asyncio.gather(*(round_of(tellers, number + more) for more in range(AT_ONCE)))

    assert sum(accepted) == 0
    async with stack.without("waiting", of=("token",)):
        await stack.wires("slow", "redis", tellers[1].name, value=0.02)
        hasty = [await round_of([tellers[0], tellers[1]], 0) for _ in range(20)]
        await stack.wires("restore", "redis")
    assert sum(hasty) > 0
    record(
        "F19b",
        broken="nothing: a token is revoked, and all instances are asked at once after the OK",
        promised="no instance accepts it",
        seen=f"0 accepted in {rounds:,} rounds, {len(tellers)} instances",
        without=f"a writer that does not wait for the leases: {sum(hasty)} accepted in 20 rounds",
    )


async def round_of(tellers: "list[Teller]", number: int) -> int:
    """Revoke a token that all know; return how many still accept it."""
    token = await tellers[number % len(tellers)].issue()
    assert {await teller.says(token) for teller in tellers} == {"VALID"}
    await tellers[number % len(tellers)].revoke(token)
    return (await asyncio.gather(*(teller.says(token) for teller in tellers))).count("VALID")
