"""Matrix products with unquantized weights: packed on a CPU, plain elsewhere; gpu_linear.py has a GPU's.

A factory takes a weight and keeps only what its product needs; the caller drops the weight after packing. With AVX-512
our own kernel serves float32 and, where the processor multiplies it, bfloat16; half_products.py measures whether the
latter pays. Elsewhere a packed float32 product of oneDNN takes a third of F.linear's time at 1 to 64 rows and less than
half at 512; weights packed as float16 with float32 activations halve the memory and are faster still where reading
weights dominates, up to 32 rows. Accumulation is in float32 in all of them.

The bits of a row of a packed product do not depend on the rows beside it: a request gets the same in any company.
"""

from collections.abc import Callable
from functools import cache
from typing import Protocol

import torch
import torch.nn.functional as F
from pagewire_kernels.packed_linear import has_instructions, pack, packed_linear

from pagewire_shard.layers.activation import Activation
from pagewire_shard.parallel.collectives import Collectives

PACKED_NUM_ROWS = 64
"""Number of rows that oneDNN is told to expect. The layout it picks for 64 is within 5 % of the best at 1 to 512 rows,
so one packed weight is used for decode and prefill. Packed for 1 row it is half as fast at 4 rows; packed for 16 or
512 rows it is nowhere faster."""

FLOAT16_MAX = torch.finfo(torch.float16).max
FLOAT16_EXPONENT = 15
"""Scaled rows have their largest weight between 2 ** 14 and 2 ** 15."""
SMALL_MAX = 2.0**-8
"""Rows and columns whose largest weight is below this may lose digits as float16."""
ROWS_AT_A_TIME = 256
MAX_SHIFT = 100
"""Largest exponent of a row's scale: the scale and its inverse are normal float32 numbers."""


class Linear(Protocol):
    """x @ weight.T + bias.

    What a product can do in the same pass as something else is asked of it, so that a new kind of Linear decides for
    itself: each such method returns the fused callable, or None where there is none.
    """

    num_bytes: int
    """Memory the weight and bias take."""
    keeps_weight: bool = False
    """Whether it reads the weight tensor it was made from, so that a table shared with the caller is stored once."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[num_rows, in_features] -> [num_rows, out_features], same dtype."""

    def write(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """Leaves the product in `out`, which is contiguous."""
        out.copy_(self(x))

    def gated(self, activation: Activation) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """activation(gate) * value of this product, whose first half of columns is the gate and whose second the value:
        [num_rows, in_features] -> [num_rows, out_features / 2]."""
        return None


class SummedLinear(Linear):
    """A product whose columns the ranks of a group share out; each rank gets the sum."""

    def __init__(self, partial: Linear, collectives: Collectives) -> None:
        """partial: the product with this rank's columns."""
        self.partial = partial
        self.num_bytes = partial.num_bytes
        self._all_reduce = collectives.all_reduce

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._all_reduce(self.partial(x))


class GatheredLinear(Linear):
    """A product whose rows the ranks of a group share out; each rank gets all of it."""

    def __init__(self, own: Linear, num_rows: int, collectives: Collectives) -> None:
        """own: the product with this rank's rows. num_rows: those of all ranks together, without padding."""
        self.num_bytes = own.num_bytes
        self._own = own
        self._num_rows = num_rows
        self._all_gather = collectives.all_gather

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        parts = self._all_gather(self._own(x).contiguous())
        return parts.transpose(0, 1).flatten(1)[:, : self._num_rows].contiguous()


class LinearFactory(Protocol):
    """Makes a Linear from a weight that the caller no longer uses."""

    def __call__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
        """weight: [out_features, in_features], bias: [out_features], contiguous."""


class PlainLinear(Linear):
    """The weight as it is, on any device."""

    keeps_weight = True

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight = weight
        self.bias = bias
        self.num_bytes = weight.nbytes + (bias.nbytes if bias is not None else 0)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias)

    def write(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """See Linear."""
        if self.bias is None:
            torch.mm(x, self.weight.t(), out=out)
        else:
            torch.addmm(self.bias, x, self.weight.t(), out=out)


class PackedLinear(Linear):
    """Weight in the panels of our own kernel for CPUs with AVX-512, which also activates what is gated."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        self._packed = pack(weight, dtype)
        self._bias = bias
        self.num_bytes = self._packed.panels.nbytes + (bias.nbytes if bias is not None else 0)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return packed_linear(x, self._packed, self._bias)

    def gated(self, activation: Activation) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """See Linear."""
        if activation not in ("silu", "gelu_tanh") or not self._packed.can_be_gated:
            return None
        return lambda x: packed_linear(x, self._packed, self._bias, activation)


class OneDnnLinear(Linear):
    """Float32 weight in oneDNN's blocked layout."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._packed = torch.ops.mkldnn._reorder_linear_weight.default(weight, PACKED_NUM_ROWS)
        self._bias = bias
        self._run = torch.ops.mkldnn._linear_pointwise.default
        self.num_bytes = weight.nbytes + (bias.nbytes if bias is not None else 0)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] == 1:
            # For one row oneDNN adds up long rows in another order than for two and more.
            return self._run(x.expand(2, -1), self._packed, self._bias, "none", [], "")[:1]  # type: ignore[no-any-return]
        output: torch.Tensor = self._run(x, self._packed, self._bias, "none", [], "")
        return output


