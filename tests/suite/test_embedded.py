"""The embedded servers, and what a stack stands on: ports, the home, the table of processes, the settings that services are given."""

import errno
import os
import socket
from pathlib import Path

import asyncpg
import pytest
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError

from services import embedded
from services.up.blueprint import Blueprint, Wishes, caller_settings
from services.up.home import Home, HomeError
from services.up.ports import PortBusy, reserve, reserve_any
from services.up.processes import PROCESSES, Kind, stop_order, with_replicas
from tests.conftest import Stores


async def test_postgres_is_the_release_and_the_locale_that_we_say(stores: Stores) -> None:
    """The same order of strings and the same case rules on every machine."""
    connection = await asyncpg.connect(stores.postgres)
    try:
        assert connection.get_server_version().major == 18
        assert await connection.fetchval("SHOW listen_addresses") == "127.0.0.1"
        locale = await connection.fetchval("SELECT concat(datlocprovider, ' ', datlocale) FROM pg_database WHERE datname = current_database()")
        assert locale == "b C.UTF-8"  # b: Postgres's own, whatever the machine's C library thinks
    finally:
        await connection.close()


async def test_postgres_refuses_a_wrong_password(stores: Stores) -> None:
    """Loopback is shared with every other user of the machine."""
    wrong = stores.postgres.replace("@", "x@")

    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(wrong)


async def test_valkey_refuses_callers_without_the_password(stores: Stores) -> None:
    """The same for counters and revocations."""
    stranger = Redis.from_url("redis://" + stores.redis.partition("@")[2])

    with pytest.raises(AuthenticationError):
        await stranger.ping()
    await stranger.aclose()


async def test_valkey_never_forgets_to_make_room(stores: Stores) -> None:
    """An evicted counter would forgive failed logins."""
    client = Redis.from_url(stores.redis, decode_responses=True)

    assert (await client.config_get("maxmemory-policy"))["maxmemory-policy"] == "noeviction"
    assert (await client.config_get("appendonly"))["appendonly"] == "yes"
    await client.aclose()


def test_no_password_is_in_a_command_line(tmp_path: Path) -> None:
    """Every user can read them with ps."""
    command = embedded.valkey_command(tmp_path, 1, "canary")

    assert "canary" not in " ".join(command)
    assert (tmp_path / "valkey.conf").stat().st_mode & 0o077 == 0


def test_a_half_made_cluster_is_made_anew(tmp_path: Path) -> None:
    """A first start that was interrupted must not spoil the second."""
    (tmp_path / "password").write_text("secret")
    (tmp_path / "pg.draft").mkdir()
    (tmp_path / "pg.draft" / "PG_VERSION").write_text("rubbish")

    embedded.create_cluster(tmp_path / "pg", tmp_path / "password", durable=False)

    assert (tmp_path / "pg" / "PG_VERSION").read_text().strip() == "18"
    assert not (tmp_path / "pg.draft").exists()


def test_a_reserved_port_is_nobody_elses_until_it_is_released() -> None:
    """Two stacks that start at once must not choose the same."""
    held = reserve_any()

    with pytest.raises(PortBusy, match="--rest-port"):
        reserve(held.port, option="--rest-port")
    held.release()
    with socket.socket() as taker:
        taker.bind(held.address)


def test_a_busy_port_names_the_option_that_changes_it() -> None:
    """The first thing that a stranger meets is port 8080 in use."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)

        with pytest.raises(PortBusy, match="--grpc-port"):
            reserve(other.getsockname()[1], option="--grpc-port")


def test_a_home_has_one_stack_at_a_time(tmp_path: Path) -> None:
    """Two would write into the same data."""
    first = Home(tmp_path / "home")
    first.claim()

    with pytest.raises(HomeError, match="scripts/down"):
        Home(tmp_path / "home").claim()
    assert Home(tmp_path / "home").occupant() == os.getpid()


def test_a_directory_that_is_no_home_is_left_alone(tmp_path: Path) -> None:
    """`--fresh --home ~` must not be the end of somebody's files."""
    (tmp_path / "thesis.txt").write_text("years of work")
    home = Home(tmp_path)

    with pytest.raises(HomeError, match="--home"):
        home.claim()
    with pytest.raises(HomeError):
        home.wipe()
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


def test_secrets_are_made_once_and_are_private(tmp_path: Path) -> None:
    """What is in the database depends on them."""
    home = Home(tmp_path / "home")
    home.claim()
    home.furnish(["token"])
    files = [path for path in home.path.rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}

    home.furnish(["token"])

    assert {path: path.read_bytes() for path in files} == before
    assert all(path.stat().st_mode & 0o077 == 0 for path in (home.path, *home.path.rglob("*")))
    assert len(home.admin_password.read_text().strip()) >= 20


