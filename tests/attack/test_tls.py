"""TLS: whoever is not who the certificate says gets neither password nor token; plain http stays at home."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import ipaddress
import ssl
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.attack.access_rig import Ends
from tests.cli.rig import Home, home_of
from tests.server.app_rig import PASSWORD, serving
from whimbrel import Client, Credentials
from whimbrel.client.address import parse_address
from whimbrel.client.http import HttpApi
from whimbrel.client.websocket import WebSocketLink
from whimbrel.errors import InsecureUrl, InvalidArgument, NotConnected, ServerUnreachable
from whimbrel.server.run import ServeSettings, serve

pytestmark = pytest.mark.timeout(600)

LIMIT_S = 60.0
ANN = Credentials("ann", PASSWORD)
NOW = datetime.datetime.now(datetime.UTC)


class Authority:
    """Signs certificates; who trusts it trusts them."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        folder.mkdir()
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        self._certificate = (
            self._builder(self._name, self._key.public_key(), days=1)
            .add_extension(constraints, critical=True)
            .add_extension(usage(signs=True), critical=True)
            .add_extension(self._own_id, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.file = folder / "ca.pem"
        self.file.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    @property
    def _own_id(self) -> x509.SubjectKeyIdentifier:
        return x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())

    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.file))

    def issue(self, host: str, *, days: int = 1) -> Certificate:
        """A certificate for a host; ``days`` below 0: it ended so long ago."""
        key = ec.generate_private_key(ec.SECP256R1())
        try:
            name: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            name = x509.DNSName(host)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        certificate = (
            self._builder(subject, key.public_key(), days=days)
            .add_extension(x509.SubjectAlternativeName([name]), critical=False)
            .add_extension(usage(signs=False), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(self._own_id), False
            )
            .sign(self._key, hashes.SHA256())
        )
        made = Certificate(cert=self.folder / f"{host}.pem", key=self.folder / f"{host}.key")
        made.cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        made.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return made

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, *, days: int
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - datetime.timedelta(days=10))
            .not_valid_after(NOW + datetime.timedelta(days=days))
        )


def usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Certificate:
    """The two files a server needs."""

    cert: Path
    key: Path


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority", "a test's authority")


async def test_everything_works_over_tls(tmp_path: Path, authority: Authority) -> None:
    made = authority.issue("127.0.0.1")
    async with serving(
        tmp_path / "data", "ann", "bob", tls_cert=made.cert, tls_key=made.key, shutdown_within_s=1.0
    ) as server:
        assert server.url.startswith("https://")
        trust = authority.trust()
        async with (
            Client(server.url, None, ANN, tls=trust) as ann,
            Client(server.url, None, Credentials("bob", PASSWORD), tls=trust) as bob,
        ):
            await ann.connected(LIMIT_S)
            team = await ann.create_conversation("bob")
            await bob.connected(LIMIT_S)
            there = bob.events()
            await (await team.send("sealed on the way")).delivered(LIMIT_S)
            async with asyncio.timeout(LIMIT_S):
                async for event in there:
                    if "sealed on the way" in str(getattr(getattr(event, "message", None), "content", "")):
                        break
            # Signing out is the third kind of call, over the same trust.
            await bob.sign_out()


async def refused(url: str, trust: ssl.SSLContext | None) -> None:
    """Nobody gets in, nor does a password get out: neither by call nor by link."""
    api = HttpApi(parse_address(url), tls=trust)
    with pytest.raises(ServerUnreachable) as caught:
        await api.login("ann", PASSWORD, "a" * 26)
    assert PASSWORD not in str(caught.value)
    await api.close()
    async with Client(url, None, ANN, tls=trust) as client:
        with pytest.raises(NotConnected) as refusal:
            await client.connected(1.0)
        assert PASSWORD not in str(refusal.value)
    listener: Any = Ends()
    link = WebSocketLink(1, parse_address(url), listener, tls=trust)
    async with asyncio.timeout(LIMIT_S):
        await listener.end
    await link.close()


@pytest.mark.parametrize("case", ["nobody trusts it", "another authority", "another host", "it has ended"])
async def test_an_impostor_is_told_nothing(tmp_path: Path, authority: Authority, case: str) -> None:
    made = authority.issue(
        "chat.example" if case == "another host" else "127.0.0.1", days=-1 if case == "it has ended" else 1
    )
    trust: ssl.SSLContext | None = authority.trust()
    if case == "nobody trusts it":
        trust = None
    elif case == "another authority":
        trust = Authority(tmp_path / "other", "somebody else's authority").trust()
    heard = bytearray()
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_side.load_cert_chain(made.cert, made.key)

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.extend(await reader.read(65536))
        writer.close()

    # Not even a server of ours: what counts is what it would have heard.
    impostor = await asyncio.start_server(listen, "127.0.0.1", 0, ssl=server_side)
    async with impostor:
        await refused(f"https://127.0.0.1:{impostor.sockets[0].getsockname()[1]}", trust)
    assert heard == b""


async def test_plain_and_sealed_do_not_mix(tmp_path: Path, authority: Authority) -> None:
    made = authority.issue("127.0.0.1")
    options = {"tls_cert": made.cert, "tls_key": made.key}
    async with serving(tmp_path / "sealed", "ann", **options) as server:
        await refused(server.url.replace("https", "http"), None)
    async with serving(tmp_path / "plain", "ann") as server:
        await refused(server.url.replace("http", "https"), authority.trust())


@pytest.mark.parametrize(
    "host", ["192.0.2.7", "chat.example", "[2001:db8::1]", "127.0.0.1.example", "10.0.0.1"]
)
def test_plain_http_off_the_loopback_is_refused(host: str, tmp_path: Path) -> None:
    for scheme in ("http", "ws", "HTTP"):
        with pytest.raises(InsecureUrl) as caught:
            Client(f"{scheme}://{host}:8000", tmp_path / "a.db", ANN)
        assert "insecure" in caught.value.hint
    assert not (tmp_path / "a.db").exists()


async def test_a_server_does_not_offer_it_either(tmp_path: Path, authority: Authority) -> None:
    for host in ("0.0.0.0", "::"):  # noqa: S104 - refused before anything listens
        with pytest.raises(InsecureUrl):
            await serve(ServeSettings(data=tmp_path / "data", host=host, port=0))
    made, other = authority.issue("127.0.0.1"), authority.issue("localhost")
    for cert, key in ((made.cert, None), (None, made.key), (made.cert, other.key), (made.key, made.cert)):
        with pytest.raises(InvalidArgument, match="certificate"):
            await serve(ServeSettings(data=tmp_path / "data", port=0, tls_cert=cert, tls_key=key))


async def test_the_command_line_trusts_whom_the_system_trusts(tmp_path: Path, authority: Authority) -> None:
    made = authority.issue("127.0.0.1")
    async with serving(tmp_path / "data", "ann", tls_cert=made.cert, tls_key=made.key) as server:
        ann = home_of(tmp_path, "ann")
        stranger = await asyncio.to_thread(log_in, ann, server.url, None)
        assert stranger == 5
        assert await asyncio.to_thread(log_in, ann, server.url, authority.file) == 0


def log_in(home: Home, url: str, trusted: Path | None) -> int:
    variables = {"SSL_CERT_FILE": str(trusted) if trusted is not None else None}
    command = ("login", url, "ann", "--password-stdin")
    return home.run(*command, stdin=PASSWORD, variables=variables).code
