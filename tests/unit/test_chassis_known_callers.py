"""Callers that are remembered: until they expire, until a notice could concern them, and never on an answer that may lack one."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from services.chassis.call import Caller, CallerKind
from services.chassis.clock import Clock
from services.chassis.known_callers import AT_ONCE, NAMED, NOTICES, ROOM, Asked, KnownCallers
from services.chassis.tenancy import TenantId
from services.token.notices import KeyNotice, encode
from watchword.rules import EVERYWHERE, Revocation, RevokedKind

NOW = datetime(2030, 1, 1, tzinfo=UTC)
TENANT, USER, CLIENT, SESSION, TOKEN_ID = TenantId(uuid4()), uuid4(), uuid4(), uuid4(), uuid4()


class StillClock(Clock):
    """A clock that a test moves."""

    time = NOW

    def seconds(self) -> float:
        return self.time.timestamp()


class LeaseInHand:
    """A lease that a test moves."""

    def __init__(self) -> None:
        self.is_current = True
        self.unsettled: int | None = 0


class Memory(KnownCallers):
    """A memory in a test's hands."""

    def __init__(self, most: int = 100) -> None:
        self.clock, self.lease = StillClock(), LeaseInHand()
        super().__init__(most, self.clock)
        self.trust(self.lease)

    def learn(self, token: str = "anne", *, client_id: UUID | None = CLIENT, asked: Asked | None = None, **fields: Any) -> None:
        """Keep a caller, who was just proved if it is not said when."""
        self.keep(asked or self.ask(), caller(token, **fields), client_id=client_id)


def caller(token: str = "anne", **fields: Any) -> Caller:
    defaults: dict[str, Any] = {
        "kind": CallerKind.USER,
        "id": str(USER),
        "tenant_id": TENANT,
        "session_id": SESSION,
        "token_id": str(TOKEN_ID),
        "expire_time": NOW + timedelta(minutes=5),
    }
    return Caller(**{**defaults, "token": token, **fields})


def other(token: str = "bert") -> dict[str, Any]:
    """Return what makes a caller nobody else's business."""
    return {"token": token, "id": str(uuid4()), "tenant_id": TenantId(uuid4()), "session_id": uuid4(), "token_id": str(uuid4()), "client_id": None}


def revocation(kind: RevokedKind, key: UUID, tenant: UUID = TENANT) -> str:
    return encode(Revocation(tenant, kind, key, 7, NOW + timedelta(hours=1)))


def sessions(*ids: UUID) -> str:
    """Return the notice of many sessions, as token writes it."""
    members = {"type": "sessions", "tenant_id": TENANT, "revision": 7, "expire_time": NOW, "ids": b"".join(one.bytes for one in ids)}
    return msgspec.json.encode(members).decode()


def test_who_was_proved_is_recalled_whole() -> None:
    memory = Memory()

    memory.learn()

    assert memory.recall("anne") == caller("anne")
    assert memory.recall("bert") is None


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        (RevokedKind.TOKEN, TOKEN_ID),
        (RevokedKind.SESSION, SESSION),
        (RevokedKind.SUBJECT, USER),
        (RevokedKind.CLIENT, CLIENT),
        (RevokedKind.TENANT, TENANT),
    ],
)
def test_a_revocation_drops_whom_it_could_concern_and_nobody_else(kind: RevokedKind, key: UUID) -> None:
    memory = Memory()
    memory.learn()
    memory.learn(**other())

    memory.apply(revocation(kind, key))

    assert memory.recall("anne") is None
    assert memory.recall("bert") is not None


def test_a_notice_that_concerns_too_many_is_quick_and_drops_everybody() -> None:
    memory = Memory(most=AT_ONCE + 2)
    for number in range(AT_ONCE + 1):
        memory.learn(f"{number}", session_id=uuid4(), token_id=str(uuid4()))
    memory.learn(**other())

    memory.apply(revocation(RevokedKind.SUBJECT, USER))

    assert len(memory) == 0


def test_a_clients_own_token_falls_with_the_client() -> None:
    memory = Memory()
    memory.learn(kind=CallerKind.CLIENT, id=str(CLIENT), session_id=None, client_id=None)

    memory.apply(revocation(RevokedKind.CLIENT, CLIENT))

    assert memory.recall("anne") is None


def test_a_notice_of_many_sessions_drops_each() -> None:
    memory, second = Memory(), uuid4()
    memory.learn()
    memory.learn(**{**other(), "session_id": second})
    memory.learn(**other("carl"))

    memory.apply(sessions(uuid4(), SESSION, second))

    assert [memory.recall(token) is None for token in ("anne", "bert", "carl")] == [True, True, False]


@pytest.mark.parametrize(
    "notice",
    [
        encode(KeyNotice("kid", "RS256", "RETIRED", "pem")),
        revocation(RevokedKind.KEY, uuid4(), EVERYWHERE),
        revocation(RevokedKind.SUBJECT, uuid4(), EVERYWHERE),
        '{"type":"revocation","tenant_id":"00000000-0000-4000-8000-000000000001","kind":"planet","key":"00000000-0000-4000-8000-000000000001"}',
        '{"type":"of a later release"}',
        '{"type":"sessions","ids":"AAAA"}',
        "[]",
        "",
    ],
)
def test_a_key_and_whatever_is_not_understood_drop_everybody(notice: str) -> None:
    """A later release of token may tell what this one has no word for."""
    memory = Memory()
    memory.learn()
    memory.learn(**other())

    memory.apply(notice)

    assert len(memory) == 0
    assert memory.recall("anne") is None


