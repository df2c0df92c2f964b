"""TLS of the shard's port."""

from pathlib import Path

import grpc
import pytest
from certificates import Authority, Issued
from pagewire.v1 import shard_pb2, shard_pb2_grpc
from pagewire_shard.cli import build_parser, config_from
from pagewire_shard.errors import BadOption


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


async def is_let_in(address: str, ca: str, shown: Issued | None) -> bool:
    key, cert = (None, None) if shown is None else (Path(shown.key).read_bytes(), Path(shown.cert).read_bytes())
    credentials = grpc.ssl_channel_credentials(Path(ca).read_bytes(), key, cert)
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
        try:
            return bool(await shard_pb2_grpc.ShardStub(channel).GetInfo(shard_pb2.GetInfoRequest(), timeout=20))
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                raise
            return False


async def test_routers_show_a_certificate(serve_shard, authority, tmp_path):
    own, router = authority.issue("shard", "127.0.0.1"), authority.issue("router")
    stranger = Authority(tmp_path / "other").issue("router")
    shard = await serve_shard(tls_cert=own.cert, tls_key=own.key, tls_client_ca=authority.ca)
    assert await is_let_in(shard.address, authority.ca, router)
    assert not await is_let_in(shard.address, authority.ca, stranger)
    assert not await is_let_in(shard.address, authority.ca, None)


async def test_files_that_cannot_be_used_are_named(serve_shard, authority, tmp_path):
    own = authority.issue("shard", "127.0.0.1")
    with pytest.raises(BadOption, match="none.pem: No such file"):
        await serve_shard(tls_cert=own.cert, tls_key=own.key, tls_client_ca=str(tmp_path / "none.pem"))


@pytest.mark.parametrize("line", ["--tls-cert a", "--tls-key a", "--tls-client-ca a"])
def test_flags_that_make_no_sense_alone_are_refused(line):
    with pytest.raises(BadOption, match="--tls-cert"):
        config_from(build_parser().parse_args(line.split()))
