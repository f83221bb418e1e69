"""From the table to command lines: what each instance runs, with which settings, on which port, and how its health is asked.

The rule for settings: what the caller's environment says wins, by NAME or by NAME_FILE; the home's own secrets fill what it leaves open.
"""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path

from gateway.render import render
from gateway.tracing import Tracing
from gateway.upstreams import endpoints
from services import embedded
from services.up import probes
from services.up.child import Child, Command
from services.up.home import Home, write_private
from services.up.ports import HOST, Reservation, reserve_any
from services.up.processes import Kind, Process

CHECKOUT = Path(__file__).parent.parent.parent
STORE_SETTINGS = {"postgres": "DATABASE_URL", "redis": "REDIS_URL"}


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the caller of `scripts/up` may choose.

    settings  the environment that services inherit
    durable   False makes Postgres forget the safety of its writes, for speed in tests
    """

    settings: Mapping[str, str]
    durable: bool = True

    def given(self, name: str) -> str:
        """Return the setting as the caller gave it, by NAME or NAME_FILE, or an empty string."""
        if path := self.settings.get(f"{name}_FILE"):
            return Path(path).read_text(encoding="utf-8").strip()
        return self.settings.get(name, "")


class Route(Enum):
    """What Envoy is told of an instance."""

    NONE = auto()  # nothing: it is new, or about to go
    OPEN = auto()  # it gets calls while it is healthy
    RESTING = auto()  # it finishes its calls and gets no new ones, ready to be opened again


@dataclass(slots=True, eq=False)
class Instance:
    """One process of the stack, with the port that stays its own over restarts.

    metrics   the port where Prometheus may ask, for services and Envoy
    settings  what it is set to beside what the caller of `scripts/up` wished
    may_end   its end is no accident: it was stopped by command, or is on trial
    """

    process: Process
    name: str
    reservation: Reservation
    log: Path
    metrics: Reservation | None = None
    child: Child | None = field(default=None)
    settings: Mapping[str, str] = field(default_factory=dict)
    route: Route = Route.OPEN
    may_end: bool = False

    @property
    def is_running(self) -> bool:
        """Whether its process was started and has not ended."""
        return self.child is not None and self.child.is_running

    @property
    def address(self) -> str:
        """Its loopback address, as HOST:PORT."""
        return f"{HOST}:{self.reservation.port}"

    @property
    def metrics_url(self) -> str:
        """Where its numbers are, in Prometheus's words; empty for stores."""
        if self.metrics is None:
            return ""
        path = "/stats/prometheus" if self.process.kind is Kind.EDGE else "/metrics"
        return f"http://{HOST}:{self.metrics.port}{path}"

    def begin_log(self) -> None:
        """Begin a new log, keeping one generation of the old ones."""
        with suppress(FileNotFoundError):
            self.log.replace(self.log.with_suffix(".log.1"))