def test_wiping_a_home_leaves_nothing_but_the_claim(tmp_path: Path) -> None:
    """`--fresh` means fresh, and nobody slips in meanwhile."""
    home = Home(tmp_path / "home")
    home.claim()
    home.furnish(["token"])

    home.wipe()

    assert [entry.name for entry in home.path.iterdir()] == [".watchword-home"]
    with pytest.raises(HomeError):
        Home(tmp_path / "home").claim()


def test_every_row_comes_after_the_rows_that_it_needs() -> None:
    """The table reads in the order of the start."""
    seen: set[str] = set()
    for row in PROCESSES:
        assert set(row.after) <= seen
        seen.add(row.name)


def test_callers_stop_before_what_they_call_and_envoy_before_the_stores() -> None:
    """A draining service waits for two health checks of Envoy, and its last calls need what it calls."""
    order = [name for group in stop_order(PROCESSES) for name in group]

    assert order.index("gateway") < order.index("identity") < order.index("token") < order.index("envoy") < order.index("postgres")
    assert set(order) == {row.name for row in PROCESSES}


def test_only_services_have_replicas() -> None:
    """Three instances of token, but not of Postgres."""
    table = with_replicas(PROCESSES, {"token": 3})

    assert {row.name: row.replicas for row in table if row.kind is Kind.SERVICE} == {"token": 3, "rbac": 2, "identity": 2, "gateway": 2}
    with pytest.raises(ValueError, match="postgres is no service"):
        with_replicas(PROCESSES, {"postgres": 2})


def blueprint(home: Home, settings: dict[str, str]) -> Blueprint:
    """Return the plan of a stack that inherits `settings`."""
    return Blueprint(PROCESSES, home=home, wishes=Wishes(settings), rest=reserve_any(), grpc=reserve_any())


def test_each_service_is_given_its_own_secrets_and_no_other(tmp_path: Path) -> None:
    """A compromised neighbour must not find the keys of token or of identity in its environment."""
    plan = blueprint(Home(tmp_path), {})
    environments = {instance.name: plan.environment(instance) for instance in plan.instances if instance.process.module}
    plan.release_all()

    assert [name for name, found in environments.items() if "KEY_ENCRYPTION_KEY_FILE" in found] == ["token-1", "token-2"]
    assert [name for name, found in environments.items() if "BOOTSTRAP_ADMIN_PASSWORD_FILE" in found] == ["bootstrap"]
    assert environments["rbac-2"]["SERVICE_KEY_FILE"] == str(tmp_path / "keys" / "rbac.pem")
    assert environments["rbac-2"]["INSTANCE_ID"] == "rbac-2"
    assert "SERVICE_KEY_FILE" not in environments["migrate"]


def test_what_the_caller_sets_wins(tmp_path: Path) -> None:
    """By NAME or by NAME_FILE; both at once would be refused by the services."""
    (tmp_path / "salt").write_text("mine")
    given = {"SECURITY_SALT_FILE": str(tmp_path / "salt"), "DATABASE_URL": "postgresql://elsewhere/db", "SMTP_HOST": "mail.example.com"}
    plan = blueprint(Home(tmp_path), given)
    environment = next(plan.environment(instance) for instance in plan.instances if instance.name == "identity-1")
    plan.release_all()

    assert environment["SECURITY_SALT_FILE"] == str(tmp_path / "salt")
    assert environment["DATABASE_URL"] == "postgresql://elsewhere/db"
    assert "DATABASE_URL_FILE" not in environment
    assert "MAIL_DIR" not in environment
    assert [row.name for row in plan.elsewhere] == ["postgres"]
    assert "postgres" not in {instance.name for instance in plan.instances}


def test_an_option_replaces_the_other_spelling_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--env SECURITY_SALT=x` over SECURITY_SALT_FILE in the shell means x."""
    monkeypatch.setenv("SECURITY_SALT_FILE", "/elsewhere")

    settings = caller_settings({"SECURITY_SALT": "x"})

    assert settings["SECURITY_SALT"] == "x"
    assert "SECURITY_SALT_FILE" not in settings


def test_a_port_below_1024_without_the_right_to_it_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Port 80 is a fair wish, and the answer says what to do."""

    def refuse(self: socket.socket, address: object) -> None:
        raise PermissionError(errno.EACCES, "refused")

    monkeypatch.setattr(socket.socket, "bind", refuse)

    with pytest.raises(PortBusy, match="--rest-port"):
        reserve(80, option="--rest-port")
