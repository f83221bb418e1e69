"""Accounts and one-time codes in Postgres."""

from datetime import datetime
from uuid import UUID

import asyncpg

from services.chassis.crashpoint import crashpoint
from services.chassis.postgres import Change, Connection, Database, Row, Sweep
from services.chassis.tenancy import TenantId
from services.identity.accounts import Account, AccountState, Credential, NewAccount
from services.identity.codes import CodeKind, Redeemed

COLUMNS = """
    a.id, a.tenant_id, a.email, a.email_key, a.email_verified, a.username, a.username_key, a.display_name, a.state, a.revision,
    a.create_time, a.update_time, a.last_login_time, a.locked_until
"""
# The revision is read by the statement, hence in the snapshot, that reads the account.
CREDENTIAL = f"""
    {COLUMNS}, a.password_hash, a.password_one_time, a.familiar_places,
    coalesce((SELECT r.revision FROM suite.tenant_revision r WHERE r.tenant_id = a.tenant_id), 0) AS tenant_revision
"""  # noqa: S608
FAMILIAR_PLACES = 5  # kept of an account


class AccountStore:
    """Reads and writes accounts."""

    def __init__(self, database: Database) -> None:
        self._database = database

    _FIND_BY_LOGIN = f"SELECT {CREDENTIAL} FROM account a WHERE a.tenant_id = $1 AND (a.email_key = $2 OR a.username_key = $2)"  # noqa: S608

    async def find_by_login(self, tenant_id: TenantId, key: str) -> Credential | None:
        """Return whom a canonical login means."""
        row = await self._database.fetch_row(self._FIND_BY_LOGIN, tenant_id, key)
        return _credential(row) if row else None

    _FIND_CREDENTIAL = f"SELECT {CREDENTIAL} FROM account a WHERE a.tenant_id = $1 AND a.id = $2"  # noqa: S608

    async def find_credential(self, tenant_id: TenantId, account_id: UUID) -> Credential | None:
        """Return an account with what proves it."""
        row = await self._database.fetch_row(self._FIND_CREDENTIAL, tenant_id, account_id)
        return _credential(row) if row else None

    _FIND = f"SELECT {COLUMNS} FROM account a WHERE a.tenant_id = $1 AND a.id = $2"  # noqa: S608

    async def find(self, tenant_id: TenantId, account_id: UUID) -> Account | None:
        """Return an account."""
        row = await self._database.fetch_row(self._FIND, tenant_id, account_id)
        return _account(row) if row else None

    _LIST = f"""
        SELECT {COLUMNS} FROM account a
        WHERE a.tenant_id = $1 AND ($2::uuid IS NULL OR a.id > $2) AND ($3::text IS NULL OR a.email_key = $3 OR a.username_key = $3)
          AND ($4::text IS NULL OR a.state = $4)
        ORDER BY a.id LIMIT $5
    """  # noqa: S608

    async def list(self, tenant_id: TenantId, *, after: UUID | None, login: str | None, state: AccountState | None, limit: int) -> list[Account]:
        """Return accounts, oldest first."""
        return [_account(row) for row in await self._database.fetch(self._LIST, tenant_id, after, login, state, limit)]

    _LOCK = f"SELECT {COLUMNS} FROM account a WHERE a.tenant_id = $1 AND a.id = $2 FOR UPDATE"  # noqa: S608

    async def lock(self, change: Change, tenant_id: TenantId, account_id: UUID) -> Account | None:
        """Return an account that nobody else changes until this transaction ends."""
        row = await change.connection.fetchrow(self._LOCK, tenant_id, account_id)
        return _account(row) if row else None

    _INSERT = f"""
        INSERT INTO account AS a (id, tenant_id, email, email_key, email_verified, username, username_key, display_name, state, password_hash,
                                  password_one_time, revision, create_time, update_time)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 'active', $9, $10, 1, $11, $11)
        ON CONFLICT DO NOTHING RETURNING {COLUMNS}
    """  # noqa: S608

    async def insert(self, change: Change, new: NewAccount) -> Account | None:
        """Make an account, or return None if one of its names is taken. Waits for a twin that is being made."""
        row = await change.connection.fetchrow(
            self._INSERT,
            new.id,
            new.tenant_id,
            new.email,
            new.email_key,
            new.email_verified,
            new.username,
            new.username_key,
            new.display_name,
            new.password_hash,
            new.is_one_time,
            new.create_time,
        )
        return _account(row) if row else None

    _IS_USERNAME_TAKEN = """
        SELECT EXISTS (SELECT FROM account WHERE tenant_id = $1 AND username_key = $2)
            OR EXISTS (SELECT FROM username_hold WHERE tenant_id = $1 AND username_key = $2)
    """

    async def is_username_taken(self, change: Change, tenant_id: TenantId, key: str) -> bool:
        """Whether a registration may not have this user name."""
        return bool(await change.connection.fetchval(self._IS_USERNAME_TAKEN, tenant_id, key))

    _IS_EMAIL_TAKEN = "SELECT EXISTS (SELECT FROM account WHERE tenant_id = $1 AND email_key = $2)"

    async def is_email_taken(self, change: Change, tenant_id: TenantId, key: str) -> bool:
        """Whether an account has this address."""
        return bool(await change.connection.fetchval(self._IS_EMAIL_TAKEN, tenant_id, key))

    _HOLD_USERNAME = "INSERT INTO username_hold (tenant_id, username_key) VALUES ($1, $2) ON CONFLICT DO NOTHING"

    async def hold_username(self, change: Change, tenant_id: TenantId, key: str) -> None:
        """Keep a user name from registrations."""
        await change.connection.execute(self._HOLD_USERNAME, tenant_id, key)

    _UPDATE_NAMES = f"""
        UPDATE account AS a SET email = $3, email_key = $4, email_verified = $5, username = $6, username_key = $7, display_name = $8,
               revision = revision + 1, update_time = $9
        WHERE a.tenant_id = $1 AND a.id = $2
          AND NOT EXISTS (SELECT FROM account o WHERE o.tenant_id = $1 AND o.id <> $2 AND (o.email_key = $4 OR o.username_key = $7))
        RETURNING {COLUMNS}
    """  # noqa: S608

    async def update_names(self, change: Change, account: Account, now: datetime) -> Account | None:
        """Write the names of `account`, or return None if one is taken."""
        names = (account.email, account.email_key, account.email_verified, account.username, account.username_key, account.display_name)
        try:
            row = await change.connection.fetchrow(self._UPDATE_NAMES, account.tenant_id, account.id, *names, now)
        except asyncpg.UniqueViolationError:  # somebody else took it in this very moment; the transaction is over
            return None
        return _account(row) if row else None

    _SET_STATE = f"UPDATE account AS a SET state = $3, revision = revision + 1, update_time = $4 WHERE tenant_id = $1 AND id = $2 RETURNING {COLUMNS}"  # noqa: S608

    async def set_state(self, change: Change, account: Account, state: AccountState, now: datetime) -> Account:
        """Disable or enable an account that is locked by this transaction."""
        return _account(await change.connection.fetchrow(self._SET_STATE, account.tenant_id, account.id, state, now))

    _SET_PASSWORD = """
        UPDATE account SET password_hash = $3, password_one_time = false, locked_until = NULL, revision = revision + 1, update_time = $4
        WHERE id = $1 AND password_hash = $2
    """  # noqa: S105

    async def replace_password(self, change: Change, credential: Credential, password_hash: str, now: datetime) -> bool:
        """Replace the password that was proved; False if it was replaced in between."""
        done = await change.connection.execute(self._SET_PASSWORD, credential.account.id, credential.password_hash, password_hash, now)
        return bool(done == "UPDATE 1")

    _RESET_PASSWORD = """
        UPDATE account SET password_hash = $3, password_one_time = false, email_verified = true, locked_until = NULL,
               revision = revision + 1, update_time = $4
        WHERE id = $1 AND email_key = $2
    """  # noqa: S105

    async def reset_password(self, change: Change, redeemed: Redeemed, password_hash: str, now: datetime) -> bool:
        """Set the password of whoever reads mail at the account's address; False if the address is another by now."""
        return bool(await change.connection.execute(self._RESET_PASSWORD, redeemed.account_id, redeemed.email_key, password_hash, now) == "UPDATE 1")

    _VERIFY_EMAIL = "UPDATE account SET email_verified = true, revision = revision + 1, update_time = $3 WHERE id = $1 AND email_key = $2"

    async def verify_email(self, change: Change, redeemed: Redeemed, now: datetime) -> bool:
        """Take the address as verified; False if it is another by now."""
        return bool(await change.connection.execute(self._VERIFY_EMAIL, redeemed.account_id, redeemed.email_key, now) == "UPDATE 1")

    # A lock was not asked at a familiar place, so a login there does not end it.
    _NOTE_LOGIN = """
        UPDATE account SET last_login_time = $2, password_hash = CASE WHEN password_hash = $3 THEN $4 ELSE password_hash END,
               locked_until = CASE WHEN $5 = ANY (familiar_places) THEN locked_until END,
               familiar_places = (array_prepend($5, array_remove(familiar_places, $5)))[1:$6]
        WHERE id = $1
    """

    async def note_login(self, change: Change, credential: Credential, now: datetime, *, rehashed: str | None) -> None:
        """Write down a login and where it was, and the same password hashed anew if it was."""
        old = credential.password_hash
        await change.connection.execute(self._NOTE_LOGIN, credential.account.id, now, old, rehashed or old, credential.place, FAMILIAR_PLACES)

    _SET_LOCK = "UPDATE account SET locked_until = $2 WHERE id = $1"

    async def set_lock(self, change: Change, account_id: UUID, until: datetime | None) -> None:
        """Keep an account's pause where it survives the loss of Redis, or end it."""
        await change.connection.execute(self._SET_LOCK, account_id, until)

    _DELETE = "DELETE FROM account WHERE tenant_id = $1 AND id = $2"

    async def delete(self, change: Change, account: Account) -> None:
        """Delete an account with its codes."""
        await change.connection.execute(self._DELETE, account.tenant_id, account.id)

    _PUT_CODE = """
        INSERT INTO code (digest, account_id, kind, email_key, expire_time) VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT (account_id, kind) DO UPDATE
            SET digest = excluded.digest, email_key = excluded.email_key, expire_time = excluded.expire_time
    """

    async def put_code(self, change: Change, account: Account, kind: CodeKind, code_digest: bytes, expire_time: datetime) -> None:
        """Keep a code's digest; the account's older one of this kind is worth nothing from now on."""
        await change.connection.execute(self._PUT_CODE, code_digest, account.id, kind, account.email_key, expire_time)

    _FIND_BY_CODE = f"""
        SELECT {COLUMNS} FROM account a JOIN code c ON c.account_id = a.id
        WHERE c.digest = $1 AND c.kind = $2 AND c.expire_time > $3 AND c.email_key = a.email_key
    """  # noqa: S608

    async def find_by_code(self, code_digest: bytes, kind: CodeKind, now: datetime) -> Account | None:
        """Return whose code this is, without using it."""
        row = await self._database.fetch_row(self._FIND_BY_CODE, code_digest, kind, now)
        return _account(row) if row else None

    # One statement decides: of many at once, exactly one deletes the row. The account is locked first, as by all that change both.
    _REDEEM_CODE = """
        WITH owner AS (
            SELECT a.id, a.tenant_id FROM account a JOIN code c ON c.account_id = a.id
            WHERE c.digest = $1 AND c.kind = $2 AND c.expire_time > $3 FOR UPDATE OF a
        )
        DELETE FROM code c USING owner
        WHERE c.account_id = owner.id AND c.digest = $1 AND c.kind = $2 AND c.expire_time > $3
        RETURNING c.account_id, owner.tenant_id, c.email_key
    """

    async def redeem_code(self, change: Change, code_digest: bytes, kind: CodeKind, now: datetime) -> Redeemed | None:
        """Use up a code, once."""
        row = await change.connection.fetchrow(self._REDEEM_CODE, code_digest, kind, now)
        crashpoint("code.after_redeem")
        return Redeemed(row["account_id"], row["tenant_id"], row["email_key"]) if row else None

    _DELETE_CODES = "DELETE FROM code WHERE account_id = $1"

    async def delete_codes(self, change: Change, account_id: UUID) -> None:
        """Make all codes of an account worthless."""
        await change.connection.execute(self._DELETE_CODES, account_id)

    SWEEP_CODES = Sweep("code", "expire_time", before="now() - interval '1 day'")

    async def sweep_codes(self) -> None:
        """Delete codes that expired a day ago."""
        await self._database.sweep(self.SWEEP_CODES)


async def read_account(connection: Connection, tenant_id: TenantId, email_key: str) -> Account | None:
    """Return the account of an address, inside a transaction."""
    row = await connection.fetchrow(f"SELECT {COLUMNS} FROM account a WHERE a.tenant_id = $1 AND a.email_key = $2 FOR SHARE", tenant_id, email_key)  # noqa: S608
    return _account(row) if row else None


def _credential(row: Row) -> Credential:
    places = tuple(row["familiar_places"])
    return Credential(_account(row), row["password_hash"], row["password_one_time"], row["tenant_revision"], places)


def _account(row: Row) -> Account:
    return Account(
        id=row["id"],
        tenant_id=row["tenant_id"],
        email=row["email"],
        email_key=row["email_key"],
        email_verified=row["email_verified"],
        username=row["username"],
        username_key=row["username_key"],
        display_name=row["display_name"],
        state=AccountState(row["state"]),
        revision=row["revision"],
        create_time=row["create_time"],
        update_time=row["update_time"],
        last_login_time=row["last_login_time"],
        locked_until=row["locked_until"],
    )
