"""What weights and activations are stored as: decided once from the device, --dtype and the checkpoint."""

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
    """How a model is held on its device."""

    name: str
    """The weights' element type, as reported: float32, float16 or bfloat16."""
    device: torch.device
    activations: torch.dtype
    """Of activations, norms, biases and the KV cache."""
    linear_weights: torch.dtype
    """What linear_factory wants."""
    tables: torch.dtype
    """Of embedding tables."""
    linear_factory: LinearFactory


def resolve_precision(device: torch.device, dtype: Dtype, checkpoint_dtype: str | None) -> Precision:
    """Decides how a model is held.

    On a GPU everything has the dtype asked for, or the checkpoint's. A CPU computes in float32: 16-bit arithmetic is
    up to 250 times slower where it has no instructions for it. Half-precision weights, given or asked for, are packed
    as float16, of which every product is exact in float32.

    Args:
        checkpoint_dtype: The checkpoint's element type; None or one that torch computes in no better: float32.

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
    # A table is looked up, then cast: bfloat16 can stay what it is.
    tables = torch.bfloat16 if checkpoint_dtype == "bfloat16" else torch.float16
    return Precision("float16", device, torch.float32, torch.float32, tables, float16_packed_linear)
