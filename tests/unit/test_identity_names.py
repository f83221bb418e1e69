"""Names: one canonical form, and what cannot be a name (A087 to A093)."""

import pytest

from services.identity.names import NameUnusable, email_name, login_key, username


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ("\uff21dmin", "admin"),
        ("ADMIN", "admin"),
        ("\u212aelvin", "kelvin"),
        ("\u212bngstr\u00f6m", "\u00e5ngstr\u00f6m"),
        ("e\u0301lise", "\u00e9lise"),
        ("\u1e9eharp", "\u00dfharp"),
        ("\u0430\u0434\u043c\u0438\u043d", "\u0430\u0434\u043c\u0438\u043d"),
        ("a.b-c_d", "a.b-c_d"),
        ("x", "x"),
        ("a" * 255, "a" * 255),
        ("a" * 256, "a" * 256),
    ],
)
def test_a_user_name_has_one_canonical_form(given: str, key: str) -> None:
    """Two spellings that print alike must not be two accounts."""
    name = username(given)

    assert name.key == key
    assert name.given == given
    assert username(key).key == key


@pytest.mark.parametrize(
    "given",
    [
        "",
        "\ufb01x",  # ligature
        "\u0131\ufb01",
        "a\u200db",  # zero-width joiner
        "a\u200bb",
        "\u202eabc",  # right-to-left override
        "a\x07",
        "a\x00",
        "\ue000",  # private use
        "\u0378",  # unassigned
        " a",
        "a ",
        "a  b",
        "a b",
        "\u0430dmin",  # Cyrillic a
        "p\u03b1ul",  # Greek alpha
        "a@b",
        "ada@example.com",
        "ada\uff20example.com",
        "ada\ufe6bexample.com",
        "a" * 257,
        "\u00e9" * 129,
    ],
)
def test_a_name_that_misleads_is_refused(given: str) -> None:
    """Invisible, mixed-script and address-like names would be taken for somebody else's."""
    with pytest.raises(NameUnusable):
        username(given)


@pytest.mark.parametrize("pair", [("\u0131d", "id"), ("stra\u00dfe", "strasse")])
def test_letters_that_do_print_apart_stay_apart(pair: tuple[str, str]) -> None:
    """PRECIS maps neither the dotless i nor the sharp s to others; two people may have these names."""
    assert username(pair[0]).key != username(pair[1]).key


def test_the_dotted_capital_i_is_mapped_by_us_and_not_by_a_locale() -> None:
    """Postgres lower() and Python disagree here; only the Python form is ever used."""
    assert username("\u0130").key == "i\u0307"


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ("Ada@Example.COM", "ada@example.com"),
        ("\uff41da@example.com", "ada@example.com"),
        ("\u212aate@example.com", "kate@example.com"),
        ("\ufb01@example.com", "fi@example.com"),
        ("e\u0301@example.com", "\u00e9@example.com"),
        ("ada+tag@example.com", "ada+tag@example.com"),
        ("ada@xn--exmple-cua.com", "ada@ex\u00e4mple.com"),
        ("ada@EX\u00c4MPLE.com", "ada@ex\u00e4mple.com"),
        ("ada@team.test", "ada@team.test"),
        (f"{'a' * 64}@example.com", f"{'a' * 64}@example.com"),
        (f"{'a' * 64}@{'b' * 63}.{'c' * 63}.{'d' * 53}.example", f"{'a' * 64}@{'b' * 63}.{'c' * 63}.{'d' * 53}.example"),  # 254 bytes
    ],
)
def test_an_address_has_one_canonical_form(given: str, key: str) -> None:
    """Addresses are compared in lower case as a whole, after NFKC."""
    assert email_name(given).key == key


@pytest.mark.parametrize(
    "given",
    [
        "",
        "a",
        "@example.com",
        "a@",
        "a@b",
        "a@localhost",
        "a@[127.0.0.1]",
        '"a b"@example.com',
        "a b@example.com",
        " a@example.com",
        "a@example.com ",
        "a\n@example.com",
        "a@example.com\r\nBcc: b@example.com",
        "a\u200b@example.com",
        "a@ex\u00adample.com",
        "a\u202e@example.com",
        "\u0430dmin@example.com",
        "\ufe6b@example.com",
        "a@exam\ufe6bple.com",
        "a@b@example.com",
        f"{'a' * 65}@example.com",
        f"{'a' * 64}@{'b' * 63}.{'c' * 63}.{'d' * 54}.example",  # 255 bytes
    ],
)
def test_what_is_no_address_is_refused(given: str) -> None:
    """Quoted local parts, address literals and hidden characters are legal somewhere and trouble everywhere."""
    with pytest.raises(NameUnusable):
        email_name(given)


@pytest.mark.parametrize("given", ["", "a b", "a@b", "\x01", "ada\uff20", "@@"])
def test_a_login_that_nobody_can_have_has_no_key(given: str) -> None:
    """Such a login is an unknown account, not a failure of its own."""
    assert login_key(given) is None


def test_no_login_is_both_a_name_and_an_address() -> None:
    """One login means at most one account, because only addresses hold an @."""
    assert "@" in str(login_key("Ada@Example.com"))
    assert "@" not in str(login_key("Ada"))
