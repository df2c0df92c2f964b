"""Prepare and Forget on a plan stream, over real gRPC."""

import asyncio
import json
import logging
import shutil
import urllib.request
from pathlib import Path

import grpc
import pytest
from grammar_world import DEMO, EOS, outputs
from pagewire.v1 import shard_pb2
from pagewire_shard.grammar.errors import GrammarNotReady
from pagewire_shard.grammar.grammars import Grammars


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """The demo model's description, without its weights."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, tmp_path)
    return tmp_path


async def prepare(router, name: str, **fields: object) -> shard_pb2.Prepared:
    await router.send(prepare=shard_pb2.Prepare(name=name, grammar=outputs(**fields)))
    return (await router.receive("prepared")).prepared


async def test_a_prepare_is_answered_when_plans_may_name_it(serve_shard):
    grammars = Grammars()
    shard = await serve_shard(grammars=grammars)
    router = shard.router()
    welcome = await router.hello()
    assert welcome.info.serves_grammars
    assert (await prepare(router, "g", regex="a+")).code == 0
    assert grammars.matcher("g", (EOS,))
    await router.send(forget=shard_pb2.Forget(names=["g"]))
    await router.plan(1)
    await router.result()
    with pytest.raises(GrammarNotReady):
        grammars.matcher("g", (EOS,))


async def test_what_cannot_be_compiled_is_answered_and_harms_nobody(serve_shard):
    shard = await serve_shard(grammars=Grammars())
    router = shard.router()
    await router.hello()
    answer = await prepare(router, "bad", regex="a(")
    assert answer.name == "bad"
    assert answer.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert "regex" in answer.message
    await router.plan(1)
    assert (await router.result()).step == 1


async def test_names_end_with_the_epoch(serve_shard):
    grammars = Grammars()
    shard = await serve_shard(grammars=grammars)
    first = shard.router()
    await first.hello()
    assert (await prepare(first, "g", regex="a+")).code == 0
    second = shard.router()
    await second.hello(force=True)
    with pytest.raises(GrammarNotReady):
        grammars.matcher("g", (EOS,))
    assert (await prepare(second, "g", regex="a+")).code == 0
    assert (await first.error()).code() is grpc.StatusCode.ABORTED
    await asyncio.sleep(0.05)
    assert grammars.matcher("g", (EOS,)), "the end of the first call must not void names of the second"


async def test_names_hold_until_the_step_thread_is_behind_the_plans_that_it_has(serve_shard):
    """In a group they run on all ranks, also when the stream to one of them has ended."""
    grammars = Grammars()
    shard = await serve_shard(grammars=grammars)
    router = shard.router()
    await router.hello()
    assert (await prepare(router, "g", regex="a+")).code == 0
    shard.engine.may_launch.clear()
    await router.plan(1)
    await shard.until(lambda: shard.engine.log[-1] == "launch 1")
    await router.send(goodbye=shard_pb2.Goodbye(reason="test"))
    assert (await router.error()).code() is grpc.StatusCode.OK
    assert grammars.matcher("g", (EOS,))
    shard.engine.may_launch.set()
    await shard.until(lambda: shard.engine.log[-1] == "end")
    with pytest.raises(GrammarNotReady):
        grammars.matcher("g", (EOS,))


@pytest.mark.parametrize("without", ["tokenizer", "end of sequence"])
async def test_a_shard_that_cannot_serve_grammars_says_so(serve_shard, model_dir: Path, without: str):
    if without == "tokenizer":
        (model_dir / "tokenizer.json").unlink()
        (model_dir / "tokenizer_config.json").unlink()
    else:
        config = json.loads((model_dir / "config.json").read_text())
        (model_dir / "config.json").write_text(json.dumps({**config, "eos_token_id": None}))
    shard = await serve_shard(grammars=Grammars())
    router = shard.router()
    assert not (await router.hello()).info.serves_grammars
    answer = await prepare(router, "g", regex="a+")
    assert answer.code == grpc.StatusCode.UNIMPLEMENTED.value[0]


async def test_what_became_of_grammars_is_counted(serve_shard, caplog):
    with caplog.at_level(logging.INFO):
        shard = await serve_shard(grammars=Grammars(), metrics_port=0)
    port = int(caplog.text.rpartition("/metrics")[0].rpartition(":")[2])
    router = shard.router()
    await router.hello()
    for name, regex in (("a", "a+"), ("b", "a+"), ("c", "a(")):
        await prepare(router, name, regex=regex)
    page = await asyncio.to_thread(lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode())
    assert 'pagewire_shard_grammars_prepared_total{outcome="compiled"} 1.0' in page
    assert 'pagewire_shard_grammars_prepared_total{outcome="cached"} 1.0' in page
    assert 'pagewire_shard_grammars_prepared_total{outcome="refused"} 1.0' in page
    assert "pagewire_shard_grammars_cached 1.0" in page
    assert "pagewire_shard_grammar_process_starts_total 1.0" in page
    assert "pagewire_shard_grammar_prepare_seconds_count 3" in page


async def test_a_prepare_of_nothing_ends_the_stream(serve_shard):
    shard = await serve_shard(grammars=Grammars())
    router = shard.router()
    await router.hello()
    await router.send(prepare=shard_pb2.Prepare(name="g"))
    assert (await router.error()).code() is grpc.StatusCode.INVALID_ARGUMENT
