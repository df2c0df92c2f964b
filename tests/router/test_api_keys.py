"""API keys: who is let in, what is open to all, and how keys change under a running router."""

import os

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from pagewire.v1 import inference_pb2
from pagewire_router.admission import reloaded_file
from pagewire_router.config import RouterConfig
from pagewire_router.server import RouterServer, ServerError

SHORT = inference_pb2.GenerateRequest(
    token_ids=inference_pb2.TokenIds(ids=[5]), sampling_params=inference_pb2.SamplingParams(max_tokens=2)
)


@pytest.fixture
def keys_file(tmp_path):
    path = tmp_path / "keys"
    path.touch(mode=0o600)
    path.write_text("# those of the tests\nfirst-key\n\n  second-key  \n")
    return path


@pytest.fixture(autouse=True)
def read_always(monkeypatch):
    monkeypatch.setattr(reloaded_file, "REREAD_S", 0.0)


async def complete(router, authorization):
    metadata = () if authorization is None else (("authorization", authorization),)
    return await router.stub.Complete(SHORT, metadata=metadata)


async def is_let_in(router, key):
    try:
        await complete(router, f"Bearer {key}")
    except grpc.aio.AioRpcError as error:
        if error.code() != grpc.StatusCode.UNAUTHENTICATED:
            raise
        return False
    return True


@pytest.mark.parametrize("authorization", ["Bearer first-key", "bearer second-key"])
async def test_a_known_key_is_let_in(serve, keys_file, authorization):
    async with serve(config={"api_keys": str(keys_file)}) as router:
        assert (await complete(router, authorization)).completions
        call = router.stub.Generate(SHORT, metadata=(("authorization", authorization),))
        assert [message async for message in call][-1].HasField("finished")


@pytest.mark.parametrize(
    ("authorization", "message"),
    [
        (None, "an API key is needed: send the metadata 'authorization: Bearer KEY'"),
        ("first-key", "an API key is needed"),
        ("Basic first-key", "an API key is needed"),
        ("Bearer", "an API key is needed"),
        ("Bearer first-ke", "the API key is not known here"),
        ("Bearer first-key second-key", "the API key is not known here"),
        ("Bearer # those of the tests", "the API key is not known here"),
    ],
)
async def test_others_are_refused_and_told_why(serve, keys_file, authorization, message):
    async with serve(config={"api_keys": str(keys_file)}) as router:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await complete(router, authorization)
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
        assert refused.value.details().startswith(message)
        (detail,) = rpc_status.from_call(refused.value).details
        info = error_details_pb2.ErrorInfo.FromString(detail.value)
        assert (info.reason, info.domain) == ("API_KEY_INVALID", "pagewire")
        assert not router.runner.requests


async def test_every_method_wants_a_key_and_refusals_are_counted(serve, keys_file):
    async with serve(config={"api_keys": str(keys_file)}) as router:
        for method in ("Generate", "Complete", "Tokenize", "Detokenize", "GetModel", "NoSuchMethod"):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await router.channel.unary_unary(f"/pagewire.v1.Inference/{method}")(b"")
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
        page = router.server._metrics.render().decode()
        assert 'pagewire_requests_total{method="Tokenize",status="UNAUTHENTICATED"} 1.0' in page
        assert "NoSuchMethod" not in page


async def test_health_and_reflection_want_no_key(serve, keys_file):
    async with serve(config={"api_keys": str(keys_file)}) as router:
        answer = await health_pb2_grpc.HealthStub(router.channel).Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        stub = reflection_pb2_grpc.ServerReflectionStub(router.channel)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        assert (await call.read()).list_services_response.service


async def test_keys_change_with_a_secret_that_kubernetes_swaps(serve, tmp_path):
    """A mounted secret is a link to a link to a folder; an update swaps the link in the middle."""
    for version, key in (("v1", "old-key"), ("v2", "new-key")):
        (tmp_path / version).mkdir()
        (tmp_path / version / "keys").write_text(key)
    (tmp_path / "..data").symlink_to("v1")
    (tmp_path / "keys").symlink_to("..data/keys")
    async with serve(config={"api_keys": str(tmp_path / "keys")}) as router:
        assert [await is_let_in(router, key) for key in ("old-key", "new-key")] == [True, False]
        (tmp_path / "..data_tmp").symlink_to("v2")
        os.replace(tmp_path / "..data_tmp", tmp_path / "..data")
        assert [await is_let_in(router, key) for key in ("old-key", "new-key")] == [False, True]


async def test_a_file_that_cannot_be_read_again_locks_nobody_out_and_shows_no_key(serve, keys_file, caplog):
    async with serve(config={"api_keys": str(keys_file)}) as router:
        keys_file.write_text("# none\n")
        assert await is_let_in(router, "first-key")
        keys_file.unlink()
        assert await is_let_in(router, "first-key")
        assert not await is_let_in(router, "guessed-key")
        told = [
            record.levelname for record in caplog.records if record.name == "pagewire_router.admission.reloaded_file"
        ]
        assert told == ["ERROR"], "said once"
        keys_file.write_text("third-key")
        assert await is_let_in(router, "third-key")
        assert not await is_let_in(router, "first-key")
    assert str(keys_file) in caplog.text
    assert "-key" not in caplog.text.replace(str(keys_file), "")


@pytest.mark.parametrize(("content", "why"), [(None, "No such file"), ("# nothing\n\n", "there is no key in it")])
async def test_a_start_without_keys_fails_and_names_the_file(new_runner, tmp_path, content, why):
    path = tmp_path / "keys"
    if content is not None:
        path.write_text(content)
    server = RouterServer(RouterConfig(shards=(), listen="127.0.0.1:0", api_keys=str(path)), new_runner())
    with pytest.raises(ServerError, match=f"{path}: {why}"):
        await server.start()
    await server.stop()


async def test_keys_on_an_unencrypted_port_are_worth_a_warning(serve, keys_file, tmp_path, caplog):
    async with serve(config={"api_keys": str(keys_file), "listen": f"unix:{tmp_path}/router.sock"}):
        assert "unencrypted" not in caplog.text
    async with serve(config={"api_keys": str(keys_file)}):
        assert "API keys travel unencrypted" in caplog.text
