"""layer_norm on a GPU: one pass over memory, with or without the residual addition."""

import torch
import triton
import triton.language as tl

from pagewire_kernels.gpu.dependent_launch import launch_options, release_next, wait_for_previous
from pagewire_kernels.gpu.row_tile import row_tile

# mypy: disable-error-code="no-untyped-def, no-untyped-call"


@triton.jit(do_not_specialize=["num_rows"])
def layer_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    total_ptr,
    num_rows,
    stride_row,
    eps,
    WIDTH: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (cdiv(num_rows, ROWS),); one program normalises ROWS rows of WIDTH elements, stride_row apart in x and
    contiguous elsewhere."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]  # [ROWS, 1]
    column = tl.arange(0, COLUMNS)[None, :]  # [1, COLUMNS]
    is_column = column < WIDTH
    mask = (row < num_rows) & is_column
    release_next(PDL)
    wait_for_previous(PDL)
    x = tl.load(x_ptr + row * stride_row + column, mask=mask, other=0.0)  # [ROWS, COLUMNS]
    dtype = x.dtype
    offsets = row * WIDTH + column
    x32 = x.to(tl.float32)
    if HAS_RESIDUAL:
        x32 += tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        total = x32.to(dtype)
        tl.store(total_ptr + offsets, total, mask=mask)
        x32 = total.to(tl.float32)
    # Computed from the deviations, not from the mean square, which would lose the variance of a row with a large mean.
    mean = tl.sum(x32, axis=1, keep_dims=True) / WIDTH  # [ROWS, 1]
    centred = tl.where(is_column, x32 - mean, 0.0)
    variance = tl.sum(centred * centred, axis=1, keep_dims=True) / WIDTH
    weight = tl.load(weight_ptr + column, mask=is_column, other=0.0).to(tl.float32)  # [1, COLUMNS]
    out = centred * tl.rsqrt(variance + eps) * weight
    if HAS_BIAS:
        out += tl.load(bias_ptr + column, mask=is_column, other=0.0).to(tl.float32)
    tl.store(out_ptr + offsets, out.to(dtype), mask=mask)


def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    residual: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """See the package."""
    width = x.shape[-1]
    rows = x.reshape(-1, width)
    if rows.stride(-1) != 1:
        raise ValueError("the last dimension must be contiguous")
    if residual is not None and (residual.shape != x.shape or residual.dtype is not x.dtype):
        raise ValueError("the residual must have the shape and dtype of x")
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = torch.empty_like(out) if residual is not None else None
    num_rows = rows.shape[0]
    if num_rows > 0:
        tile = row_tile(width)
        layer_norm_kernel[(triton.cdiv(num_rows, tile.rows),)](
            rows,
            residual.contiguous() if residual is not None else out,
            weight,
            bias if bias is not None else weight,
            out,
            total if total is not None else out,
            num_rows,
            rows.stride(0),
            eps,
            WIDTH=width,
            HAS_RESIDUAL=residual is not None,
            HAS_BIAS=bias is not None,
            ROWS=tile.rows,
            COLUMNS=tile.columns,
            **launch_options(x.device),
            num_warps=tile.num_warps,
        )
    return out if total is None else (out, total)
