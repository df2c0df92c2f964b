"""TLS on the public port and towards shards."""

import shutil
from pathlib import Path

import grpc
import pytest
from certificates import Authority
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pagewire import AsyncClient, SamplingParams, Unavailable
from pagewire.retry import NEVER
from pagewire.v1 import shard_pb2, shard_pb2_grpc
from pagewire_common.tls import channel_credentials
from pagewire_router.config import RouterConfig
from pagewire_router.groups.shard_client import ShardClient
from pagewire_router.server import RouterServer, ServerError

PROMPT = {"prompt_token_ids": [5]}
SHORT = SamplingParams(max_tokens=2)


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path / "authority")


@pytest.fixture
def server(authority):
    """A certificate for this machine's address."""
    return authority.issue("server", "127.0.0.1", "localhost")


def tls_config(server, **more):
    return {"tls_cert": server.cert, "tls_key": server.key, **more}


async def is_served(router, **tls):
    """Whether a client of its own, on connections of its own, gets an answer."""
    async with AsyncClient(router.address, retry=NEVER, timeout_s=20, **tls) as client:
        try:
            return bool((await client.complete(PROMPT, SHORT)).outputs)
        except Unavailable:
            return False


async def test_clients_that_trust_the_authority_are_served(serve, authority, server, tmp_path):
    async with serve(config=tls_config(server)) as router:
        assert await is_served(router, tls_ca=authority.ca)
        assert not await is_served(router)
        assert not await is_served(router, tls=True), "public authorities know nothing of ours"
        assert not await is_served(router, tls_ca=Authority(tmp_path / "other").ca)


async def test_probes_need_no_tls(serve, server):
    async with serve(config=tls_config(server, health_port=0)) as router:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{router.server.health_port}") as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_files_that_cannot_be_used_are_named_at_start(new_runner, server, tmp_path):
    config = tls_config(server, tls_client_ca=str(tmp_path / "none.pem"))
    router = RouterServer(RouterConfig(shards=(), listen="127.0.0.1:0", **config), new_runner())
    with pytest.raises(ServerError, match="none.pem: No such file"):
        await router.start()
    await router.stop()


class Shard(shard_pb2_grpc.ShardServicer):
    """Says who it is."""

    async def GetInfo(self, request, context):  # noqa: N802
        return shard_pb2.ShardInfo(group_id="g", model=str(context.auth_context().get("x509_common_name")))


async def listening_shard(address, issued, ca):
    server = grpc.aio.server()
    shard_pb2_grpc.add_ShardServicer_to_server(Shard(), server)
    key, cert, root = (Path(path).read_bytes() for path in (issued.key, issued.cert, ca))
    credentials = grpc.ssl_server_credentials([(key, cert)], root_certificates=root, require_client_auth=True)
    server.add_secure_port(address, credentials)
    await server.start()
    return server


async def test_a_shard_is_known_by_the_name_it_was_found_behind_and_certificates_may_change(tmp_path):
    address, name = f"unix:{tmp_path}/shard.sock", "shards.example"
    old, new = Authority(tmp_path / "old"), Authority(tmp_path / "new")
    router = old.issue("router")
    credentials = channel_credentials(old.ca, router.cert, router.key)
    credentials.open()
    client = ShardClient(address, name=name, credentials=credentials)
    shard = await listening_shard(address, old.issue("shard", name), old.ca)
    assert (await client.get_info(20)).model == "[b'router']"
    await shard.stop(None)

    shard = await listening_shard(address, new.issue("shard", name), new.ca)
    renewed = new.issue("renewed")
    for source, target in ((renewed.cert, router.cert), (renewed.key, router.key), (new.ca, old.ca)):
        shutil.copy(source, target)
    assert (await client.get_info(20)).model == "[b'renewed']"
    await shard.stop(None)
    await client.close()


async def test_a_shard_of_another_name_is_not_trusted(tmp_path):
    address, authority = f"unix:{tmp_path}/shard.sock", Authority(tmp_path / "authority")
    shard = await listening_shard(address, authority.issue("shard", "other.example"), authority.ca)
    router = authority.issue("router")
    credentials = channel_credentials(authority.ca, router.cert, router.key)
    credentials.open()
    client = ShardClient(address, name="shards.example", credentials=credentials)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await client.get_info(1)
    assert refused.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    await client.close()
    await shard.stop(None)


@pytest.mark.parametrize("flags", [(), ("tls_cert",), ("tls_cert", "tls_client_ca"), ("api_keys",)])
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_a_router_that_serves_whoever_reaches_it_says_so(serve, authority, server, tmp_path, caplog, flags, host):
    keys = tmp_path / "keys"
    keys.touch(mode=0o600)
    keys.write_text("a-key")
    every = {"tls_cert": server.cert, "tls_client_ca": authority.ca, "api_keys": str(keys)}
    config = {flag: every[flag] for flag in flags} | ({"tls_key": server.key} if "tls_cert" in flags else {})
    async with serve(config={"listen": f"{host}:0", **config}):
        is_open = host == "0.0.0.0" and not {"api_keys", "tls_client_ca"} & set(flags)
        assert ("may call" in caplog.text) == is_open
