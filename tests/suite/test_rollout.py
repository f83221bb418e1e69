"""Rolling restart, scaling and blue-green under a load of reads and changes, with no failed call. Source: reliability, F02."""

import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import grpc
import httpx
import pytest

from services.up.control import stop_instance
from tests.conftest import ROOT, eventually
from tests.suite.conftest import PASSWORD, Person, Suite, login, running, sql
from watchword.rbac.v1 import permission_pb2, rbac_pb2
from watchword.token.v1 import token_pb2

ROUNDS = 3 if os.environ.get("WATCHWORD_LONG") else 1
SERVICES = ("token", "rbac", "identity", "gateway")
CHANGERS = 3  # of each kind: Envoy repeats reads that went to an instance that is gone, and changes it does not


@pytest.fixture(scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Suite]:
    """A stack of its own, two instances a service, because addresses and names change."""
    with running(tmp_path_factory.mktemp("rollout") / "home") as suite:
        yield suite
        for channel in suite.channels.values():
            await channel.close()


@pytest.fixture(scope="module")
async def person(here: Suite) -> Person:
    """The administrator, who may do all that the load does."""
    one_time = Path(here.endpoints.admin_password_file).read_text().strip()  # noqa: ASYNC240
    return await login(here, here.endpoints.admin_email, one_time, new_password=PASSWORD)


class Load:
    """Reads and changes, over REST and gRPC, through Envoy, as fast as they are answered."""

    def __init__(self, suite: Suite, person: Person) -> None:
        self._suite = suite
        self._person = person
        self._done = asyncio.Event()
        self._prefix = f"load-{uuid4().hex[:8]}"
        self.answered: Counter[str] = Counter()
        self.failed: list[str] = []
        self._roles: list[str] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Make the load while inside, and some after what is done inside is over."""
        callers = [self._read_over_rest, self._read_over_grpc, *[self._change_sessions, self._change_roles] * CHANGERS]
        tasks = [asyncio.create_task(caller()) for caller in callers]
        try:
            await self.goes_on()
            yield
            await self.goes_on()
        finally:
            self._done.set()
            await asyncio.gather(*tasks)

    async def goes_on(self) -> None:
        """Return when every kind of call was answered a few times more."""
        before = Counter(self.answered)

        async def more() -> bool:
            return bool(self.failed) or all(self.answered[kind] > before[kind] + 5 for kind in ("GET", "POST", "VerifyToken", "refresh", "role"))

        await eventually(more, within=30)

    async def reconcile(self) -> None:
        """Fail unless every role that was acknowledged is stored, and none that was not, each created once."""
        question = (
            "SELECT r.name, (SELECT count(*) FROM suite.audit_event e WHERE e.target_id = r.id::text) AS times FROM rbac.role r WHERE r.name LIKE $1"
        )
        stored = {row["name"]: row["times"] for row in await sql(self._suite, question, f"{self._prefix}%")}
        assert stored == dict.fromkeys(self._roles, 1)

    async def _read_over_rest(self) -> None:
        headers = self._person.headers
        async with self._suite.rest as rest:
            while not self._done.is_set():
                self._note("GET", await rest.get("/v1/me", headers=headers))
                self._note("GET", await rest.get("/.well-known/jwks.json"))
                self._note("GET", await rest.get("/health/live"))
                self._note("POST", await rest.post("/v1/tokens:verify", json={"token": self._person.token}, headers=headers))

    async def _read_over_grpc(self) -> None:
        stubs, subject = self._suite.grpc, rbac_pb2.Subject(type=rbac_pb2.SUBJECT_TYPE_USER, id=self._person.id)
        token = token_pb2.VerifyTokenRequest(token=self._person.token)
        question = permission_pb2.CheckPermissionRequest(subject=subject, permission="users.read")
        while not self._done.is_set():
            try:
                verified = await stubs.tokens.VerifyToken(token, metadata=self._suite.peer("gateway", to="token"), timeout=5)
                checked = await stubs.permissions.CheckPermission(question, metadata=self._person.metadata, timeout=5)
            except grpc.aio.AioRpcError as error:
                self.failed.append(f"gRPC {error.code().name} {error.details()}")
                continue
            self._count("VerifyToken", verified.status == token_pb2.VALID, verified)
            self._count("CheckPermission", checked.decision == permission_pb2.ALLOW, checked)

    async def _change_sessions(self) -> None:
        async with self._suite.rest as rest:
            asked = {"login": self._person.email, "password": PASSWORD}
            entered = await rest.post("/v1/auth/login", json=asked)
            self._note("login", entered)
            refresh_token = entered.json()["tokens"]["refresh_token"]
            while not self._done.is_set():
                answer = await rest.post("/v1/auth/refresh", json={"refresh_token": refresh_token, "request_id": str(uuid4())})
                self._note("refresh", answer)
                refresh_token = answer.json().get("tokens", {}).get("refresh_token", refresh_token)

    async def _change_roles(self) -> None:
        async with self._suite.rest as rest:
            while not self._done.is_set():
                name = f"{self._prefix}-{uuid4().hex}"
                role = {"name": name, "permissions": ["things.read"], "request_id": str(uuid4())}
                answer = await rest.post("/v1/roles", json=role, headers=self._person.headers)
                self._note("role", answer)
                self._roles += [name] if answer.status_code == 200 else []

    def _note(self, kind: str, answer: httpx.Response) -> None:
        self._count(kind, answer.status_code == 200, f"{answer.request.url.path} {answer.status_code} {answer.text}")

    def _count(self, kind: str, is_good: bool, words: object) -> None:
        self.answered[kind] += is_good
        if not is_good:
            self.failed.append(f"{kind}: {words}")


async def begin(suite: Suite, verb: str, *options: str) -> asyncio.subprocess.Process:
    """Start one of the scripts."""
    command = [sys.executable, "-m", "services.up.change", verb, "--home", str(suite.home), *options]
    return await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=ROOT)


async def change(suite: Suite, verb: str, *options: str) -> tuple[int, str]:
    """Run one of the scripts to its end; return its exit code and its words."""
    process = await begin(suite, verb, *options)
    words, _ = await process.communicate()
    return process.returncode or 0, words.decode()


async def spoiled(suite: Suite, service: str, spoil: Callable[[str], Awaitable[object]]) -> str:
    """Begin a switch, spoil it by the name of a green instance once all calls go to green; return the words of its end, which is blue's."""
    blue = pids(suite, service)
    switch = await begin(suite, "blue-green", service, "--watch", "60")
    assert switch.stdout
    while b"watching" not in await switch.stdout.readline():
        assert switch.returncode is None
    both = pids(suite, service)
    await spoil(sorted(both.keys() - blue.keys())[0])
    words, _ = await switch.communicate()
    assert (switch.returncode, "blue serves" in words.decode()) == (1, True), words
    assert pids(suite, service) == blue
    return words.decode()


