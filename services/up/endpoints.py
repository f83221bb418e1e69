"""`endpoints.json`: where a running stack is, for tests, tools and people. Written whole, once the stack is ready, and gone when it is not."""

import json
import os
from dataclasses import asdict, dataclass

from services.up.blueprint import Blueprint, Instance
from services.up.home import Home, write_private
from services.up.processes import Kind
from services.up.supervisor import Stack


@dataclass(frozen=True, slots=True)
class RunningInstance:
    """One process; `pid` is null while it is stopped by command, `metrics` is a URL, empty for stores."""

    service: str
    name: str
    address: str
    pid: int | None
    log: str
    metrics: str


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Everything that is needed to use the stack. Holds passwords, so its file is private."""

    rest: str
    grpc: str
    database_url: str
    redis_url: str
    envoy_admin: str
    supervisor_pid: int
    control: str
    admin_email: str
    admin_password_file: str
    mail_dir: str
    service_keys: dict[str, str]
    instances: tuple[RunningInstance, ...]


def describe(home: Home, blueprint: Blueprint, stack: Stack) -> Endpoints:
    """Say where everything is now."""
    running = (_running(one) for one in stack.instances)
    return Endpoints(
        rest=blueprint.rest_url,
        grpc=blueprint.grpc_address,
        database_url=blueprint.database_url,
        redis_url=blueprint.redis_url,
        envoy_admin=blueprint.envoy_admin,
        supervisor_pid=os.getpid(),
        control=str(home.control),
        admin_email=blueprint.admin_email,
        admin_password_file=blueprint.admin_password_file,
        mail_dir=blueprint.mail_dir,
        service_keys={row.name: str(home.key(row.name)) for row in blueprint.processes if row.kind is Kind.SERVICE},
        instances=tuple(running),
    )


def _running(one: Instance) -> RunningInstance:
    pid = one.child.pid if one.child and one.child.is_running else None
    return RunningInstance(one.process.name, one.name, one.address, pid, str(one.log), one.metrics_url)


def publish(home: Home, endpoints: Endpoints) -> None:
    """Write the file, at once and private."""
    write_private(home.endpoints, json.dumps(asdict(endpoints), indent=2) + "\n")