class Blueprint:
    """The stack as it is to be built."""

    def __init__(self, processes: Sequence[Process], *, home: Home, wishes: Wishes, rest: Reservation, grpc: Reservation) -> None:
        self._home = home
        self._wishes = wishes
        self._rest, self._grpc = rest, grpc
        self.processes = tuple(row for row in processes if not self._is_elsewhere(row))
        self.elsewhere = tuple(row for row in processes if self._is_elsewhere(row))
        self.instances = [self._instance(row, name) for row in self.processes for name in _names(row)]
        self._settings: dict[str, Mapping[str, str]] = {}

    @property
    def rest_url(self) -> str:
        """Where strangers reach the stack."""
        return f"http://{HOST}:{self._rest.port}"

    @property
    def grpc_address(self) -> str:
        """Where services and trusted clients reach the stack."""
        return f"{HOST}:{self._grpc.port}"

    @property
    def database_url(self) -> str:
        """The database, with its password."""
        return self._wishes.given("DATABASE_URL") or self._postgres_url(embedded.DATABASE)

    @property
    def redis_url(self) -> str:
        """The Redis-protocol server, with its password."""
        if given := self._wishes.given("REDIS_URL"):
            return given
        return f"redis://:{self._home.secret('redis-password')}@{self._one('redis').address}/0"

    @property
    def envoy_admin(self) -> str:
        """Envoy's admin address."""
        return self._one("envoy").address

    @property
    def admin_email(self) -> str:
        """Who the first administrator is."""
        return self._wishes.given("BOOTSTRAP_ADMIN_EMAIL") or self._default("bootstrap", "BOOTSTRAP_ADMIN_EMAIL")

    @property
    def admin_password_file(self) -> str:
        """Where the first administrator's one-time password is; empty if the caller gave it by value."""
        if self._wishes.settings.get("BOOTSTRAP_ADMIN_PASSWORD"):
            return ""
        return self._wishes.settings.get("BOOTSTRAP_ADMIN_PASSWORD_FILE") or str(self._home.admin_password)

    @property
    def mail_dir(self) -> str:
        """Where mail lands as files; empty if it is sent by SMTP."""
        if self._wishes.given("SMTP_HOST"):
            return ""
        return self._wishes.given("MAIL_DIR") or str(self._home.mail)

    @property
    def services(self) -> tuple[str, ...]:
        """The names of the services, in the order in which they start."""
        return tuple(row.name for row in self.processes if row.kind is Kind.SERVICE)

    def of(self, service: str) -> list[Instance]:
        """Return the instances of a service."""
        return [instance for instance in self.instances if instance.process.name == service]

    def add(self, service: str, settings: Mapping[str, str] | None = None) -> Instance:
        """Plan one more instance, by the lowest free number; `settings` are added to those that the service was last settled on."""
        taken = {instance.name for instance in self.instances}
        name = next(name for number in range(1, len(taken) + 2) if (name := f"{service}-{number}") not in taken)
        made = self._instance(next(row for row in self.processes if row.name == service), name)
        made.settings = overlaid(self._settings.get(service, {}), settings or {})
        made.route, made.may_end = Route.NONE, True
        self.instances.insert(self.instances.index(self.of(service)[-1]) + 1, made)
        return made

    def settle(self, instance: Instance) -> None:
        """Let `instance` be one like the others: its end is an accident from now on, and what it is set to holds for all that are added."""
        instance.may_end = False
        self._settings[instance.process.name] = instance.settings

    def forget(self, instance: Instance) -> None:
        """Take an instance that does not run any more out of the stack."""
        self.release(instance)
        self.instances.remove(instance)

    def tell_envoy(self, service: str) -> None:
        """Replace Envoy's file of the service's instances."""
        known = [instance for instance in self.of(service) if instance.route is not Route.NONE]
        resting = {instance.reservation.address for instance in known if instance.route is Route.RESTING}
        endpoints(self._home.envoy, service, [instance.reservation.address for instance in known], resting=resting)

    def write_addresses(self) -> None:
        """Put the stores' addresses, which are new with every start, where the services' settings point to."""
        write_private(self._home.secrets / "database-url", self.database_url)
        write_private(self._home.secrets / "redis-url", self.redis_url)

    def command(self, instance: Instance) -> Command:
        """Return what `instance` runs, having prepared its files. Blocks, up to a second for a new Postgres cluster. Raises EmbeddedError."""
        port, home = instance.reservation.port, self._home
        match instance.process.name:
            case "postgres":
                embedded.create_cluster(home.postgres, home.secrets / "postgres-password", durable=self._wishes.durable)
                arguments = embedded.postgres_command(home.postgres, port, durable=self._wishes.durable)
                # SIGINT is Postgres's fast shutdown; SIGTERM would wait for every client to go.
                return Command(arguments, embedded.SERVER_ENVIRONMENT, home.path, signal.SIGINT, signal.SIGINT)
            case "redis":
                arguments = embedded.valkey_command(home.redis, port, home.secret("redis-password"))
                return Command(arguments, embedded.SERVER_ENVIRONMENT, home.redis, death_signal=signal.SIGTERM)
            case "envoy":
                return Command(embedded.envoy_command(self._render()), embedded.SERVER_ENVIRONMENT, home.envoy)
            case _:
                arguments = [sys.executable, "-X", "frozen_modules=on", "-m", instance.process.module]
                return Command(arguments, self.environment(instance), CHECKOUT)

    def probe(self, instance: Instance) -> probes.Probe:
        """Return how to ask whether `instance` is healthy."""
        host, port = instance.reservation.address
        match instance.process.name:
            case "postgres":
                return probes.postgres_accepting(self._postgres_url("postgres"))
            case "redis":
                return probes.valkey_answering(host, port, self._home.secret("redis-password"))
            case "envoy":
                return probes.envoy_ready(host, port)
            case _:
                return probes.grpc_serving(host, port)

    def release(self, instance: Instance) -> None:
        """Give up the ports that `instance` is about to bind."""
        instance.reservation.release()
        if instance.metrics:
            instance.metrics.release()
        if instance.process.kind is Kind.EDGE:
            self._rest.release()
            self._grpc.release()

    def release_all(self) -> None:
        """Give up every port."""
        for instance in self.instances:
            self.release(instance)

    def environment(self, instance: Instance) -> dict[str, str]:
        """Return the environment of a service or a job."""
        row, given = instance.process, overlaid(self._wishes.settings, instance.settings)
        defaults = {f"{name}_FILE": str(self._home.path / path) for name, path in row.files.items() if not _is_set(given, name)}
        defaults |= {name: value.format(home=self._home.path) for name, value in row.settings.items() if not _is_set(given, name)}
        if _is_set(given, "SMTP_HOST"):
            defaults.pop("MAIL_DIR", None)
        if not _is_set(given, "PUBLIC_BASE_URL"):
            defaults["PUBLIC_BASE_URL"] = self.rest_url
        own = {"INTERNAL_GRPC_ADDRESS": self.grpc_address, "INSTANCE_ID": instance.name, "PYTHONUNBUFFERED": "1"}
        if row.kind is Kind.SERVICE:
            own["GRPC_ADDRESS"] = instance.address
        if row.kind is Kind.SERVICE and instance.metrics:
            own["METRICS_ADDRESS"] = f"{HOST}:{instance.metrics.port}"
        inherited = {name: value for name, value in given.items() if name.removesuffix("_FILE") not in own}
        return {**inherited, **defaults, **own}

    def _instance(self, row: Process, name: str) -> Instance:
        is_metered = row.kind in (Kind.SERVICE, Kind.EDGE)
        return Instance(row, name, reserve_any(), self._home.log(name), reserve_any() if is_metered else None)

    def _render(self) -> Path:
        origins = [origin.strip() for origin in self._wishes.given("CORS_ORIGINS").split(",") if origin.strip()]
        envoy = self._one("envoy")
        path = render(
            self._home.envoy,
            rest=self._rest.address,
            grpc=self._grpc.address,
            admin=envoy.reservation.address,
            upstreams={service: [instance.reservation.address for instance in self.of(service)] for service in self.services},
            cors_origins=origins,
            metrics=envoy.metrics.address if envoy.metrics else None,
            tracing=Tracing.parse(self._wishes.given("OTEL_EXPORTER_OTLP_ENDPOINT"), self._wishes.given("OTEL_TRACES_SAMPLER_ARG")),
        )
        for service in self.services:
            self.tell_envoy(service)
        return path

    def _one(self, name: str) -> Instance:
        return next(instance for instance in self.instances if instance.name == name)

    def _default(self, process: str, setting: str) -> str:
        return next((row.settings.get(setting, "") for row in self.processes if row.name == process), "")

    def _postgres_url(self, database: str) -> str:
        return f"postgresql://{embedded.SUPERUSER}:{self._home.secret('postgres-password')}@{self._one('postgres').address}/{database}"

    def _is_elsewhere(self, row: Process) -> bool:
        return row.kind is Kind.STORE and _is_set(self._wishes.settings, STORE_SETTINGS[row.name])


def caller_settings(extra: Mapping[str, str]) -> dict[str, str]:
    """Return the caller's environment with `extra` on top."""
    return overlaid(os.environ, extra)


def overlaid(settings: Mapping[str, str], extra: Mapping[str, str]) -> dict[str, str]:
    """Return `settings` with `extra` on top; a NAME in one replaces a NAME_FILE in the other."""
    replaced = {f"{name}_FILE" for name in extra} | {name.removesuffix("_FILE") for name in extra if name.endswith("_FILE")}
    return {**{name: value for name, value in settings.items() if name not in replaced}, **extra}


def _names(row: Process) -> list[str]:
    return [row.name] if row.kind is not Kind.SERVICE else [f"{row.name}-{number + 1}" for number in range(row.replicas)]


def _is_set(settings: Mapping[str, str], name: str) -> bool:
    return bool(settings.get(name) or settings.get(f"{name}_FILE"))
