"""TLS from files: who is let in, what cannot be used, and certificates that are renewed while a server runs."""

import logging
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from certificates import Authority, Issued
from cryptography.hazmat.primitives import serialization
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from pagewire_common.tls import TlsError, channel_credentials, server_credentials


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.fixture
def own(authority: Authority) -> Issued:
    """The server's certificate, for this machine's address."""
    return authority.issue("server", "127.0.0.1", "localhost")


@asynccontextmanager
async def serving(own: Issued, client_ca: str | None = None) -> AsyncIterator[str]:
    """A server; its address."""
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    port = server.add_secure_port("127.0.0.1:0", server_credentials(own.cert, own.key, client_ca))
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


async def is_answered(channel: grpc.aio.Channel) -> bool:
    try:
        await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
    except grpc.aio.AioRpcError as error:
        if error.code() != grpc.StatusCode.UNAVAILABLE:
            raise
        return False
    return True


def connected(address: str, credentials: grpc.ChannelCredentials) -> grpc.aio.Channel:
    """On a connection of its own."""
    return grpc.aio.secure_channel(address, credentials, options=[("grpc.use_local_subchannel_pool", 1)])


async def is_let_in(address: str, ca: str, shown: Issued | None = None) -> bool:
    """Whether a client that trusts the authority and shows the certificate gets an answer."""
    credentials = channel_credentials(ca, shown and shown.cert, shown and shown.key).open()
    async with connected(address, credentials) as channel:
        return await is_answered(channel)


async def test_clients_that_trust_the_authority_connect(authority: Authority, own: Issued, tmp_path: Path) -> None:
    async with serving(own) as address:
        assert await is_let_in(address, authority.ca)
        assert not await is_let_in(address, Authority(tmp_path / "other").ca)
        async with grpc.aio.insecure_channel(address) as plain:
            assert not await is_answered(plain)


async def test_a_certificate_of_another_name_is_not_trusted(authority: Authority) -> None:
    async with serving(authority.issue("server", "elsewhere.example")) as address:
        assert not await is_let_in(address, authority.ca)


async def test_clients_show_a_certificate_where_one_is_wanted(
    authority: Authority, own: Issued, tmp_path: Path
) -> None:
    async with serving(own, authority.ca) as address:
        assert await is_let_in(address, authority.ca, authority.issue("client"))
        assert not await is_let_in(address, authority.ca, Authority(tmp_path / "other").issue("client"))
        assert not await is_let_in(address, authority.ca)


async def test_a_renewed_certificate_is_shown_to_new_connections(
    authority: Authority, own: Issued, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    successor = Authority(tmp_path / "successor")
    renewed = successor.issue("server", "127.0.0.1")
    async with serving(own) as address, connected(address, channel_credentials(authority.ca, None, None).open()) as old:
        assert await is_answered(old)
        shutil.copy(renewed.cert, own.cert)
        assert await is_let_in(address, authority.ca), "certificate and key do not fit yet"
        assert await is_let_in(address, authority.ca), "and the failure is logged once"
        shutil.copy(renewed.key, own.key)
        assert await is_let_in(address, successor.ca)
        assert not await is_let_in(address, authority.ca)
        assert await is_answered(old), "what is connected stays so"
    assert [record.levelname for record in caplog.records if record.name == "pagewire_common.tls"] == ["ERROR"]


async def test_a_renewed_client_authority_holds_for_new_connections(
    authority: Authority, own: Issued, tmp_path: Path
) -> None:
    successor = Authority(tmp_path / "successor")
    clients = str(tmp_path / "clients.pem")
    shutil.copy(authority.ca, clients)
    async with serving(own, clients) as address:
        assert await is_let_in(address, authority.ca, authority.issue("client"))
        shutil.copy(successor.ca, clients)
        assert not await is_let_in(address, authority.ca, authority.issue("client"))
        assert await is_let_in(address, authority.ca, successor.issue("client"))


async def test_a_caller_reads_its_files_again(authority: Authority, own: Issued, tmp_path: Path) -> None:
    successor = Authority(tmp_path / "successor")
    files = channel_credentials(authority.ca, own.cert, own.key)
    first = files.open()
    assert files.latest() is first, "nothing has changed"
    renewed = successor.issue("renewed")
    shutil.copy(renewed.cert, own.cert)
    assert files.latest() is first, "certificate and key do not fit yet"
    shutil.copy(renewed.key, own.key)
    shutil.copy(successor.ca, authority.ca)
    async with serving(successor.issue("server", "127.0.0.1"), successor.ca) as address:
        async with connected(address, files.latest()) as channel:
            assert await is_answered(channel)


def test_files_that_change_while_they_are_read_are_read_again_later(
    authority: Authority, own: Issued, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = channel_credentials(authority.ca, own.cert, own.key)
    first = files.open()
    between, renewed = authority.issue("between"), authority.issue("renewed")

    def check_while_files_change(cert: Path, key: Path) -> None:
        shutil.copy(renewed.cert, cert)
        shutil.copy(renewed.key, key)

    with monkeypatch.context() as patched:
        patched.setattr("pagewire_common.tls._check_pair", check_while_files_change)
        shutil.copy(between.cert, own.cert)
        assert files.latest() is first
    with caplog.at_level(logging.INFO):
        assert files.latest() is not first
    assert "read again" in caplog.text


def spoil(what: str, authority: Authority, own: Issued, tmp_path: Path) -> tuple[dict[str, str], str]:
    """Makes one of the files useless; returns the files and the one that the error has to name."""
    files = {"cert": own.cert, "key": own.key, "client_ca": authority.ca}
    bad = tmp_path / "bad.pem"
    match what:
        case "missing certificate" | "missing key" | "missing authority":
            name = {"certificate": "cert", "key": "key", "authority": "client_ca"}[what.removeprefix("missing ")]
            files[name] = str(bad)
            return files, f"{bad}: No such file"
        case "no certificate":
            files["cert"] = str(bad)
            bad.write_text("nothing")
        case "key of another":
            files["key"] = authority.issue("other", "127.0.0.1").key
            return files, files["key"]
        case "encrypted key":
            files["key"] = str(bad)
            key = serialization.load_pem_private_key(Path(own.key).read_bytes(), None)
            encryption = serialization.BestAvailableEncryption(b"secret")
            pem = serialization.Encoding.PEM
            bad.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, encryption))
        case "no authority":
            files["client_ca"] = str(bad)
            bad.touch()
    return files, str(bad)


@pytest.mark.parametrize(
    "what",
    [
        *("missing certificate", "missing key", "missing authority"),
        *("no certificate", "key of another", "encrypted key", "no authority"),
    ],
)
def test_files_that_cannot_be_used_are_named(what: str, authority: Authority, own: Issued, tmp_path: Path) -> None:
    files, named = spoil(what, authority, own, tmp_path)
    with pytest.raises(TlsError, match=named):
        server_credentials(**files)
