"""The directory that --model names, and the digest that tells two models apart."""

import json
import struct
from pathlib import Path

import pytest
from pagewire_shard.errors import ModelNotFound
from pagewire_shard.loading.model_source import model_digest, model_name, resolve_model


def write_safetensors(path: Path, data: bytes) -> None:
    """One uint8 tensor."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def test_a_model_directory_is_taken_as_it_is(model_dir):
    assert resolve_model(str(model_dir)) == model_dir
    assert model_name(str(model_dir)) == "model"


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ("/no/such/dir", "no such directory"),
        ("./relative/nowhere", "no such directory"),
        ("a/b/c", "no such directory"),
    ],
)
def test_what_is_no_model_is_named_with_what_is_accepted(model, problem):
    with pytest.raises(ModelNotFound) as error:
        resolve_model(model)
    message = error.value.message
    assert repr(model) in message
    assert problem in message
    assert "hub id" in message
    assert "demo" in message
    assert "\n" not in message


def test_a_directory_without_a_configuration_is_no_model(tmp_path):
    with pytest.raises(ModelNotFound, match=r"has no config\.json"):
        resolve_model(str(tmp_path))


def test_a_file_is_no_model(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelNotFound, match="is a file"):
        resolve_model(str(tmp_path / "model.safetensors"))
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ModelNotFound, match="is a GGUF file, which is not supported"):
        resolve_model(str(tmp_path / "model.gguf"))


@pytest.mark.parametrize(
    ("error_name", "problem"),
    [
        ("RepositoryNotFoundError", "has no such model"),
        ("GatedRepoError", "wants a login"),
        ("LocalEntryNotFoundError", "cannot be reached"),
    ],
)
def test_a_hub_id_that_cannot_be_had_says_why(monkeypatch, error_name, problem):
    import huggingface_hub
    from huggingface_hub import errors

    error_type = getattr(errors, error_name)

    def fail(*args: object, **kwargs: object) -> None:
        raise error_type.__new__(error_type)  # its constructor wants the HTTP library's response

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelNotFound, match=problem) as raised:
        resolve_model("who/what")
    assert "'who/what'" in raised.value.message
    assert "\n" not in raised.value.message


def test_a_hub_id_is_fetched_without_what_no_shard_reads(monkeypatch, model_dir):
    import fnmatch

    import huggingface_hub

    wanted: list[list[str]] = []

    def download(hub_id: str, allow_patterns: list[str]) -> str:
        wanted.append(allow_patterns)
        (model_dir / "model.safetensors").touch()
        return str(model_dir)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_model("who/what") == model_dir
    (patterns,) = wanted

    def fetched(name: str) -> bool:
        return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)

    assert all(map(fetched, ["model-00001-of-2.safetensors", "model.safetensors.index.json", "tokenizer.json"]))
    assert all(map(fetched, ["config.json", "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja"]))
    assert not any(map(fetched, ["pytorch_model.bin", "model.onnx", "README.md", "flax_model.msgpack"]))


def test_pytorch_files_are_fetched_only_where_there_are_no_safetensors(monkeypatch, model_dir):
    import huggingface_hub

    wanted: list[list[str]] = []

    def download(hub_id: str, allow_patterns: list[str]) -> str:
        wanted.append(allow_patterns)
        return str(model_dir)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_model("who/what") == model_dir
    assert wanted[1:] == [["pytorch_model*.bin", "pytorch_model.bin.index.json"]]
    del wanted[:]
    for load_format in ("safetensors", "dummy"):
        assert resolve_model("who/what", load_format) == model_dir
    assert not any("bin" in pattern for patterns in wanted for pattern in patterns)


def test_the_digest_tells_pytorch_files_apart(model_dir):
    import torch

    digests = []
    for value in (0.0, 0.0, 1.0):
        weights = torch.zeros(300_000)
        weights[150_001] = value
        torch.save({"w": weights}, model_dir / "pytorch_model.bin")
        digests.append(model_digest(model_dir))
    assert digests[0] == digests[1] != digests[2]


def test_the_digest_tells_models_apart(model_dir):
    weights = model_dir / "model.safetensors"
    write_safetensors(weights, bytes(100_000))
    digests = [model_digest(model_dir), model_digest(model_dir)]
    write_safetensors(weights, bytes(50_000) + b"\1" * 2000 + bytes(48_000))
    digests.append(model_digest(model_dir))
    (model_dir / "tokenizer.json").write_text("{}")
    digests.append(model_digest(model_dir))
    digests += [model_digest(model_dir, dummy_seed=1), model_digest(model_dir, dummy_seed=2)]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 5
    assert {len(digest) for digest in digests} == {32}


def test_the_digest_tells_replaced_fields_apart(model_dir):
    digests = [model_digest(model_dir, None, fields) for fields in (None, {}, {"a": 1}, {"a": 2}, {"a": 1})]
    assert digests[0] == digests[1]
    assert digests[2] == digests[4]
    assert len(set(digests)) == 3


def test_a_damaged_header_has_a_digest_too(model_dir):
    (model_dir / "model.safetensors").write_bytes(b"\xff" * 20)
    model_digest(model_dir)