def test_without_a_lease_nothing_is_recalled_and_nothing_kept() -> None:
    memory = Memory()
    memory.learn()
    memory.lease.is_current, memory.lease.unsettled = False, None

    assert memory.recall("anne") is None
    memory.learn(**other())

    memory.lease.is_current = True
    assert memory.recall("anne") is not None
    assert memory.recall("bert") is None


def test_a_memory_that_trusts_nothing_yet_keeps_nothing() -> None:
    memory = KnownCallers(10, StillClock())

    assert memory.ask() is None
    memory.keep(None, caller(), client_id=None)
    assert memory.recall("anne") is None


def test_nobody_is_recalled_at_the_moment_his_token_expires() -> None:
    memory = Memory()
    memory.learn()

    memory.clock.time = NOW + timedelta(minutes=5) - timedelta(microseconds=1)
    assert memory.recall("anne") is not None
    memory.clock.time = NOW + timedelta(minutes=5)
    assert memory.recall("anne") is None
    assert len(memory) == 0


def test_exchanged_tokens_are_not_kept() -> None:
    """The tokens that they were made from may be revoked, and the answer does not name those."""
    memory = Memory()

    memory.learn(is_acted_for=True)

    assert memory.recall("anne") is None


def test_an_answer_that_raced_a_notice_about_it_is_not_kept() -> None:
    memory = Memory()
    asked = memory.ask()

    memory.apply(revocation(RevokedKind.SESSION, SESSION))
    memory.learn(asked=asked)

    assert memory.recall("anne") is None


def test_an_answer_that_raced_a_notice_about_somebody_else_is_kept() -> None:
    """Else nobody would be remembered while there is always something that is revoked."""
    memory = Memory()
    asked = memory.ask()

    memory.apply(revocation(RevokedKind.SESSION, uuid4()))
    memory.learn(asked=asked)

    assert memory.recall("anne") is not None


@pytest.mark.parametrize("notice", [encode(KeyNotice("kid", "RS256", "RETIRED", "pem")), sessions(*(uuid4() for _ in range(NAMED + 1)))])
def test_an_answer_that_raced_what_concerns_everybody_or_too_many_is_not_kept(notice: str) -> None:
    memory = Memory()
    asked = memory.ask()

    memory.apply(notice)
    memory.learn(asked=asked)

    assert memory.recall("anne") is None


def test_an_answer_from_before_a_notice_that_was_applied_here_first_is_not_kept() -> None:
    """An instance of token that lags says VALID, and will not be corrected: the notice has passed here."""
    memory = Memory()
    memory.apply(revocation(RevokedKind.SESSION, SESSION))
    memory.lease.unsettled = 1

    memory.learn()
    assert memory.recall("anne") is None

    memory.lease.unsettled = 0
    memory.learn()
    assert memory.recall("anne") is not None


def test_an_answer_is_not_kept_while_notices_from_before_the_load_are_unsettled() -> None:
    """Nobody here knows whom they concern."""
    memory = Memory()
    memory.lease.unsettled = 1

    memory.learn()

    assert memory.recall("anne") is None


def test_an_answer_that_raced_more_notices_than_are_remembered_is_not_kept() -> None:
    memory = Memory()
    asked = memory.ask()
    memory.apply(revocation(RevokedKind.SESSION, SESSION))
    for _ in range(NOTICES):
        memory.apply(revocation(RevokedKind.SESSION, uuid4()))

    memory.learn(asked=asked)

    assert memory.recall("anne") is None


async def test_a_load_forgets_everybody_and_what_was_being_asked() -> None:
    memory = Memory()
    memory.learn()
    asked = memory.ask()

    await memory.load()
    memory.learn(asked=asked)

    assert memory.recall("anne") is None
    memory.learn()
    assert memory.recall("anne") is not None


def test_who_was_not_seen_for_longest_goes_first() -> None:
    memory = Memory(most=2)
    memory.learn()
    memory.learn(**other("bert"))
    memory.recall("anne")

    memory.learn(**other("carl"))

    assert [memory.recall(token) is None for token in ("anne", "bert", "carl")] == [False, True, False]


def test_large_tokens_leave_room_for_fewer() -> None:
    memory = Memory(most=8)

    for number in range(8):
        memory.learn(**other(str(number) * ROOM * 4))

    assert len(memory) == 2


def test_nothing_is_left_of_who_is_forgotten() -> None:
    """Neither by notices, nor by age, nor because the same token was proved twice."""
    memory = Memory(most=4)

    for number in range(50):
        memory.learn(f"{number}", session_id=uuid4(), token_id=str(uuid4()))
        memory.learn(f"{number}", session_id=uuid4(), token_id=str(uuid4()))
    assert len(memory) == 4
    assert len(memory._index) == 3 + 2 * 4
    memory.apply(revocation(RevokedKind.SUBJECT, USER))

    assert (len(memory), len(memory._index), memory._bytes) == (0, 0, 0)
