"""Element types of weights and activations, decided once from the device, --dtype and the checkpoint."""

from dataclasses import dataclass

import torch

from pagewire_shard.config import Dtype
from pagewire_shard.errors import BadOption
from pagewire_shard.layers.gpu_linear import GpuLinear
from pagewire_shard.layers.linear import LinearFactory, float16_packed_linear, float32_linear

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


@dataclass(frozen=True, slots=True)
class Precision:
    """The element types in which a model is held on its device."""

    name: str
    """The weights' element type, as reported: float32, float16 or bfloat16."""
    device: torch.device
    activations: torch.dtype
    """Element type of activations, norms, biases and the KV cache."""
    linear_weights: torch.dtype
    """Element type that linear_factory takes."""
    tables: torch.dtype
    """Element type of embedding tables."""
    linear_factory: LinearFactory


def resolve_precision(device: torch.device, dtype: Dtype, checkpoint_dtype: str | None) -> Precision:
    """Decides the element types.

    On a GPU everything has the dtype asked for, or the checkpoint's. A CPU computes in float32: 16-bit arithmetic is
    up to 250 times slower on processors without instructions for it. Half-precision weights, whether stored or asked
    for, are packed as float16; products of float16 weights are exact in float32.

    Args:
        checkpoint_dtype: The checkpoint's element type; None or an unsupported one counts as float32.

    Raises:
        BadOption: the dtype is unknown.
    """
    name = dtype if dtype != "auto" else checkpoint_dtype if checkpoint_dtype in DTYPES else "float32"
    if name not in DTYPES:
        raise BadOption(f"--dtype {name}: must be auto, {', '.join(DTYPES)}")
    if device.type != "cpu":
        element = DTYPES[name]
        return Precision(name, device, element, element, element, GpuLinear)
    if name == "float32":
        return Precision(name, device, torch.float32, torch.float32, torch.float32, float32_linear)
    # Rows of a table are cast after they are looked up, so a bfloat16 table can stay as it is.
    tables = torch.bfloat16 if checkpoint_dtype == "bfloat16" else torch.float16
    return Precision("float16", device, torch.float32, torch.float32, tables, float16_packed_linear)
