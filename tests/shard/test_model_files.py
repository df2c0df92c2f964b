"""The files that a shard sends a router: unchanged, and a tokenizer in the one form that routers read."""

import hashlib
import json
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import grpc
import pytest
import tokenizer_folders
from pagewire.v1 import shard_pb2, shard_pb2_grpc
from pagewire_shard.errors import CorruptTokenizer
from pagewire_shard.service import model_files
from pagewire_shard.service.model_files import chunk_messages, collect_model_files
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

TEXTS = ["The capital of France is Paris.", "  two  spaces\n and a line", "naïve café 日本語 🙂", "<s> </s>", ""]
GPT2 = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>"}
OPT = {**GPT2, "bos_token": "</s>", "pad_token": "<pad>", "add_bos_token": True}


@pytest.fixture
def slow_tokenizer_dir(tmp_path: Path):
    """Writes a checkpoint whose tokenizer is vocab.json and merges.txt."""

    def write(model_type: str, tokenizer_config: dict[str, object]) -> Path:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<s>", "<pad>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(TEXTS * 20, trainer)
        tokenizer.model.save(str(tmp_path))
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
        return tmp_path

    return write


@pytest.mark.parametrize(("model_type", "tokenizer_config"), [("gpt2", GPT2), ("opt", OPT)], ids=["gpt2", "opt"])
def test_vocabulary_and_merges_become_a_tokenizer_with_the_same_ids(slow_tokenizer_dir, model_type, tokenizer_config):
    from transformers import AutoTokenizer

    directory = slow_tokenizer_dir(model_type, tokenizer_config)
    theirs = AutoTokenizer.from_pretrained(directory)
    ours = Tokenizer.from_str(collect_model_files(directory)["tokenizer.json"].decode())
    for text in TEXTS:
        assert ours.encode(text).ids == theirs(text).input_ids
        assert ours.encode(text, add_special_tokens=False).ids == theirs(text, add_special_tokens=False).input_ids
    starts_with_eos = ours.encode("The").ids[:1] == [ours.token_to_id("</s>")]
    assert starts_with_eos == (model_type == "opt")


