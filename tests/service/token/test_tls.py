"""TLS and mTLS by settings: who shows no certificate of the right authority does not get a handshake."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from tests.conftest import Keys, Stores, environment_of, eventually, instance
from watchword.token.v1 import key_pb2, key_pb2_grpc


@dataclass(frozen=True)
class Authority:
    """A certificate authority of the tests."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def new(cls, name: str) -> "Authority":
        key = ec.generate_private_key(ec.SECP256R1())
        return cls(key, _certificate(name, key, name, key, is_authority=True))

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    def issue(self, name: str) -> tuple[bytes, bytes]:
        """Return key and certificate in PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(name, key, self.certificate.subject.rfc4514_string().removeprefix("CN="), self.key, is_authority=False)
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), certificate.public_bytes(Encoding.PEM)


def _certificate(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: str, issuer_key: ec.EllipticCurvePrivateKey, *, is_authority: bool
) -> x509.Certificate:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )


@dataclass(frozen=True)
class Guarded:
    """An instance behind mTLS."""

    address: str
    authority: Authority

    async def answers(self, *, key: bytes | None, certificate: bytes | None) -> bool:
        """Whether the instance answers a client that shows this certificate."""
        credentials = grpc.ssl_channel_credentials(self.authority.pem, key, certificate)
        async with grpc.aio.secure_channel(self.address, credentials) as channel:
            return await _answers(channel)


async def _answers(channel: grpc.aio.Channel) -> bool:
    stub: key_pb2_grpc.KeyServiceAsyncStub = key_pb2_grpc.KeyServiceStub(channel)
    try:
        return bool((await stub.GetJwks(key_pb2.GetJwksRequest(), timeout=2)).data)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return False


@pytest.fixture(scope="module")
async def guarded(stores: Stores, service_keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Guarded]:
    """A token instance that wants client certificates."""
    home, authority = tmp_path_factory.mktemp("tls"), Authority.new("authority of the tests")
    key, certificate = authority.issue("localhost")
    for name, pem in (("key", key), ("certificate", certificate), ("authority", authority.pem)):
        (home / name).write_bytes(pem)
    environment = {
        **environment_of("token", await stores.new_database(), stores, service_keys),
        "TLS_KEY_FILE": str(home / "key"),
        "TLS_CERT_FILE": str(home / "certificate"),
        "TLS_CLIENT_CA_FILE": str(home / "authority"),
    }
    with instance("services.token", environment=environment, log=home / "log") as (address, _):
        found = Guarded(address, authority)
        own_key, own_certificate = authority.issue("a client")

        async def is_up() -> bool:
            return await found.answers(key=own_key, certificate=own_certificate)

        await eventually(is_up, within=20)
        yield found


async def test_a_client_of_the_right_authority_is_answered(guarded: Guarded) -> None:
    """The control."""
    key, certificate = guarded.authority.issue("another client")
    assert await guarded.answers(key=key, certificate=certificate)


async def test_other_clients_get_no_handshake(guarded: Guarded) -> None:
    """A148: no certificate, another authority's, and plaintext."""
    assert not await guarded.answers(key=None, certificate=None)
    key, certificate = Authority.new("authority of the tests").issue("an impostor")
    assert not await guarded.answers(key=key, certificate=certificate)
    async with grpc.aio.insecure_channel(guarded.address) as channel:
        assert not await _answers(channel)
