"""The whole stack, as `scripts/up` starts it, on its own home and ports; and clients that speak with it."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import asyncpg
import grpc
import httpx
import pytest

from services.chassis.service_identity import ServiceIdentity
from services.up import walkthrough
from services.up.control import start_instance, stop_instance
from services.up.endpoints import Endpoints, RunningInstance
from tests.conftest import ROOT
from watchword.identity.v1 import authentication_pb2_grpc, oauth_pb2_grpc, user_pb2_grpc
from watchword.rbac.v1 import permission_pb2_grpc, rbac_pb2_grpc
from watchword.token.v1 import token_pb2_grpc

PASSWORD = "a good horse may hold on to 7 staples"
PORTS = ("--rest-port", "0", "--grpc-port", "0")
STACK = (*PORTS, "--unsafe-speed")
REPLICAS = ("--replicas", "token=3,rbac=3")
# The tests log in far more often than people do, all from one address.
# The first administrator logs in once, for all tests.
SETTINGS = (
    "ACCESS_TOKEN_TTL=3600",
    "BCRYPT_COST=10",
    "RATE_LIMIT_CREDENTIAL=100000/60",
    "RATE_LIMIT_READ=1000000/60",
    "RATE_LIMIT_WRITE=1000000/60",
    "RATE_LIMIT_CHECK=10000000/60",
)


@dataclass
class Suite:
    """A running stack."""

    home: Path
    endpoints: Endpoints
    channels: dict[str, grpc.aio.Channel] = field(default_factory=dict)
    identities: dict[str, ServiceIdentity] = field(default_factory=dict)

    def now(self) -> list[RunningInstance]:
        """Return all processes as they are now."""
        return [RunningInstance(**one) for one in json.loads((self.home / "endpoints.json").read_text())["instances"]]

    @property
    def rest(self) -> httpx.AsyncClient:
        """A REST client, on connections of its own."""
        return httpx.AsyncClient(base_url=self.endpoints.rest, timeout=20)

    def instances(self, service: str) -> list[RunningInstance]:
        """Return the instances of a service."""
        return [one for one in self.endpoints.instances if one.service == service]

    def channel(self, address: str = "") -> grpc.aio.Channel:
        """Return a channel to an instance, or to Envoy's internal listener."""
        address = address or self.endpoints.grpc
        if address not in self.channels:
            self.channels[address] = grpc.aio.insecure_channel(address)
        return self.channels[address]

    def stubs(self, service: str, stub: Any) -> list[Any]:
        """Return a stub for each instance of a service, past Envoy."""
        return [stub(self.channel(one.address)) for one in self.instances(service)]

    def peer(self, name: str, *, to: str) -> tuple[tuple[str, str], ...]:
        """Return metadata that proves service `name` to service `to`."""
        if name not in self.identities:
            private = Path(self.endpoints.service_keys[name]).read_text()
            self.identities[name] = ServiceIdentity.load(name, private, (self.home / "secrets" / "service-public-keys.json").read_text())
        return (("authorization", f"Bearer {self.identities[name].token_for(to)}"),)

    def stop(self, name: str, number: str = "KILL") -> None:
        """Signal one instance."""
        stop_instance(self.home, name, number)

    def start(self, name: str) -> None:
        """Start one instance again."""
        start_instance(self.home, name)

    def stub(self, stub: Any, address: str = "") -> Any:
        """Return a stub of Envoy's internal listener."""
        return stub(self.channel(address))

    @property
    def grpc(self) -> Any:
        """Stubs of all services, through Envoy's internal listener."""
        channel = self.channel()
        return SimpleNamespace(
            authentication=authentication_pb2_grpc.AuthenticationServiceStub(channel),
            users=user_pb2_grpc.UserServiceStub(channel),
            clients=oauth_pb2_grpc.OAuthClientServiceStub(channel),
            tokens=token_pb2_grpc.TokenServiceStub(channel),
            permissions=permission_pb2_grpc.PermissionServiceStub(channel),
            roles=rbac_pb2_grpc.RoleServiceStub(channel),
            bindings=rbac_pb2_grpc.RoleBindingServiceStub(channel),
        )


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the checkout to its end."""
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=110)


@contextmanager
def started(home: Path, *options: str, module: str = "services.up") -> Iterator[Endpoints]:
    """Run a stack in `home` with the settings of the tests while inside; yields where it is."""
    settings = [part for setting in SETTINGS for part in ("--env", setting)]
    done = run(sys.executable, "-m", module, "--detach", "--home", str(home), *settings, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    try:
        raw = json.loads((home / "endpoints.json").read_text())
        instances = tuple(RunningInstance(**one) for one in raw.pop("instances"))
        yield Endpoints(**raw, instances=instances)
    finally:
        run(sys.executable, "-m", "services.up.down", "--home", str(home))


@contextmanager
def running(home: Path, *options: str) -> Iterator[Suite]:
    """Run a stack in `home` while inside."""
    with started(home, *STACK, *options) as endpoints:
        yield Suite(home, endpoints)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """The stack, ready; gone afterwards."""
    with running(tmp_path_factory.mktemp("suite") / "home", *REPLICAS) as suite:
        yield suite


@pytest.fixture(scope="session")
async def suite(stack: Suite) -> AsyncIterator[Suite]:
    """The stack, with its channels closed in the end."""
    yield stack
    for channel in stack.channels.values():
        await channel.close()


@dataclass(frozen=True)
class Walk:
    """The walk-through that `scripts/up` printed, and what each line answered."""

    commands: list[str]
    answers: list[str]


@pytest.fixture(scope="session")
def walk(stack: Suite) -> Walk:
    """Paste the walk-through into a shell, line by line, before anything else happens on the stack."""
    commands = [line.strip() for line in walkthrough.lines(stack.endpoints).splitlines() if line.startswith("  ")]
    script = "\n".join(f"{command}\necho; echo ---8\\<---" for command in commands)
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return Walk(commands, [answer.strip() for answer in done.stdout.split("---8<---")][: len(commands)])


@dataclass(frozen=True)
class Person:
    """Somebody who logged in."""

    id: str
    email: str
    token: str
    refresh_token: str
    session_id: str

    @property
    def headers(self) -> dict[str, str]:
        """What REST calls prove this person by."""
        return {"authorization": f"Bearer {self.token}"}

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What gRPC calls prove this person by."""
        return (("authorization", f"Bearer {self.token}"),)


