"""What we hand out and take back: page tokens, consistency tokens, sealed records. Altered, moved or made-up ones are refused."""

import base64
from uuid import UUID

import pytest

from services.chassis.consistency import ConsistencyTokens
from services.chassis.pages import DEFAULT_SIZE, MAX_SIZE, Pager, PageRequest
from services.chassis.sealing import Sealer, derive, digest
from services.chassis.tenancy import DEFAULT_TENANT, TenantId
from tests.conftest import SALT
from watchword.errors import InvalidRequest, PageTokenInvalid

OTHER_TENANT = TenantId(UUID("00000000-0000-7000-8000-000000000002"))
QUERY = ("ListUsers", "status=active")
PAGER = Pager(derive(SALT, "pages"))


def read(token: str, *, size: int = 2, tenant: TenantId = DEFAULT_TENANT, query: tuple[str, ...] = QUERY, pager: Pager = PAGER) -> PageRequest:
    return pager.read(page_size=size, page_token=token, tenant_id=tenant, query=query)


def first_token() -> str:
    return PAGER.page(["a", "b", "c"], read(""), key=lambda row: (row, "é"), tenant_id=DEFAULT_TENANT, query=QUERY).next_token


def test_pages_follow_one_another_to_the_end() -> None:
    """Rows are read with one more than the page holds; the last page has no token."""
    rows, seen, token = [f"{number:03}" for number in range(25)], list[str](), ""
    for _ in range(100):
        request = read(token, size=7)
        start = 0 if request.after is None else rows.index(request.after[0]) + 1
        page = PAGER.page(rows[start : start + request.size + 1], request, key=lambda row: (row,), tenant_id=DEFAULT_TENANT, query=QUERY)
        assert len(page.items) <= 7
        seen.extend(page.items)
        token = page.next_token
        if not token:
            break

    assert seen == rows


def test_a_token_says_where_the_page_ended() -> None:
    assert read(first_token()) == PageRequest(("b", "é"), 2)
    assert read(first_token(), size=5).size == 5


def test_a_token_is_good_for_its_tenant_and_query_only() -> None:
    """A token of one list, used in another, would begin in the middle of rows that the caller may not count."""
    token = first_token()
    uses = [{"tenant": OTHER_TENANT}, {"query": ("ListUsers", "status=all")}, {"query": ("ListUsers",)}, {"query": ("ListUsersstatus=active",)}]
    for use in [
        *uses,
        {"query": ("ListUsersstatus=", "active")},
        {"pager": Pager(derive("another salt", "pages"))},
        {"pager": Pager(derive(SALT, "page"))},
    ]:
        with pytest.raises(PageTokenInvalid):
            read(token, **use)  # type: ignore[arg-type]


def test_altered_tokens_are_refused() -> None:
    """Every byte counts, and so does every missing one."""
    token = first_token()
    raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    flipped = [bytes([*raw[:at], raw[at] ^ 1, *raw[at + 1 :]]) for at in range(len(raw))]
    cut = [raw[:length] for length in range(1, len(raw))]
    made_up = [b"x" * 16 + b'["a"]', raw + b"\0", raw[16:]]

    for bad in [*flipped, *cut, *made_up]:
        with pytest.raises(PageTokenInvalid):
            read(base64.urlsafe_b64encode(bad).decode())


@pytest.mark.parametrize("text", ["x", "é", "=", "....", "\0", "A" * 10_000], ids=ascii)
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(PageTokenInvalid):
        read(text)


def test_a_page_size_is_capped_and_never_negative() -> None:
    """Nobody reads a whole table in one call."""
    assert [read("", size=size).size for size in (0, 1, 1000, 1001, 2**31 - 1)] == [DEFAULT_SIZE, 1, MAX_SIZE, MAX_SIZE, MAX_SIZE]
    with pytest.raises(InvalidRequest) as failure:
        read("", size=-1)
    assert failure.value.violations[0].field == "page_size"


def test_a_consistency_token_reads_as_it_was_written() -> None:
    tokens = ConsistencyTokens(derive(SALT, "consistency"))
    for revision in (0, 1, 2**40, 2**63 - 1):
        assert tokens.read(tokens.write(DEFAULT_TENANT, revision), DEFAULT_TENANT) == revision


def test_a_made_up_consistency_token_is_refused_and_not_waited_for() -> None:
    """A revision that never comes would hold the call until its deadline."""
    tokens = ConsistencyTokens(derive(SALT, "consistency"))
    good = base64.urlsafe_b64decode(tokens.write(DEFAULT_TENANT, 7))
    flipped = [bytes([*good[:at], good[at] ^ 1, *good[at + 1 :]]) for at in range(len(good))]
    foreign = [ConsistencyTokens(derive(SALT, "other")).write(DEFAULT_TENANT, 7), tokens.write(OTHER_TENANT, 7), "", "x", "é", "\0"]

    for bad in [*(base64.urlsafe_b64encode(raw).decode() for raw in [*flipped, good[:-1], good + b"\0", good[:24]]), *foreign]:
        with pytest.raises(InvalidRequest):
            tokens.read(bad, DEFAULT_TENANT)


def test_a_sealed_record_opens_with_its_key_and_place_only() -> None:
    """Somebody who can write to the database must not be able to move one caller's result to another's request_id."""
    sealer = Sealer(derive(SALT, "once/token"))
    sealed = sealer.seal(b"canary", bound_to=b"row 1")

    assert sealer.open(sealed, bound_to=b"row 1") == b"canary"
    assert b"canary" not in sealed
    assert sealer.seal(b"canary", bound_to=b"row 1") != sealed
    broken = [bytes([*sealed[:at], sealed[at] ^ 1, *sealed[at + 1 :]]) for at in range(len(sealed))]
    for key, text, place in [
        (sealer, sealed, b"row 2"),
        (Sealer(derive(SALT, "once/rbac")), sealed, b"row 1"),
        *((sealer, text, b"row 1") for text in [*broken, sealed[:-1], sealed[:12], b"", b"x"]),
    ]:
        with pytest.raises(ValueError):  # noqa: PT011  (the class is the promise)
            key.open(text, bound_to=place)


def test_a_mark_is_equal_for_equal_data_under_one_key() -> None:
    """It tells repeats apart without telling readers of the database what was asked."""
    sealer = Sealer(derive(SALT, "a"))
    assert sealer.mark(b"x") == Sealer(derive(SALT, "a")).mark(b"x")
    assert len({sealer.mark(b"x"), sealer.mark(b"y"), Sealer(derive(SALT, "b")).mark(b"x"), digest(derive(SALT, "a"), b"x")}) == 4


def test_every_purpose_has_its_own_key() -> None:
    keys = {derive(salt, purpose) for salt in ("a", "b") for purpose in ("pages", "consistency", "once/token", "once/rbac")}
    assert len(keys) == 8
    assert len(derive("a", "b", 64)) == 64


def test_no_two_lists_of_parts_have_one_digest() -> None:
    lists = [(b"ab", b"c"), (b"a", b"bc"), (b"abc",), (b"abc", b""), (b"", b"abc"), ()]
    assert len({digest(b"key", *parts) for parts in lists}) == len(lists)
