"""Element types of weights and activations, decided once from the device, --dtype and the checkpoint."""

from dataclasses import dataclass

import torch

from pagewire_shard.config import Dtype
from pagewire_shard.errors import BadOption
from pagewire_shard.layers.gpu_linear import GpuLinear
from pagewire_shard.layers.half_products import half_products
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
    summary: str
    """Element types and products in one line, for the start line."""


def resolve_precision(device: torch.device, dtype: Dtype, checkpoint_dtype: str | None) -> Precision:
    """Decides the element types.

    On a GPU everything has the dtype asked for, or the checkpoint's. A CPU keeps activations and the KV cache in
    float32, and packs weights of half precision as float16, whose products are exact in float32. If bfloat16 is asked
    for, its weights are multiplied by activations rounded to bfloat16 where a measurement says that this is faster.

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
        return Precision(name, device, element, element, element, GpuLinear, f"weights and activations in {name}")
    float32 = torch.float32
    if name == "float32":
        return Precision(name, device, float32, float32, float32, float32_linear, "weights and activations in float32")
    products = half_products() if dtype == "bfloat16" else None
    if products is not None and products.dtype is torch.bfloat16:
        element = torch.bfloat16
        summary = f"products in bfloat16, the rest in float32 ({products.reason})"
        return Precision(name, device, float32, element, element, products.factory, summary)
    # Rows of a table are cast after they are looked up, so a bfloat16 table can stay as it is.
    tables = torch.bfloat16 if checkpoint_dtype == "bfloat16" else torch.float16
    summary = "weights packed as float16, the rest in float32" + (f" ({products.reason})" if products else "")
    return Precision("float16", device, float32, float32, tables, float16_packed_linear, summary)
