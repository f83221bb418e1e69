"""The home of a stack: the one directory that holds its data, keys, passwords, mail and logs, closed to other users.

A home belongs to one stack at a time: who holds the lock on its marker file may change it, and the kernel gives the lock back however that
process ends. The marker is also what tells a home from a directory that must not be wiped.
"""

import fcntl
import json
import os
import secrets
import shutil
from base64 import b64encode
from collections.abc import Callable, Sequence
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MARKER = ".watchword-home"
LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"  # none that people mistake for another


class HomeError(Exception):
    """The home cannot be used; the text says why."""


class Home:
    """Where everything of one stack is."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.logs = self.path / "logs"
        self.mail = self.path / "mail"
        self.keys = self.path / "keys"
        self.secrets = self.path / "secrets"
        self.postgres = self.path / "pg"
        self.redis = self.path / "redis"
        self.envoy = self.path / "envoy"
        self.admin_password = self.path / "admin-password"
        self.endpoints = self.path / "endpoints.json"
        self.control = self.path / "control.sock"
        self._marker = self.path / MARKER
        self._lock: int | None = None

    def claim(self) -> None:
        """Make this process the only one that runs a stack here; make the home if there is none. Raises HomeError."""
        if self.path.is_dir() and not self._marker.exists() and any(self.path.iterdir()):
            raise HomeError(f"{self.path} holds something else than a stack; name an empty or new directory with --home")
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.chmod(0o700)
            lock = os.open(self._marker, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise HomeError(f"cannot use {self.path}: {error.strerror}; name another directory with --home") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise HomeError(f"a stack is running in {self.path}; stop it with scripts/down, or name another directory with --home") from None
        self._lock = lock
        self.sign()

    def sign(self) -> None:
        """Write this process's id into the marker, so that `scripts/down` knows whom to ask."""
        if self._lock is not None:
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, str(os.getpid()).encode(), 0)

    def occupant(self) -> int | None:
        """Return the process id of the stack that runs here, or None."""
        try:
            lock = os.open(self._marker, os.O_RDWR)
        except OSError:
            return None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(os.pread(lock, 20, 0) or 0)
        finally:
            os.close(lock)
        return None

    def wipe(self) -> None:
        """Delete everything but the marker. The caller must have claimed the home."""
        if self._lock is None:
            raise HomeError(f"{self.path} is not claimed")
        for entry in self.path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry != self._marker:
                entry.unlink()

    def furnish(self, services: Sequence[str]) -> None:
        """Make the directories and whatever secret is missing. What is there stays: data of an earlier run depends on it."""
        for directory in (self.logs, self.mail, self.keys, self.secrets, self.redis, self.envoy):
            directory.mkdir(mode=0o700, exist_ok=True)
        self._once(self.secrets / "postgres-password", lambda: secrets.token_hex(24))
        self._once(self.secrets / "redis-password", lambda: secrets.token_hex(24))
        # Hex digits spell none of the words that production takes for a weak salt.
        self._once(self.secrets / "security-salt", lambda: secrets.token_hex(48))
        self._once(self.secrets / "key-encryption-key", lambda: b64encode(secrets.token_bytes(32)).decode())
        self._once(self.admin_password, one_time_password)
        for service in services:
            self._once(self.key(service), _private_key)
        public_keys = {service: _public_key(self.key(service)) for service in services}
        write_private(self.secrets / "service-public-keys.json", json.dumps(public_keys, indent=1))

    def key(self, service: str) -> Path:
        """Return where a service's private key is."""
        return self.keys / f"{service}.pem"

    def log(self, name: str) -> Path:
        """Return where a process's log is."""
        return self.logs / f"{name}.log"

    def secret(self, name: str) -> str:
        """Read a secret by the name of its file."""
        return (self.secrets / name).read_text(encoding="utf-8").strip()

    @staticmethod
    def _once(path: Path, make: Callable[[], str]) -> None:
        if not path.exists():
            write_private(path, make() + "\n")


def write_private(path: Path, text: str) -> None:
    """Replace the file at once, readable to its owner alone: nobody ever sees half of it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def one_time_password() -> str:
    """Return four groups of five letters and digits, such as a person can copy from paper: 99 bits."""
    return "-".join("".join(secrets.choice(LETTERS) for _ in range(5)) for _ in range(4))


def _private_key() -> str:
    key = Ed25519PrivateKey.generate()
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode().strip()


def _public_key(path: Path) -> str:
    key = serialization.load_pem_private_key(path.read_bytes(), password=None).public_key()
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
