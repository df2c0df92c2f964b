"""The files of a checkpoint that are read, and the content that a PyTorch file may have."""

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from pagewire_shard.errors import CorruptWeights, ModelNotFound
from pagewire_shard.loading.model_loader import load_model
from pagewire_shard.models.decoder import Decoder
from safetensors.torch import load_file, save_file

from tests.shard.test_model_loader import logits, save

CPU = torch.device("cpu")
SAFETENSORS = "model.safetensors"
TORCH = "pytorch_model.bin"


def load(model_dir: Path, **options: Any) -> Decoder:
    return load_model(model_dir, device=CPU, **options).model


def take_tensors(model_dir: Path) -> dict[str, torch.Tensor]:
    """The model's weights, whose file is removed."""
    tensors = {name: tensor.clone() for name, tensor in load_file(model_dir / SAFETENSORS).items()}
    (model_dir / SAFETENSORS).unlink()
    return tensors


def write_index(model_dir: Path, name: str, weight_map: dict[str, str]) -> None:
    (model_dir / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def write_parts(
    model_dir: Path, tensors: dict[str, torch.Tensor], stem: str, ending: str, write: Callable[[Any, Path], object]
) -> None:
    """Two files that take the tensors in turn, each with stale copies of some of the other's."""
    files = [f"{stem}-0000{i}-of-00002.{ending}" for i in (1, 2)]
    names = sorted(tensors)
    weight_map = {name: files[i % 2] for i, name in enumerate(names)}
    for file in files:
        own = {name: tensors[name] if weight_map[name] == file else torch.zeros(3) for name in names[:9]}
        own |= {name: tensors[name] for name in names[9:] if weight_map[name] == file}
        write({**own, "stale.weight": torch.zeros(2)}, model_dir / file)
    write_index(model_dir, f"{stem}.{ending}", weight_map)


def test_the_index_decides_which_copy_of_a_tensor_counts(tmp_path: Path) -> None:
    model_dir = save(tmp_path)
    expected = logits(load(model_dir))
    write_parts(model_dir, take_tensors(model_dir), "model", "safetensors", save_file)
    assert torch.equal(logits(load(model_dir)), expected)


def test_a_tensor_that_its_file_lacks_is_named_with_the_file(tmp_path: Path) -> None:
    model_dir = save(tmp_path)
    tensors = take_tensors(model_dir)
    save_file(tensors, model_dir / "weights.safetensors")
    write_index(model_dir, SAFETENSORS, dict.fromkeys([*tensors, "model.lost.weight"], "weights.safetensors"))
    with pytest.raises(CorruptWeights, match=r"weights\.safetensors: lacks 1 tensors .* 'model\.lost\.weight'"):
        load(model_dir)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_pytorch_file_gives_the_same_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, dtype: torch.dtype, is_zip: bool
) -> None:
    model_dir = save(tmp_path, dtype, tie_word_embeddings=True)
    expected = logits(load(model_dir))
    tensors: dict[str, torch.Tensor] = take_tensors(model_dir)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]  # one storage, as torch saves tied weights
    up = tensors["model.layers.0.mlp.up_proj.weight"]
    tensors["model.layers.0.mlp.up_proj.weight"] = up.t().contiguous().t()
    tensors["model.norm.weight"] = torch.stack([tensors["model.norm.weight"]] * 2, dim=1)[:, 1]
    tensors["model.layers.1.input_layernorm.weight"] = torch.nn.Parameter(
        tensors["model.layers.1.input_layernorm.weight"]
    )
    torch.save(tensors, model_dir / TORCH, _use_new_zipfile_serialization=is_zip)
    assert torch.equal(logits(load(model_dir)), expected)
    assert "pytorch_model.bin: no safetensors" in caplog.text


def test_pytorch_files_with_an_index_give_the_same_model(tmp_path: Path) -> None:
    model_dir = save(tmp_path)
    expected = logits(load(model_dir))
    write_parts(model_dir, take_tensors(model_dir), "pytorch_model", "bin", torch.save)
    assert torch.equal(logits(load(model_dir)), expected)


