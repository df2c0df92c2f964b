"""Layers that attend to the keys and values of others."""

from pathlib import Path

import torch
from pagewire_shard.layers.cache_layout import plan_layout
from pagewire_shard.loading.model_loader import load_model
from safetensors.torch import load_file, save_file

from tests.shard.test_model_loader import logits
from tests.shard.test_models import CASES, random_model

CPU = torch.device("cpu")


def test_a_checkpoint_may_have_keys_and_values_of_such_layers_all_the_same(tmp_path: Path) -> None:
    reference = random_model(CASES["gemma4-shared-keys-and-values"])
    reference.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for module in ("k_proj", "v_proj", "k_norm"):
        tensors[f"model.layers.4.self_attn.{module}.weight"] = torch.zeros(1)
    save_file(tensors, tmp_path / "model.safetensors")
    model = load_model(tmp_path, device=CPU, dtype="float32").model
    with torch.no_grad():
        expected = reference(torch.arange(7)[None]).logits[0]
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)


def test_such_layers_take_no_room_in_a_block(tmp_path: Path) -> None:
    CASES["gemma4-shared-keys-and-values"].save_pretrained(tmp_path)
    layers = load_model(tmp_path, device=CPU, dtype="float32", load_format="dummy").model.spec.layers
    layout = plan_layout(layers, max_model_len=64)
    caches = layout.allocate(3, 8, torch.float32, CPU)
    # Layer 3 has a window as layer 2 has, layer 4 has none, as layer 1.
    for reader, owner in ((3, 2), (4, 1)):
        assert [tensor.data_ptr() for tensor in caches[reader]] == [tensor.data_ptr() for tensor in caches[owner]]
        assert layout.layer_tables[reader] == layout.layer_tables[owner]
    # Two layers with a window and one without, whose heads are twice as large.
    assert [group.num_tables for group in layout.groups] == [1, 1]
    assert len(layout.specs) == 1
