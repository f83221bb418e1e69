"""Tasks and codes that are over are deleted; what somebody may still ask for stays."""

from uuid import uuid4

from tests.service.identity.conftest import TENANT, Stack

TASK = """
    INSERT INTO identity.task (id, kind, tenant_id, target_id, is_disabled, note, attempts, next_attempt_time, create_time, done_time,
                               consistency_token)
    VALUES ($1, 'revoke_subject', $2, $1, false, '', 0, 'infinity', now(), now() - $3::text::interval, '')
"""
CODE = "INSERT INTO identity.code (digest, account_id, kind, email_key, expire_time) VALUES ($1, $2, $3, 'a@b', now() - $4::text::interval)"


async def test_a_task_is_deleted_a_day_after_it_was_done(stack: Stack) -> None:
    """A repeat asks for it by its request_id within a day. One that is still to be done stays, however old."""
    done, lately, to_do = uuid4(), uuid4(), uuid4()
    for task, ago in ((done, "25 hours 1 minute"), (lately, "24 hours"), (to_do, None)):
        await stack.sql(TASK, task, TENANT, ago)

    await stack.identity.task_store.sweep()

    assert {row["id"] for row in await stack.sql("SELECT id FROM identity.task WHERE id = ANY($1)", [done, lately, to_do])} == {lately, to_do}
    await stack.sql("DELETE FROM identity.task WHERE id = $1", to_do)


async def test_a_code_is_deleted_a_day_after_its_end(stack: Stack) -> None:
    """Not at its end: an instance whose clock is a little slow takes it still."""
    account_id = (await stack.account()).user.id
    await stack.sql("DELETE FROM identity.code WHERE account_id = $1", account_id)
    await stack.sql(CODE, b"old", account_id, "email_verification", "1 day 1 minute")
    await stack.sql(CODE, b"late", account_id, "password_reset", "23 hours")

    await stack.identity.accounts.sweep_codes()

    assert [row["digest"] for row in await stack.sql("SELECT digest FROM identity.code WHERE account_id = $1", account_id)] == [b"late"]
