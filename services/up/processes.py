"""The table of processes: what the stack consists of, in what order it starts, and which settings each row is given.

One row is one process. `scripts/up` and the tests read this table and nothing else, so a new service is one more row here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from types import MappingProxyType

MOST_INSTANCES = 16  # of one service, on one machine


class Kind(Enum):
    """How a process is started, watched and stopped."""

    STORE = auto()  # an embedded server; left out when the environment names another one
    JOB = auto()  # runs to its end; exit 0 lets the rest go on
    SERVICE = auto()  # ours: speaks grpc.health.v1, drains on SIGTERM
    EDGE = auto()  # Envoy


@dataclass(frozen=True, slots=True)
class Process:
    """One row.

    name      also the name of its Envoy cluster and of its key
    after     what must be healthy before it starts
    module    what `python -m` runs, for jobs and services
    files     settings given as NAME_FILE: setting name to path below the home, unless the environment sets them
    settings  settings given as they are, unless the environment sets them; `{home}` stands for the home
    """

    name: str
    kind: Kind
    after: tuple[str, ...] = ()
    module: str = ""
    replicas: int = 1
    files: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)


DATABASE = MappingProxyType({"DATABASE_URL": "secrets/database-url"})
COMMON = MappingProxyType(
    {
        **DATABASE,
        "REDIS_URL": "secrets/redis-url",
        "SECURITY_SALT": "secrets/security-salt",
        "SERVICE_PUBLIC_KEYS": "secrets/service-public-keys.json",
    }
)
MAIL = MappingProxyType({"MAIL_DIR": "{home}/mail"})
ADMINISTRATOR = MappingProxyType({"BOOTSTRAP_ADMIN_EMAIL": "admin@example.com"})

TOKEN_FILES = {**COMMON, "SERVICE_KEY": "keys/token.pem", "KEY_ENCRYPTION_KEY": "secrets/key-encryption-key"}
RBAC_FILES = {**COMMON, "SERVICE_KEY": "keys/rbac.pem"}
IDENTITY_FILES = {**COMMON, "SERVICE_KEY": "keys/identity.pem"}
GATEWAY_FILES = {**COMMON, "SERVICE_KEY": "keys/gateway.pem"}
BOOTSTRAP_FILES = {**IDENTITY_FILES, "BOOTSTRAP_ADMIN_PASSWORD": "admin-password"}

PROCESSES: tuple[Process, ...] = (
    Process("postgres", Kind.STORE),
    Process("redis", Kind.STORE),
    Process("migrate", Kind.JOB, ("postgres",), "services.chassis.migrate", files=DATABASE),
    Process("token", Kind.SERVICE, ("migrate", "redis"), "services.token", replicas=2, files=TOKEN_FILES),
    Process("rbac", Kind.SERVICE, ("migrate", "redis"), "services.rbac", replicas=2, files=RBAC_FILES),
    Process("identity", Kind.SERVICE, ("token", "rbac"), "services.identity", replicas=2, files=IDENTITY_FILES, settings=MAIL),
    Process("gateway", Kind.SERVICE, ("identity",), "gateway", replicas=2, files=GATEWAY_FILES),
    Process("envoy", Kind.EDGE, ("token", "rbac", "identity", "gateway")),
    Process("bootstrap", Kind.JOB, ("envoy",), "services.identity.bootstrap", files=BOOTSTRAP_FILES, settings={**MAIL, **ADMINISTRATOR}),
)


def with_replicas(processes: Sequence[Process], wanted: Mapping[str, int]) -> tuple[Process, ...]:
    """Return the table with other numbers of instances. Raises ValueError for names that are no service."""
    services = {process.name for process in processes if process.kind is Kind.SERVICE}
    if strangers := sorted(set(wanted) - services):
        raise ValueError(f"--replicas: {', '.join(strangers)} is no service; the services are {', '.join(sorted(services))}")
    return tuple(replace(process, replicas=wanted.get(process.name, process.replicas)) for process in processes)


def stop_order(processes: Sequence[Process]) -> list[list[str]]:
    """Return groups of names: all of a group stop together, and each group after the one before it.

    Services go in the reverse order of need. Envoy outlives them, because a draining service waits for Envoy's health checks to see it.
    """
    depth: dict[str, int] = {}
    for process in processes:
        depth[process.name] = 1 + max((depth[name] for name in process.after), default=-1)
    groups: dict[tuple[int, int], list[str]] = {}
    turn = {Kind.JOB: 0, Kind.SERVICE: 1, Kind.EDGE: 2, Kind.STORE: 3}
    for process in processes:
        level = -depth[process.name] if process.kind is Kind.SERVICE else 0
        groups.setdefault((turn[process.kind], level), []).append(process.name)
    return [groups[key] for key in sorted(groups)]
