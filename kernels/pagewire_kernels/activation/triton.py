"""silu_and_mul, gelu_and_mul and xielu on a GPU: one pass over memory."""

import torch
import triton
import triton.language as tl

from pagewire_kernels.activation.reference import XIELU_LINEAR
from pagewire_kernels.gpu.dependent_launch import launch_options, release_next, wait_for_previous
from pagewire_kernels.gpu.row_tile import row_tile

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

_MAX_COLUMNS = 2048
"""Widest tile of a row: 4 KB of gate and as much of up."""
_XIELU_LINEAR = tl.constexpr(XIELU_LINEAR)
_SQRT_HALF = tl.constexpr(0.7071067811865476)
_SQRT_8_OVER_PI = tl.constexpr(1.5957691216057308)


@triton.jit
def _activate(gate, ACTIVATION: tl.constexpr):
    """The activation of a float32 tensor."""
    if ACTIVATION == "silu":
        return gate * tl.sigmoid(gate)
    elif ACTIVATION == "gelu":
        return 0.5 * gate * (1.0 + tl.erf(gate * _SQRT_HALF))
    else:
        # 0.5 (1 + tanh(y)) = sigmoid(2 y)
        return gate * tl.sigmoid(gate * (1.0 + 0.044715 * gate * gate) * _SQRT_8_OVER_PI)


@triton.jit(do_not_specialize=["num_rows"])
def activate_and_mul_kernel(
    x_ptr,
    out_ptr,
    num_rows,
    stride_row,
    WIDTH: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (cdiv(num_rows, ROWS), cdiv(WIDTH, COLUMNS)); one program makes a tile of out, [num_rows, WIDTH]."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]  # [ROWS, 1]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]  # [1, COLUMNS]
    mask = (row < num_rows) & (column < WIDTH)
    offsets = row * stride_row + column
    release_next(PDL)
    wait_for_previous(PDL)
    gate = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)  # [ROWS, COLUMNS]
    up = tl.load(x_ptr + offsets + WIDTH, mask=mask, other=0.0).to(tl.float32)
    out = _activate(gate, ACTIVATION) * up
    tl.store(out_ptr + row * WIDTH + column, out.to(out_ptr.dtype.element_ty), mask=mask)


def activate_and_mul(x: torch.Tensor, activation: str) -> torch.Tensor:
    """activation(gate) * up; see the package.

    Args:
        activation: "silu", "gelu" or "gelu_tanh".
    """
    width = x.shape[-1] // 2
    rows = x.reshape(-1, 2 * width)
    if rows.stride(1) != 1:
        raise ValueError("the last dimension must be contiguous")
    out = torch.empty((*x.shape[:-1], width), dtype=x.dtype, device=x.device)
    num_rows = rows.shape[0]
    if num_rows > 0:
        tile = row_tile(width, _MAX_COLUMNS)
        activate_and_mul_kernel[(triton.cdiv(num_rows, tile.rows), triton.cdiv(width, tile.columns))](
            rows,
            out,
            num_rows,
            rows.stride(0),
            WIDTH=width,
            ACTIVATION=activation,
            ROWS=tile.rows,
            COLUMNS=tile.columns,
            **launch_options(x.device),
            num_warps=tile.num_warps,
        )
    return out


@triton.jit(do_not_specialize=["num_rows"])
def xielu_kernel(
    x_ptr,
    slopes_ptr,
    out_ptr,
    num_rows,
    stride_row,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (cdiv(num_rows, ROWS), cdiv(WIDTH, COLUMNS)); one program makes a tile of out, [num_rows, WIDTH]."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]  # [ROWS, 1]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]  # [1, COLUMNS]
    mask = (row < num_rows) & (column < WIDTH)
    release_next(PDL)
    wait_for_previous(PDL)
    x = tl.load(x_ptr + row * stride_row + column, mask=mask, other=0.0).to(tl.float32)  # [ROWS, COLUMNS]
    above, below = tl.load(slopes_ptr), tl.load(slopes_ptr + 1)
    # Near 0 exp(x) - 1 - x would lose all its digits.
    series = x * x * (0.5 + x * (1.0 / 6.0 + x * (1.0 / 24.0)))
    rest = tl.where(x > -0.05, series, tl.exp(tl.minimum(x, 0.0)) - 1.0 - x)
    out = tl.where(x > 0, above * x * x, below * rest) + _XIELU_LINEAR * x
    tl.store(out_ptr + row * WIDTH + column, out.to(out_ptr.dtype.element_ty), mask=mask)


def xielu(x: torch.Tensor, slopes: torch.Tensor) -> torch.Tensor:
    """See the package."""
    num_rows, width = x.shape
    if x.stride(1) != 1 or slopes.dtype is not torch.float32:
        raise ValueError("the last dimension must be contiguous, and slopes float32")
    out = torch.empty((num_rows, width), dtype=x.dtype, device=x.device)
    if num_rows > 0:
        tile = row_tile(width, _MAX_COLUMNS)
        xielu_kernel[(triton.cdiv(num_rows, tile.rows), triton.cdiv(width, tile.columns))](
            x,
            slopes,
            out,
            num_rows,
            x.stride(0),
            WIDTH=width,
            ROWS=tile.rows,
            COLUMNS=tile.columns,
            **launch_options(x.device),
            num_warps=tile.num_warps,
        )
    return out