async def login(suite: Suite, email: str, password: str = PASSWORD, **more: str) -> Person:
    """Log in over REST."""
    async with suite.rest as rest:
        answer = await rest.post("/v1/auth/login", json={"login": email, "password": password, **more})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    tokens = body["tokens"]
    return Person(body["user"]["id"], email, tokens["access_token"], tokens["refresh_token"], tokens["session_id"])


@pytest.fixture(scope="session")
async def admin(suite: Suite, walk: Walk) -> Person:
    """The first administrator, whose password the walk-through has set."""
    assert walk.answers
    one_time = Path(suite.endpoints.admin_password_file).read_text().strip()  # noqa: ASYNC240
    return await login(suite, suite.endpoints.admin_email, walkthrough.new_password(one_time))


async def new_person(suite: Suite, admin: Person) -> Person:
    """Create an account and log in."""
    email = f"{uuid4().hex[:12]}@example.com"
    async with suite.rest as rest:
        made = await rest.post("/v1/users", json={"email": email, "password": PASSWORD, "email_verified": True}, headers=admin.headers)
    assert made.status_code == 200, made.text
    return await login(suite, email)


@pytest.fixture
async def person(suite: Suite, admin: Person) -> Person:
    """A person with no role."""
    return await new_person(suite, admin)


@dataclass(frozen=True)
class Client:
    """An OAuth client that has a token."""

    id: str
    secret: str
    token: str

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What gRPC calls prove this client by."""
        return (("authorization", f"Bearer {self.token}"),)


async def new_client(suite: Suite, admin: Person, *scopes: str) -> Client:
    """Create an OAuth client and have a token issued to it."""
    async with suite.rest as rest:
        made = await rest.post("/v1/oauth-clients", json={"display_name": "of the tests", "scopes": scopes}, headers=admin.headers)
        assert made.status_code == 200, made.text
        credentials = (made.json()["client"]["client_id"], made.json()["client_secret"])
        issued = await rest.post("/oauth2/token", data={"grant_type": "client_credentials"}, auth=credentials)
        assert issued.status_code == 200, issued.text
    return Client(*credentials, issued.json()["access_token"])


@pytest.fixture(scope="session")
async def operator(suite: Suite, admin: Person) -> Client:
    """A program that may manage the signing keys."""
    return await new_client(suite, admin, "signing-keys.manage")


@dataclass(frozen=True)
class Tenant:
    """Another customer, with its administrator."""

    id: str
    name: str
    admin: Person


@pytest.fixture(scope="session")
async def other_tenant(suite: Suite, admin: Person) -> Tenant:
    """A second tenant."""
    name, email = f"t{uuid4().hex[:10]}", f"{uuid4().hex[:12]}@other.example"
    async with suite.rest as rest:
        made = await rest.post("/v1/tenants", json={"name": name, "admin_email": email, "request_id": str(uuid4())}, headers=admin.headers)
    assert made.status_code == 200, made.text
    body = made.json()
    person = await login(suite, email, body["admin_password"], tenant=name, new_password=PASSWORD)
    return Tenant(body["tenant"]["id"], name, person)


async def sql(suite: Suite, statement: str, *arguments: object) -> list[Any]:
    """Ask the stack's Postgres."""
    connection = await asyncpg.connect(suite.endpoints.database_url)
    try:
        return list(await connection.fetch(statement, *arguments))
    finally:
        await connection.close()


def reason(answer: httpx.Response) -> str:
    """Return the machine-readable reason of a REST error."""
    with suppress(ValueError, KeyError, IndexError):
        return str(next(detail["reason"] for detail in answer.json()["details"] if "reason" in detail))
    return f"no reason in {answer.text!r}"
