"""few_rows_linear on a GPU: every program reads some rows of the weight once and multiplies them with all rows of x."""

import torch
import triton
import triton.language as tl

from pagewire_kernels.gpu.dependent_launch import launch_options, release_next, wait_for_previous
from pagewire_kernels.tuning.few_rows_linear import FewRowsTile

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

_LEAST_TENSOR_ROWS = 8
"""Least rows of x in a tensor core instruction. The weight is the left operand, of which it takes 16 or 64 rows."""
_MAX_ROWS = 16
_ANY_ROWS = FewRowsTile(tensor_cores=True, block_n=32, block_k=128, num_warps=4, num_stages=4, early_release=False)
_ONE_ROW = FewRowsTile(tensor_cores=False, block_n=8, block_k=512, num_warps=4, num_stages=4, early_release=False)


@triton.jit
def _add_products(total, weight, x, TENSOR_CORES: tl.constexpr):
    """total + the products of weight, [BLOCK_N, BLOCK_K], and x, [ROWS, BLOCK_K]."""
    if TENSOR_CORES:
        return tl.dot(weight, tl.trans(x), total, input_precision="ieee")  # [BLOCK_N, ROWS]
    else:
        # Each thread sums its own products; sums across threads are taken once, at the end.
        return total + weight.to(tl.float32) * x.to(tl.float32)  # [BLOCK_N, BLOCK_K]


@triton.jit
def _finish(total, bias_ptr, column, is_column, TENSOR_CORES: tl.constexpr, HAS_BIAS: tl.constexpr):
    """Returns [BLOCK_N, ROWS], the sums with their bias."""
    out = total if TENSOR_CORES else tl.sum(total, axis=1)[:, None]
    if HAS_BIAS:
        out += tl.load(bias_ptr + column, mask=is_column, other=0.0).to(tl.float32)[:, None]
    return out


@triton.jit(do_not_specialize=["num_rows", "num_columns"])
def few_rows_linear_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    num_rows,
    num_columns,
    stride_x,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    TENSOR_CORES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    EARLY_RELEASE: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (cdiv(num_columns, BLOCK_N),); one program makes BLOCK_N columns of out, [num_rows, num_columns].

    x: [num_rows, K]; weight: [num_columns, K], or gate and up, one above the other, of as many rows each.

    The first tile of the weight is on its way before the program waits for x: as much as the registers of all programs
    that are resident hold is read while the kernels before still run. One row with BLOCK_K >= K has no other tile.
    """
    first = tl.program_id(0).to(tl.int64) * BLOCK_N
    column = first + tl.arange(0, BLOCK_N)
    is_column = column < num_columns
    row = tl.arange(0, ROWS)
    is_row = row < num_rows
    inner = tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + row.to(tl.int64)[:, None] * stride_x + inner[None, :]
    weight_ptrs = weight_ptr + column[:, None] * K + inner[None, :]
    up_ptrs = weight_ptrs + tl.cast(num_columns, tl.int64) * K
    is_inner = (inner < K)[None, :]
    mask = is_column[:, None] & is_inner
    # The weight passes through the cache once; x stays, for the other programs.
    weight = tl.load(weight_ptrs, mask=mask, other=0.0, eviction_policy="evict_first")  # [BLOCK_N, BLOCK_K]
    if GATED:
        up_weight = tl.load(up_ptrs, mask=mask, other=0.0, eviction_policy="evict_first")
    wait_for_previous(PDL)
    if EARLY_RELEASE:
        release_next(PDL)
    x = tl.load(x_ptrs, mask=is_row[:, None] & is_inner, other=0.0)  # [ROWS, BLOCK_K]
    total = tl.zeros([BLOCK_N, ROWS if TENSOR_CORES else BLOCK_K], tl.float32)
    total_up = total
    total = _add_products(total, weight, x, TENSOR_CORES)
    if GATED:
        total_up = _add_products(total_up, up_weight, x, TENSOR_CORES)
    # The number of stages is given here, because Triton pipelines only loops with products of tiles by itself.
    for start in tl.range(BLOCK_K, K, BLOCK_K, num_stages=STAGES):
        is_inner = (start + inner < K)[None, :]
        mask = is_column[:, None] & is_inner
        weight = tl.load(weight_ptrs + start, mask=mask, other=0.0, eviction_policy="evict_first")
        x = tl.load(x_ptrs + start, mask=is_row[:, None] & is_inner, other=0.0)
        total = _add_products(total, weight, x, TENSOR_CORES)
        if GATED:
            up_weight = tl.load(up_ptrs + start, mask=mask, other=0.0, eviction_policy="evict_first")
            total_up = _add_products(total_up, up_weight, x, TENSOR_CORES)
    if not EARLY_RELEASE:
        release_next(PDL)
    out = _finish(total, bias_ptr, column, is_column, TENSOR_CORES, HAS_BIAS)
    if GATED:
        out *= tl.sigmoid(out) * _finish(total_up, bias_ptr + num_columns, column, is_column, TENSOR_CORES, HAS_BIAS)
    out_ptrs = out_ptr + row.to(tl.int64)[None, :] * num_columns + column[:, None]
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=is_column[:, None] & is_row[None, :])


def few_rows_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, gated: bool, tile: FewRowsTile | None = None
) -> torch.Tensor:
    """See the package."""
    num_rows, size = x.shape
    tile = tile or (_ONE_ROW if num_rows == 1 else _ANY_ROWS)
    if num_rows > (_MAX_ROWS if tile.tensor_cores else 1):
        raise ValueError(f"{num_rows} rows are more than the kernel takes")
    check_fits(x, weight, bias, gated)
    num_columns = weight.shape[0] // (2 if gated else 1)
    out = torch.empty((num_rows, num_columns), dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    few_rows_linear_kernel[(triton.cdiv(num_columns, tile.block_n),)](
        x,
        weight,
        weight if bias is None else bias,
        out,
        num_rows,
        num_columns,
        x.stride(0),
        **_constants(size, num_rows, gated, bias is not None, tile),
        **launch_options(x.device),
        num_warps=tile.num_warps,
    )
    return out


def check_fits(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, gated: bool) -> None:
    """Raises ValueError for shapes and strides that the kernels do not take."""
    if x.stride(1) != 1 or not weight.is_contiguous() or (bias is not None and not bias.is_contiguous()):
        raise ValueError("rows of x, the weight and the bias must be contiguous")
    size = x.shape[1]
    if weight.shape[1] != size or (bias is not None and len(bias) != len(weight)) or (gated and len(weight) % 2):
        raise ValueError(f"x of {size} columns, a weight of {tuple(weight.shape)} and the bias do not fit together")


def _constants(size: int, num_rows: int, gated: bool, has_bias: bool, tile: FewRowsTile) -> dict[str, int | bool]:
    """Returns the constants that the kernel is compiled for."""
    padded = _LEAST_TENSOR_ROWS if num_rows <= _LEAST_TENSOR_ROWS else _MAX_ROWS
    return {
        "K": size,
        "ROWS": padded if tile.tensor_cores else 1,
        "GATED": gated,
        "HAS_BIAS": has_bias,
        "TENSOR_CORES": tile.tensor_cores,
        "BLOCK_N": tile.block_n,
        "BLOCK_K": tile.block_k,
        "STAGES": tile.num_stages,
        "EARLY_RELEASE": tile.early_release,
    }
