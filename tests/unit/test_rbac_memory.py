"""What an instance remembers: bounded, least used first, and never for long."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from services.rbac.holdings import Revision
from services.rbac.memory import TTL, Entry, Shelf

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def entry(value: str, *, weight: int = 1) -> Entry[str]:
    return Entry(value, Revision(1), NOW, weight)


def key(number: int) -> tuple[UUID, str]:
    return UUID(int=number), "doc/1"


def test_what_is_used_least_goes_first() -> None:
    shelf: Shelf[str] = Shelf(max_weight=3)
    for number in range(3):
        shelf.keep(key(number), entry(str(number)))
    assert shelf.find(key(0), NOW)

    shelf.keep(key(3), entry("3"))

    assert [shelf.find(key(number), NOW) is not None for number in range(4)] == [True, False, True, True]
    assert shelf.weight == 3


def test_weight_is_given_back_when_an_entry_is_replaced() -> None:
    shelf: Shelf[str] = Shelf(max_weight=10)
    for weight in (5, 2, 7):
        shelf.keep(key(1), entry("x", weight=weight))

    assert (len(shelf), shelf.weight) == (1, 7)


def test_what_is_larger_than_all_is_not_kept_and_does_not_push_others_out() -> None:
    shelf: Shelf[str] = Shelf(max_weight=10)
    shelf.keep(key(1), entry("small"))

    shelf.keep(key(2), entry("huge", weight=11))

    assert shelf.find(key(1), NOW)
    assert shelf.find(key(2), NOW) is None


def test_an_old_entry_is_not_found() -> None:
    shelf: Shelf[str] = Shelf()
    shelf.keep(key(1), entry("x"))

    assert shelf.find(key(1), NOW + TTL)
    assert shelf.find(key(1), NOW + TTL + timedelta(seconds=1)) is None