def pids(suite: Suite, service: str) -> dict[str, int]:
    """Return the process ids of the instances of a service as they are now."""
    instances = json.loads((suite.home / "endpoints.json").read_text())["instances"]
    return {one["name"]: one["pid"] for one in instances if one["service"] == service}


async def test_a_rolling_restart_of_everything_fails_no_call(here: Suite, person: Person) -> None:
    """F02, in small: all eight instances are replaced, and nobody but the operator notices."""
    before = {service: pids(here, service) for service in SERVICES}
    load = Load(here, person)

    async with load.running():
        ends = [await change(here, "rolling-restart") for _ in range(ROUNDS)]

    assert ([code for code, _ in ends], load.failed) == ([0] * ROUNDS, []), ends
    await load.reconcile()
    for service, old in before.items():
        new = pids(here, service)
        assert (len(new), set(old.values()) & set(new.values())) == (2, set())


async def test_scaling_up_and_down_fails_no_call(here: Suite, person: Person) -> None:
    """From two to three to one: Envoy hears of a new one when it serves, and the old ones drain."""
    load, sizes = Load(here, person), []

    async with load.running():
        for count in (3, 1):
            code, words = await change(here, "scale", f"token={count}", f"rbac={count}")
            assert code == 0, words
            sizes.append([len(pids(here, service)) for service in SERVICES])
            await load.goes_on()

    assert load.failed == []
    await load.reconcile()
    assert sizes == [[3, 3, 2, 2], [1, 1, 2, 2]]


async def test_switching_and_going_back_fail_no_call(here: Suite, person: Person) -> None:
    """Blue-green: to green for good, back on demand, and back by itself when a green one ends."""
    load, blue = Load(here, person), {service: pids(here, service) for service in SERVICES}

    async with load.running():
        code, words = await change(here, "blue-green", "token", "gateway", "--watch", "1")
        assert (code, "switched" in words) == (0, True), words
        assert {service for service in SERVICES if pids(here, service) != blue[service]} == {"token", "gateway"}
        assert [len(pids(here, service)) for service in SERVICES] == [len(blue[service]) for service in SERVICES]

        words = await spoiled(here, "rbac", lambda _: change(here, "blue-green", "--rollback"))
        assert "the operator asked to go back" in words
        words = await spoiled(here, "identity", lambda name: asyncio.to_thread(stop_instance, here.home, name, "TERM"))
        assert "has ended" in words or "is unhealthy" in words

    assert load.failed == []
    await load.reconcile()