def test_a_tokenizer_that_says_all_is_sent_as_it_is(tmp_path):
    tokenizer_folders.plain(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not for routers")
    files = collect_model_files(tmp_path)
    assert files["tokenizer.json"] == (tmp_path / "tokenizer.json").read_bytes()
    assert set(files) == {"config.json", "tokenizer.json", "tokenizer_config.json"}


def test_chat_templates_beside_the_first_are_sent(slow_tokenizer_dir):
    directory = slow_tokenizer_dir("gpt2", GPT2)
    folder = directory / "additional_chat_templates"
    folder.mkdir()
    (folder / "tool_use.jinja").write_bytes(b"for tools")
    (folder / "notes.txt").write_bytes(b"no template")
    files = collect_model_files(directory)
    assert files["additional_chat_templates/tool_use.jinja"] == b"for tools"
    assert not [name for name in files if name.endswith(".txt")]


def test_the_same_folder_is_always_read_the_same(tmp_path):
    tokenizer_folders.gemma(tmp_path)
    assert collect_model_files(tmp_path) == collect_model_files(tmp_path)


def test_a_tokenizer_that_needs_code_of_the_model_falls_back_to_its_file(tmp_path, caplog):
    tokenizer_folders.plain(tmp_path)
    config = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own"}))
    files = collect_model_files(tmp_path)
    assert files["tokenizer.json"] == (tmp_path / "tokenizer.json").read_bytes()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "tokenizer.json alone is used" in caplog.text
    assert "\n" not in caplog.records[0].getMessage()


@pytest.fixture
def stand_in_package(tmp_path: Path, monkeypatch):
    """Writes a module that processes started from here import instead of the installed one."""
    folder = tmp_path / "stand-ins"
    monkeypatch.syspath_prepend(str(folder))

    def write(name: str, code: str) -> None:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(code)

    return write


@pytest.mark.parametrize("error", ["ImportError('No module named sentencepiece')", "TypeError('other protobuf')"])
def test_a_sentencepiece_model_without_the_package_says_so(tmp_path, stand_in_package, error):
    tokenizer_folders.sentencepiece_alone(tmp_path)
    stand_in_package("sentencepiece", f"raise {error}")
    with pytest.raises(CorruptTokenizer, match="pip install sentencepiece"):
        collect_model_files(tmp_path)


@pytest.mark.parametrize("code", ["import os; os.kill(os.getpid(), 9)", "raise SystemExit('out of memory')"])
def test_a_reader_that_dies_is_reported_by_its_status(tmp_path, stand_in_package, code):
    tokenizer_folders.sentencepiece_alone(tmp_path)
    stand_in_package("transformers", code)
    with pytest.raises(CorruptTokenizer, match=r"ended with status (-9|1: out of memory)"):
        collect_model_files(tmp_path)


def test_what_a_library_prints_while_it_reads_is_not_taken_for_the_tokenizer(tmp_path, stand_in_package):
    tokenizer_folders.sentencepiece_alone(tmp_path)
    expected = collect_model_files(tmp_path)
    stand_in_package(
        "transformers",
        "import os, sys\nprint('advice'); os.write(1, b'{}\\n')\n"
        "sys.path = [path for path in sys.path if not path.endswith('stand-ins')]\n"
        "del sys.modules['transformers']\nimport transformers\n",
    )
    assert collect_model_files(tmp_path) == expected


def test_transformers_is_not_imported_by_the_process_that_asks(tmp_path):
    tokenizer_folders.qwen2(tmp_path)
    script = (
        "import sys; from pathlib import Path; from pagewire_shard.service.model_files import collect_model_files\n"
        "assert b'NFC' in collect_model_files(Path(sys.argv[1]))['tokenizer.json']\n"
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)


def test_a_model_without_a_tokenizer_has_none(model_dir):
    assert set(collect_model_files(model_dir)) == {"config.json"}


def test_a_broken_tokenizer_is_named(slow_tokenizer_dir):
    directory = slow_tokenizer_dir("gpt2", GPT2)
    (directory / "vocab.json").write_text("{")
    with pytest.raises(CorruptTokenizer, match=r"cannot be read.*tokenizer\.json") as error:
        collect_model_files(directory)
    assert str(directory) in error.value.message
    assert "\n" not in error.value.message


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 20, 25])
def test_chunks_are_bounded_and_the_last_has_the_digest(monkeypatch, size):
    monkeypatch.setattr(model_files, "CHUNK_BYTES", 10)
    content = bytes(range(size))
    chunks = list(chunk_messages({"a": content, "b": b"x"}))
    of_a = [chunk for chunk in chunks if chunk.name == "a"]
    assert [chunk.name for chunk in chunks] == ["a"] * len(of_a) + ["b"]
    assert b"".join(chunk.data for chunk in of_a) == content
    assert max(len(chunk.data) for chunk in of_a) <= 10
    assert [bool(chunk.sha256) for chunk in of_a] == [False] * (len(of_a) - 1) + [True]
    assert of_a[-1].sha256 == hashlib.sha256(content).digest()


async def test_files_and_info_are_served(serve_shard, model_dir, monkeypatch):
    monkeypatch.setattr(model_files, "CHUNK_BYTES", 1000)
    tokenizer_folders.plain(model_dir)
    shard = await serve_shard()
    stub = shard_pb2_grpc.ShardStub(shard.channel)
    assert await stub.GetInfo(shard_pb2.GetInfoRequest()) == shard.engine.info
    received: dict[str, bytes] = {}
    async for chunk in stub.GetModelFiles(shard_pb2.GetModelFilesRequest()):
        received[chunk.name] = received.get(chunk.name, b"") + chunk.data
        last = chunk
    assert received == {path.name: path.read_bytes() for path in model_dir.iterdir()}
    assert last.sha256 == hashlib.sha256(received[last.name]).digest()


async def test_files_are_served_while_the_model_loads(config, model_dir, fake_engine):
    from pagewire_shard.service.server import ShardServer
    from pagewire_shard.stepping.step_thread import StepThread

    steps = StepThread(fake_engine)  # not started: the engine is never built
    found: Future[Path] = Future()
    found.set_result(model_dir)
    server = ShardServer(config, found, steps)
    async with grpc.aio.insecure_channel(await server.start()) as channel:
        stub = shard_pb2_grpc.ShardStub(channel)
        chunks = [chunk async for chunk in stub.GetModelFiles(shard_pb2.GetModelFilesRequest())]
        assert [chunk.name for chunk in chunks] == ["config.json"]
        with pytest.raises(grpc.aio.AioRpcError, match="loads its model") as refused:
            await stub.GetInfo(shard_pb2.GetInfoRequest())
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        assert await stub.Execute().code() == grpc.StatusCode.UNAVAILABLE
    await server.stop(0.0)
