"""A real Envoy that encrypts every hop: who is let in, and that a renewed certificate needs no restart."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gateway.certificates import Certificate, EdgeTls
from gateway.upstreams import CONTEXTS
from tests.suite.edge_standin import LOOPBACK, edge, everywhere, instance, until


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority that lives in a directory."""

    directory: Path
    key: ec.EllipticCurvePrivateKey
    name: x509.Name

    @property
    def pem(self) -> Path:
        return self.directory / "ca.pem"

    def issue(self, file: str, names: Sequence[str]) -> Certificate:
        """Write a certificate for these DNS names and loopback, by renames, and return it."""
        key = ec.generate_private_key(ec.SECP256R1())
        subjects = x509.SubjectAlternativeName([*(x509.DNSName(name) for name in names), x509.IPAddress(ip_address(LOOPBACK))])
        signed = _builder(key, _named(file), self.name).add_extension(subjects, critical=False).sign(self.key, hashes.SHA256())
        issued = Certificate(self.directory / f"{file}.pem", self.directory / f"{file}.key")
        _replace(issued.key, key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
        _replace(issued.chain, signed.public_bytes(serialization.Encoding.PEM))
        return issued


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(key: ec.EllipticCurvePrivateKey, subject: x509.Name, issuer: x509.Name) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    return builder.serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(hours=1))


def _replace(path: Path, content: bytes) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.replace(path)


def authority(directory: Path) -> Authority:
    directory.mkdir()
    key, name = ec.generate_private_key(ec.SECP256R1()), _named(directory.name)
    own = _builder(key, name, name).add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True).sign(key, hashes.SHA256())
    made = Authority(directory, key, name)
    made.pem.write_bytes(own.public_bytes(serialization.Encoding.PEM))
    return made


def server_credentials(certificate: Certificate, client_ca: Path) -> grpc.ServerCredentials:
    pair = (certificate.key.read_bytes(), certificate.chain.read_bytes())
    return grpc.ssl_server_credentials([pair], client_ca.read_bytes(), require_client_auth=True)


async def _verify(address: tuple[str, int], credentials: grpc.ChannelCredentials) -> None:
    async with grpc.aio.secure_channel(f"{address[0]}:{address[1]}", credentials) as channel:
        call: Any = channel.unary_unary("/watchword.token.v1.TokenService/VerifyToken")
        await call(b"", timeout=5)


def channel_credentials(ca: Path, own: Certificate | None = None) -> grpc.ChannelCredentials:
    pair = (own.key.read_bytes(), own.chain.read_bytes()) if own else (None, None)
    return grpc.ssl_channel_credentials(ca.read_bytes(), *pair)


async def test_every_hop_is_encrypted_and_proves_itself(tmp_path: Path) -> None:
    ca, strangers = authority(tmp_path / "ours"), authority(tmp_path / "theirs")
    service, envoy, client = ca.issue("service", CONTEXTS), ca.issue("envoy", ["edge"]), ca.issue("client", ["gateway"])
    tls = EdgeTls(edge=envoy, internal=envoy, internal_client_ca=ca.pem, upstream_ca=ca.pem, upstream=envoy)
    trust = ssl.create_default_context(cafile=str(ca.pem))

    async with (
        instance(credentials=server_credentials(service, ca.pem)) as standin,
        edge(tmp_path / "envoy", everywhere(standin.address), tls=tls, verify=trust) as front,
    ):
        assert (await front.http.get("/v1/me")).status_code == 200
        await _verify(front.grpc, channel_credentials(ca.pem, client))
        for own in (None, strangers.issue("client", ["gateway"])):
            with pytest.raises(grpc.aio.AioRpcError):
                await _verify(front.grpc, channel_credentials(ca.pem, own))

        async def shown() -> str:
            return await asyncio.to_thread(ssl.get_server_certificate, front.rest)

        before = await shown()
        ca.issue("envoy", ["edge"])

        async def is_renewed() -> bool:
            return await shown() != before

        await until(is_renewed)
        assert (await front.http.get("/v1/me")).status_code == 200


async def test_an_instance_with_the_certificate_of_another_service_gets_no_traffic(tmp_path: Path) -> None:
    """A stolen gateway key must not be enough to read what is sent to identity."""
    ca = authority(tmp_path / "ours")
    thief, envoy = ca.issue("gateway", ["gateway"]), ca.issue("envoy", ["edge"])
    tls = EdgeTls(upstream_ca=ca.pem, upstream=envoy)

    async with (
        instance(credentials=server_credentials(thief, ca.pem)) as standin,
        edge(tmp_path / "envoy", everywhere(standin.address), tls=tls) as front,
    ):
        assert (await front.http.get("/v1/me")).status_code == 503
        assert standin.calls("GetMe") == []