class OneDnnBfloat16Linear(OneDnnLinear):
    """Bfloat16 weight in oneDNN's blocked layout, for AMX: x and the product are rounded to bfloat16."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(weight.bfloat16(), None if bias is None else bias.bfloat16())

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return super().__call__(x.bfloat16()).float()


class Float16PackedLinear(Linear):
    """Weight packed as float16 by FBGEMM, activations and accumulation in float32. The weight comes as float32."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._packed = torch.ops.quantized.linear_prepack_fp16.default(weight, bias)
        self._run = torch.ops.quantized.linear_dynamic_fp16.default
        self.num_bytes = weight.nbytes // 2 + (bias.nbytes if bias is not None else 0)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self._run(x, self._packed)
        return output


class ScaledFloat16Linear(Float16PackedLinear):
    """Float16PackedLinear for weights outside float16's range: rows are packed times powers of two, and the product is
    divided by them, which is exact. The weight comes as float32."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, exponents: torch.Tensor) -> None:
        scales = torch.exp2(exponents)
        super().__init__(weight * scales[:, None], None if bias is None else bias * scales)
        self._inverse_scales = 1.0 / scales
        self.num_bytes += scales.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return super().__call__(x).mul_(self._inverse_scales)


def packed_bfloat16_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    """The product of x and weight, both rounded to bfloat16; sums and output in float32."""
    return PackedLinear(weight, bias, torch.bfloat16)


def float32_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    """The fastest Linear on this CPU that keeps float32 weights."""
    if has_instructions(torch.float32):
        return PackedLinear(weight, bias, torch.float32)
    return OneDnnLinear(weight, bias) if has_onednn() else PlainLinear(weight, bias)


def float16_packed_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    """The fastest Linear on this CPU for weights of half precision, which keeps their digits.

    bfloat16 has float16's size and float32's range: a weight beyond 65,504 would be clipped, one far below 2 ** -14
    would lose digits or vanish. Rows are scaled where that would matter.
    """
    if not has_fbgemm():
        return float32_linear(weight, bias)
    match row_exponents(weight):
        case None:
            return float32_linear(weight, bias)
        case exponents if exponents.any():
            return ScaledFloat16Linear(weight, bias, exponents)
        case _:
            return Float16PackedLinear(weight, bias)


def row_exponents(weight: torch.Tensor) -> torch.Tensor | None:
    """Powers of two by which rows are to be multiplied before they are packed as float16.

    float16 is exact for every bfloat16 from 2 ** -17 to 65,504; below, the error is at most 2 ** -25. Next to a largest
    weight of SMALL_MAX in the same row and column this is float32's own rounding, so the rows stay as they are: the
    exponents are 0. If a row or column has no weight so large, or a weight is too large, every row is scaled so that
    its largest weight is just below 2 ** 15, and all weights down to 2 ** -32 of that are exact.

    Args:
        weight: [num_rows, in_features], float32.

    Returns:
        [num_rows], float32; None if no scaling of rows suffices: a weight is infinite or NaN, or a column stays below
        SMALL_MAX.
    """
    row_max, column_max = _largest(weight)
    if not row_max.isfinite().all():
        return None
    largest = torch.cat([row_max, column_max])
    if not ((largest > FLOAT16_MAX) | ((largest < SMALL_MAX) & (largest > 0))).any():
        return torch.zeros_like(row_max)
    exponents = (FLOAT16_EXPONENT - torch.frexp(row_max).exponent).clamp(-MAX_SHIFT, MAX_SHIFT)
    exponents = torch.where(row_max > 0, exponents, 0).to(row_max.dtype)
    _, column_max = _largest(weight * torch.exp2(exponents)[:, None])
    return None if ((column_max < SMALL_MAX) & (column_max > 0)).any() else exponents


def _largest(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Largest magnitude of each row and each column. Reads the weight once, in parts that fit the processor's cache."""
    parts = [(part.amax(1), part.amax(0)) for part in map(torch.abs, torch.split(weight, ROWS_AT_A_TIME))]
    rows, columns = zip(*parts, strict=True)
    return torch.cat(rows), torch.stack(columns).amax(0)


class WideLinear(PlainLinear):
    """A float32 weight and product, whatever the element type of x."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return super().__call__(x.float())


def router_linear(weight: torch.Tensor) -> Linear:
    """The Linear of a router whose product is made in float32: [num_rows, in_features] -> float32."""
    return float32_linear(weight, None) if weight.is_cpu else WideLinear(weight, None)


@cache
def has_onednn() -> bool:
    """Whether torch was built with oneDNN and its packed linear operators work here."""
    return _works(OneDnnLinear)


@cache
def has_fbgemm() -> bool:
    """Whether torch was built with FBGEMM and its float16 linear operators work here."""
    return _works(Float16PackedLinear)


def _works(factory: LinearFactory) -> bool:
    identity = torch.eye(16)
    try:
        return torch.equal(factory(identity, None)(identity), identity)
    except (AttributeError, RuntimeError):
        # This build of torch lacks the operator, or the operator does not support this processor.
        return False