def test_opt_loads_from_a_pytorch_file_alone(tmp_path: Path) -> None:
    config = transformers.OPTConfig(
        vocab_size=50,
        hidden_size=16,
        ffn_dim=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        word_embed_proj_dim=16,
    )
    model = transformers.OPTForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    (tmp_path / SAFETENSORS).unlink()
    with torch.no_grad():
        expected = model(torch.arange(7)[None]).logits[0]
    state = dict(model.state_dict())
    bare = {name.removeprefix("model."): tensor for name, tensor in state.items() if name != "lm_head.weight"}
    for tensors in (state, bare | {"decoder.version": torch.tensor([3.0])}):
        torch.save(tensors, tmp_path / TORCH)
        torch.testing.assert_close(logits(load(tmp_path)), expected, rtol=1e-4, atol=1e-4)


def test_safetensors_count_where_both_are(tmp_path: Path) -> None:
    model_dir = save(tmp_path)
    expected = logits(load(model_dir))
    (model_dir / TORCH).write_bytes(b"nothing that could be read")
    assert torch.equal(logits(load(model_dir)), expected)


def test_load_format_safetensors_refuses_pytorch_files(tmp_path: Path) -> None:
    model_dir = save(tmp_path)
    torch.save(take_tensors(model_dir), model_dir / TORCH)
    with pytest.raises(ModelNotFound, match=r"found pytorch_model\.bin.*--load-format auto"):
        load(model_dir, load_format="safetensors")
    assert load(model_dir, load_format="auto")


class Hostile:
    """Runs `call` when an ordinary unpickler meets it."""

    def __init__(self, call: Callable[..., object], *arguments: object) -> None:
        self._reduced = (call, arguments)

    def __reduce__(self) -> Any:
        return self._reduced


@pytest.mark.parametrize("form", ["zip", "legacy", "bare-pickle", "protocol-4", "nested-zip"])
@pytest.mark.parametrize("call", ["system", "eval", "open"])
def test_a_pickle_that_names_code_is_refused_and_runs_nothing(tmp_path: Path, form: str, call: str) -> None:
    model_dir = save(tmp_path)
    tensors: dict[str, Any] = dict(take_tensors(model_dir))
    marker = tmp_path / "ran"
    payload = {
        "system": Hostile(os.system, f"touch {marker}"),
        "eval": Hostile(eval, f"open({str(marker)!r}, 'w')"),
        "open": Hostile(open, str(marker), "w"),
    }[call]
    tensors["model.norm.weight"] = payload
    path = model_dir / TORCH
    if form in ("zip", "legacy"):
        torch.save(tensors, path, _use_new_zipfile_serialization=form == "zip")
    elif form == "nested-zip":
        inner = io.BytesIO()
        torch.save(tensors, inner)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps({"weights": payload}, protocol=2))
            archive.writestr("archive/inner.zip", inner.getvalue())
            archive.writestr("archive/version", "3\n")
    else:
        path.write_bytes(pickle.dumps({"weights": payload}, protocol=4 if form == "protocol-4" else 2))
    with pytest.raises(CorruptWeights, match=r"pytorch_model\.bin: (refused: it asks to run|cannot be read)") as raised:
        load(model_dir)
    assert not marker.exists()
    assert "\n" not in raised.value.message
    assert "weights_only" not in raised.value.message


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("size", [0, 3, 200, -100, -5000])
def test_a_truncated_pytorch_file_is_named(tmp_path: Path, size: int, is_zip: bool) -> None:
    model_dir = save(tmp_path)
    path = model_dir / TORCH
    torch.save(take_tensors(model_dir), path, _use_new_zipfile_serialization=is_zip)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CorruptWeights, match=r"pytorch_model\.bin: cannot be read as a PyTorch checkpoint") as raised:
        load(model_dir)
    assert "\n" not in raised.value.message


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([torch.zeros(3)], "holds a list"),
        (torch.zeros(3), "holds a Tensor"),
        ({3: torch.zeros(3)}, "expected a mapping of tensors by name"),
        ({"model.norm.weight": torch.eye(16).to_sparse()}, "'model.norm.weight' is stored as sparse_coo"),
        ({"model.norm.weight": torch.zeros(16, dtype=torch.int8)}, "'model.norm.weight' is stored as int8"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_pytorch_file_that_holds_something_else_is_named(tmp_path: Path, content: object, problem: str) -> None:
    model_dir = save(tmp_path)
    (model_dir / SAFETENSORS).unlink()
    torch.save(content, model_dir / TORCH)
    with pytest.raises(CorruptWeights) as raised:
        load(model_dir)
    assert problem in raised.value.message
