"""Passwords: kept so that nothing is lost and nothing is found (A094 to A099)."""

import base64
import contextlib
import hashlib
import hmac
import time
import unicodedata

import bcrypt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from precis_i18n import get_profile

from services.identity.passwords import Passwords, Strength, opaque, require_size
from watchword.errors import InvalidRequest, PasswordRejected

PEPPER = bytes(range(32))
CHEAP = Passwords(PEPPER, scheme="bcrypt", cost=4)
ARGON2 = Passwords(PEPPER, scheme="argon2id", cost=4)


@pytest.mark.parametrize("passwords", [CHEAP, ARGON2])
@pytest.mark.parametrize("password", ["p" * 73, "\U0001f600" * 64, "x" * 1024, " leading and trailing ", "a\0b"])
def test_the_whole_password_counts(passwords: Passwords, password: str) -> None:
    """bcrypt alone forgets what lies behind byte 72."""
    kept = passwords.hash(password)

    assert passwords.matches(password, kept)
    assert not passwords.matches(password[:-1] + "~", kept)
    assert not passwords.matches(password + "~", kept)


def test_what_follows_a_nul_counts() -> None:
    """C strings end at NUL, passwords do not."""
    kept = CHEAP.hash("a\0b")

    assert not CHEAP.matches("a\0c", kept)
    assert not CHEAP.matches("a", kept)


def test_two_keyboards_type_the_same_password() -> None:
    """One composes accents and the other does not."""
    kept = CHEAP.hash(unicodedata.normalize("NFC", "élève déçu"))

    assert CHEAP.matches(unicodedata.normalize("NFD", "élève déçu"), kept)
    assert CHEAP.matches("élève\u00a0déçu", kept)


@settings(max_examples=300, deadline=None)
@given(st.text(min_size=1, max_size=20))
def test_our_form_is_that_of_rfc_8265_wherever_that_has_one(text: str) -> None:
    """The profile refuses characters that somebody may have typed; all others come out alike."""
    try:
        expected = get_profile("OpaqueString").enforce(text)
    except UnicodeEncodeError:
        return

    assert opaque(text) == expected


def test_the_stored_form_is_the_one_that_is_documented() -> None:
    """Whoever migrates away must be able to verify these hashes with other software."""
    kept = CHEAP.hash("correct horse")

    inner = base64.b64encode(hmac.new(PEPPER, b"correct horse", hashlib.sha384).digest())
    assert kept.startswith("p1$2b$04$")
    assert bcrypt.checkpw(inner, kept.removeprefix("p1").encode())


def test_a_hash_made_elsewhere_verifies() -> None:
    """A fixed hash, so that no later version forgets how to read it."""
    kept = "p1$2b$04$abcdefghijklmnopqrstuuMIWwHLwZrgKBhNrPI6HBJ6WLcdCwNZi"
    made = "p1" + bcrypt.hashpw(base64.b64encode(hmac.new(PEPPER, b"x", hashlib.sha384).digest()), b"$2b$04$abcdefghijklmnopqrstuu").decode()

    assert CHEAP.matches("x", made)
    assert not CHEAP.matches("x", kept)


def test_the_pepper_is_needed() -> None:
    """A dump of the database is worth nothing without it."""
    assert not Passwords(bytes(32), scheme="bcrypt", cost=4).matches("x", CHEAP.hash("x"))


def test_each_scheme_reads_the_other() -> None:
    """The setting may change while accounts keep what they have."""
    assert CHEAP.matches("x", ARGON2.hash("x"))
    assert ARGON2.matches("x", CHEAP.hash("x"))
    assert not CHEAP.matches("y", ARGON2.hash("x"))


def test_a_hash_is_outdated_when_the_cost_rose_or_the_scheme_changed() -> None:
    """Only then is a login worth a second hash."""
    dearer = Passwords(PEPPER, scheme="bcrypt", cost=5)

    assert dearer.is_outdated(CHEAP.hash("x"))
    assert not CHEAP.is_outdated(dearer.hash("x"))
    assert not CHEAP.is_outdated(CHEAP.hash("x"))
    assert ARGON2.is_outdated(CHEAP.hash("x"))
    assert CHEAP.is_outdated(ARGON2.hash("x"))
    assert not ARGON2.is_outdated(ARGON2.hash("x"))


def test_nothing_matches_an_account_without_a_password() -> None:
    """An empty hash is no password, whatever is given."""
    assert not CHEAP.matches("", "")
    assert not CHEAP.matches("no account has this password", "")


def test_every_mismatch_costs_the_same() -> None:
    """An unknown account, a wrong password and an old, cheaper hash must not be told apart by the time they take."""
    dear = Passwords(PEPPER, scheme="bcrypt", cost=9)
    kept, old = dear.hash("x"), Passwords(PEPPER, scheme="bcrypt", cost=6).hash("x")

    def cost(of: str) -> float:
        times = []
        for _ in range(9):
            started = time.thread_time()
            dear.matches("wrong", of)
            times.append(time.thread_time() - started)
        return min(times)

    assert cost("") == pytest.approx(cost(kept), rel=0.2)
    assert cost(old) == pytest.approx(cost(kept), rel=0.2)


@pytest.mark.parametrize(
    "password",
    [
        "aaaaaaaaaaaaaaa",
        "123456789012345",
        "passwordpassword1",
        "qwertyuiopasdfgh",
        "ada@example.com1",
        "lovelace-lovelace",
        "aB3$" * 100,
        "short but fine",  # 14
    ],
)
def test_a_guessable_password_is_refused_with_a_reason(password: str) -> None:
    """Length alone does not help the first thing that is tried."""
    with pytest.raises(PasswordRejected) as refusal:
        Strength(15).require(password, field="new_password", names=["ada@example.com", "lovelace"])

    assert refusal.value.violations[0].field == "new_password"
    assert refusal.value.violations[0].description


@pytest.mark.parametrize(
    "password", ["fifteen letters", "kvqzjwxpmhtrbdy", "928374650192837465", "\U0001f600\U0001f419" * 2 + "weird enough", "x" * 5 + " Ümläut wörter"]
)
def test_any_composition_is_accepted(password: str) -> None:
    """No rules about kinds of characters: they make passwords worse."""
    Strength(15).require(password, field="password")


@pytest.mark.parametrize(("minimum", "password"), [(15, "vq zj wx pm ht"), (8, "vq7zjwx")])
def test_one_character_less_is_too_short(minimum: int, password: str) -> None:
    """The setting is the limit, counted in code points."""
    with pytest.raises(PasswordRejected):
        Strength(minimum).require(password, field="password")
    Strength(minimum).require(password + "é", field="password")


def test_an_absurdly_long_password_costs_nothing() -> None:
    """It is refused before it is normalised."""
    started = time.process_time()

    with pytest.raises(InvalidRequest):
        require_size("x" * 1025, field="password")
    assert time.process_time() - started < 0.005
    require_size("x" * 1024, field="password")


@pytest.mark.parametrize(
    "password",
    ["@({[<!|$+%" * 4, "4@8({[<63!1|05$+7%2" * 2, "p@$$w0rd!{[(<+%|" * 3, "@a(c{c[c<c!i|l$s+t%x" * 2, "@" * 10 + "(" * 10 + "$" * 10 + "%" * 10],
)
def test_judging_a_password_takes_a_bounded_time(password: str) -> None:
    """The judge tries every meaning of every sign that stands for letters: a few well-chosen passwords would keep every core busy for seconds."""
    began = time.thread_time()
    with contextlib.suppress(PasswordRejected):
        Strength(15).require(password, field="password")
    assert time.thread_time() - began < 0.5
