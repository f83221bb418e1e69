"""Key pairs before anything is signed with them: what is weak, mixed, open to others or meant for something else stops start-up, in words."""

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from services.chassis.settings import load
from services.token.key_environment import _judge_files, key_pair_of
from services.token.keys import KeyState, UnusableKey, VerificationKey, generate, read
from services.token.settings import TokenSettings
from services.token.vault import Vault

ALGORITHMS = ("RS256", "PS256", "ES256", "Ed25519")
SECRETS = {"d", "p", "q", "dp", "dq", "qi", "oth", "k"}  # RFC 7518 sections 6.2.2, 6.3.2 and 6.4


def pem(private: Any) -> str:
    """Return a private key as a deployment would give it."""
    return str(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode())


def public_pem(private: Any) -> str:
    return str(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


def small_exponent() -> rsa.RSAPrivateKey:
    """Return an RSA key whose exponent is 3. OpenSSL makes none with 1 or an even one: see the raw numbers below."""
    return rsa.generate_private_key(3, 2048)


def raw_rsa(exponent: int) -> str:
    """Return a public key with an exponent that no library makes: a DER of n and e, wrapped as PEM."""
    modulus = rsa.generate_private_key(65537, 2048).public_key().public_numbers().n

    def der(tag: int, body: bytes) -> bytes:
        size = len(body)
        length = bytes([size]) if size < 128 else bytes([0x80 | (size.bit_length() + 7) // 8]) + size.to_bytes((size.bit_length() + 7) // 8, "big")
        return bytes([tag]) + length + body

    def integer(number: int) -> bytes:
        return der(2, number.to_bytes(number.bit_length() // 8 + 1, "big"))

    key = der(0x30, integer(modulus) + integer(exponent))
    info = der(0x30, der(0x30, bytes.fromhex("06092a864886f70d0101010500")) + der(3, b"\0" + key))
    return f"-----BEGIN PUBLIC KEY-----\n{base64.b64encode(info).decode()}\n-----END PUBLIC KEY-----\n"


def off_the_curve() -> str:
    """Return a P-256 key whose point is on no curve."""
    good = public_pem(ec.generate_private_key(ec.SECP256R1()))
    raw = base64.b64decode("".join(good.splitlines()[1:-1]))
    return f"-----BEGIN PUBLIC KEY-----\n{base64.b64encode(raw[:-1] + bytes([raw[-1] ^ 1])).decode()}\n-----END PUBLIC KEY-----\n"


RSA, EC, ED = rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()
OF = {"RS256": RSA, "PS256": RSA, "ES256": EC, "Ed25519": ED}


def refused(private: str, public: str = "", *, algorithm: str = "RS256") -> str:
    """Return the words with which a key pair is refused."""
    with pytest.raises(UnusableKey) as failure:
        read(private, public, algorithm=algorithm, kid="")
    return str(failure.value)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_good_pair_is_read(algorithm: str) -> None:
    """The control: with and without its public part, and with newlines written as an environment file has them."""
    private, public = pem(OF[algorithm]), public_pem(OF[algorithm])
    first = read(private, public, algorithm=algorithm, kid="")
    assert first == read(private, "", algorithm=algorithm, kid="") == read(private.replace("\n", "\\n"), public, algorithm=algorithm, kid="")
    assert (first.algorithm, first.public_pem) == (algorithm, public)
    assert private.strip().splitlines()[1] not in repr(first)


@pytest.mark.parametrize("algorithm", [pytest.param(algorithm, id=f"A049-{algorithm}") for algorithm in ALGORITHMS])
def test_a_published_key_has_no_private_part(algorithm: str) -> None:
    """Asserted on the bytes: neither a member's name, nor one of the private numbers in any encoding of ours."""
    pair = generate(algorithm)
    private: Any = load_pem_private_key(pair.private_pem.encode(), password=None)
    published = json.dumps(VerificationKey(pair.kid, algorithm, private.public_key()).jwk())

    assert not set(json.loads(published)) & SECRETS
    assert json.loads(published)["kty"] in ("RSA", "EC", "OKP")
    for number in secret_numbers(private):
        assert base64.urlsafe_b64encode(number).rstrip(b"=").decode() not in published


def secret_numbers(private: Any) -> list[bytes]:
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return [private.private_bytes_raw()]
    numbers = private.private_numbers()
    if isinstance(private, ec.EllipticCurvePrivateKey):
        return [numbers.private_value.to_bytes(32, "big")]
    found = (numbers.d, numbers.p, numbers.q, numbers.dmp1, numbers.dmq1, numbers.iqmp)
    return [number.to_bytes((number.bit_length() + 7) // 8, "big") for number in found]


@pytest.mark.parametrize(
    ("private", "algorithm"),
    [
        pytest.param(lambda: rsa.generate_private_key(65537, 1024), "RS256", id="A050-rsa-1024"),
        pytest.param(lambda: rsa.generate_private_key(65537, 2047), "RS256", id="A050-rsa-2047"),
        pytest.param(lambda: rsa.generate_private_key(65537, 1024), "PS256", id="A050-rsa-1024-for-pss"),
        pytest.param(small_exponent, "RS256", id="A050-exponent-3"),
        pytest.param(lambda: ec.generate_private_key(ec.SECP384R1()), "ES256", id="A050-p-384"),
        pytest.param(lambda: ec.generate_private_key(ec.SECP256K1()), "ES256", id="A050-secp256k1"),
        pytest.param(lambda: EC, "RS256", id="A050-ec-for-rsa"),
        pytest.param(lambda: RSA, "ES256", id="A050-rsa-for-ec"),
        pytest.param(lambda: ED, "ES256", id="A050-ed25519-for-ec"),
        pytest.param(lambda: EC, "Ed25519", id="A050-ec-for-ed25519"),
        pytest.param(ed448.Ed448PrivateKey.generate, "Ed25519", id="A050-ed448"),
        pytest.param(x25519.X25519PrivateKey.generate, "Ed25519", id="A050-x25519"),
        pytest.param(lambda: dsa.generate_private_key(2048), "RS256", id="A050-dsa"),
    ],
)
def test_a_weak_or_unfit_key_is_refused(private: Any, algorithm: str) -> None:
    """RFC 8725 section 3.5, and the algorithm decides the kind of key, not the other way round."""
    text = pem(private())
    words = refused(text, algorithm=algorithm)
    assert "JWT_" in words
    assert text.splitlines()[1] not in words


@pytest.mark.parametrize(
    "public",
    [
        pytest.param(lambda: raw_rsa(1), id="A050-exponent-1"),
        pytest.param(lambda: raw_rsa(4), id="A050-exponent-even"),
        pytest.param(off_the_curve, id="A050-point-off-the-curve"),
        pytest.param(lambda: public_pem(EC), id="A050-another-kind"),
        pytest.param(lambda: public_pem(rsa.generate_private_key(65537, 2048)), id="A051-another-pair"),
        pytest.param(lambda: pem(RSA), id="A051-private-as-public"),
        pytest.param(lambda: public_pem(RSA) + public_pem(RSA), id="A051-two-public"),
        pytest.param(lambda: public_pem(RSA) + pem(RSA), id="A051-public-and-private"),
    ],
)
def test_a_public_key_that_does_not_belong_is_refused(public: Any) -> None:
    """It would be published, and no token would verify with it; or it would publish what nobody may see."""
    assert "JWT_PUBLIC_KEY" in refused(pem(RSA), public())


@pytest.mark.parametrize(
    "private",
    [
        pytest.param("a-shared-secret", id="A050-hmac-short"),
        pytest.param(base64.b64encode(bytes(64)).decode(), id="A050-hmac-long"),
        pytest.param(
            '{"kty":"oct","k":"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"}', id="A051-symmetric-jwk"
        ),
        pytest.param(public_pem(RSA), id="A051-public-as-private"),
        pytest.param(pem(RSA) + pem(RSA), id="A051-the-same-twice"),
        pytest.param(pem(RSA) + pem(EC), id="A051-two-kinds"),
        pytest.param(pem(RSA) + public_pem(RSA), id="A051-private-and-public"),
        pytest.param("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----", id="A050-no-key"),
        pytest.param(pem(RSA)[:400], id="A050-cut-off"),
        pytest.param(RSA.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")).decode(), id="A050-with-a-password"),
    ],
)
def test_what_is_no_private_key_is_refused(private: str) -> None:
    """There is no symmetric key here at all, and one setting holds one key."""
    for algorithm in ALGORITHMS:
        assert "JWT_PRIVATE_KEY" in refused(private, algorithm=algorithm)


def test_a_key_of_another_purpose_signs_no_tokens() -> None:
    """A051: the service's own key under JWT_PRIVATE_KEY would make service identities and access tokens one kind."""
    with pytest.raises(UnusableKey):
        read(pem(ED), "", algorithm="Ed25519", kid="", others=["", pem(RSA), pem(ED)])


def settings_of(path: Path, **changes: object) -> TokenSettings:
    """Return settings whose private key came from a file."""
    values = {
        "DATABASE_URL": "postgresql://a:b@db/x",
        "REDIS_URL": "redis://cache",
        "SECURITY_SALT": "x",
        "SERVICE_KEY": "x",
        "SERVICE_PUBLIC_KEYS": "{}",
        "JWT_PRIVATE_KEY": path.read_text(),
        **changes,
    }
    return load(TokenSettings, {name: str(value) for name, value in values.items()})


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """A private key in a file for its owner only."""
    path = tmp_path / "jwt.pem"
    path.write_text(pem(RSA))
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o440])
def test_a_key_file_of_its_owners_is_taken(key_file: Path, mode: int) -> None:
    """The control; a group is how a file of root is lent to a service."""
    key_file.chmod(mode)
    pair = key_pair_of(settings_of(key_file), {"JWT_PRIVATE_KEY_FILE": str(key_file)})
    assert pair is not None
    assert pair.public_pem == public_pem(RSA)


@pytest.mark.parametrize("mode", [pytest.param(mode, id=f"A052-{mode:o}") for mode in (0o644, 0o604, 0o666, 0o660, 0o602, 0o777)])
@pytest.mark.parametrize("name", ["JWT_PRIVATE_KEY_FILE", "KEY_ENCRYPTION_KEY_FILE"])
def test_a_key_file_that_others_can_read_or_replace_is_refused(key_file: Path, mode: int, name: str) -> None:
    """Unless it is said to be meant so; then it is logged."""
    key_file.chmod(mode)
    with pytest.raises(Exception, match=name) as failure:
        key_pair_of(settings_of(key_file), {name: str(key_file)})
    assert "chmod" in str(failure.value)
    assert pem(RSA).splitlines()[1] not in str(failure.value)

    assert key_pair_of(settings_of(key_file, ALLOW_OPEN_KEY_FILE=True), {name: str(key_file)}) is not None


def test_a_key_file_of_another_user_is_refused(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A052: whoever owns it can write it. Root's own files are lent to services."""
    described = os.stat_result((0o100600, 1, 1, 1, 4242, 4242, 1, 0, 0, 0))
    monkeypatch.setattr(os, "stat", lambda _path, **_more: described)
    with pytest.raises(Exception, match="JWT_PRIVATE_KEY_FILE"):
        _judge_files({"JWT_PRIVATE_KEY_FILE": str(key_file)}, False)


def test_a_sealed_key_opens_with_its_own_key_encryption_key_under_its_own_name() -> None:
    """A053: with another, the operator is told which setting is wrong, and nothing of the key."""
    pair, keys = generate("Ed25519"), [base64.b64encode(os.urandom(32)).decode() for _ in range(2)]
    sealed = Vault.of(keys[0], "salt").seal(pair)

    assert Vault.of(keys[0], "other salt").open(pair.kid, sealed.sealed_private) == pair.private_pem.encode()
    assert pair.private_pem.splitlines()[1].encode() not in sealed.sealed_private
    for vault, kid in ((Vault.of(keys[1], "salt"), pair.kid), (Vault.of("", "salt"), pair.kid), (Vault.of(keys[0], "salt"), "another")):
        with pytest.raises(UnusableKey, match="KEY_ENCRYPTION_KEY"):
            vault.open(kid, sealed.sealed_private)


@pytest.mark.parametrize("given", ["short", base64.b64encode(bytes(32)).decode(), base64.b64encode(os.urandom(16)).decode(), "!" * 44, ","])
def test_a_weak_key_encryption_key_is_refused(given: str) -> None:
    """A050."""
    with pytest.raises(ValueError, match="32 random bytes"):
        Vault.of(given, "salt")


def test_keys_verify_from_their_publication_to_the_end_of_their_grace() -> None:
    """A015."""
    assert [state for state in KeyState if state.verifies] == [KeyState.PUBLISHED, KeyState.ACTIVE, KeyState.RETIRING]
