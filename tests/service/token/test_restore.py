"""A database that was dumped and restored elsewhere, as operators do who move, or lose a disk: what held there holds here."""

import os
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric import rsa

from services import embedded
from tests.conftest import Keys, Stores
from tests.service.token.test_sessions import instances
from watchword.token.v1 import token_pb2


def tool(name: str, url: str, *arguments: str, stdin: bytes = b"") -> bytes:
    """Run a tool of Postgres's upon a database."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    where = {"PGHOST": parts.hostname, "PGPORT": str(parts.port), "PGUSER": parts.username or "", "PGPASSWORD": parts.password or ""}
    command = [str(embedded.postgres_binary(name)), *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, check=False, env={**os.environ, **where}, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


async def test_what_was_dumped_and_restored_holds_in_the_new_database(stores: Stores, service_keys: Keys, tmp_path: Path) -> None:
    """Tokens and revocations of before are what they were, and the revision goes on: no consistency token of before is of a future that never was."""
    url, key = await stores.new_database(), rsa.generate_private_key(65537, 2048)
    async with instances(stores, service_keys, tmp_path / "before", url=url, key=key) as first:
        good, bad = await first.issue(), await first.issue()
        revoke = token_pb2.RevokeTokenRequest(token=bad.access_token)
        await first.stubs[0].RevokeToken(revoke, metadata=(("authorization", f"Bearer {bad.access_token}"),))
        before = await first.revision()
    name = f"{urlsplit(url).path.lstrip('/')}_restored"
    tool("psql", stores.postgres, "--dbname=postgres", "--command", f"CREATE DATABASE {name}")
    dumped = tool("pg_dump", url, "--format=custom", urlsplit(url).path.lstrip("/"))
    tool("pg_restore", url, "--exit-on-error", f"--dbname={name}", stdin=dumped)

    async with instances(stores, service_keys, tmp_path / "after", url=f"{url}_restored", key=key) as second:
        assert [await second.status(good.access_token, at=at) for at in (0, 1)] == ["VALID"] * 2
        assert [await second.status(bad.access_token, at=at) for at in (0, 1)] == ["REVOKED"] * 2
        assert await second.revision() == before
        revoke = token_pb2.RevokeTokenRequest(token=good.access_token)
        await second.stubs[0].RevokeToken(revoke, metadata=(("authorization", f"Bearer {good.access_token}"),))
        assert await second.status(good.access_token, at=1) == "REVOKED"
        assert await second.revision() > before
