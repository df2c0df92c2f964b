"""rms_norm on a GPU: one pass over memory, with or without the residual addition."""

import torch
import triton
import triton.language as tl

from pagewire_kernels.gpu.dependent_launch import launch_options, release_next, wait_for_previous
from pagewire_kernels.gpu.row_tile import row_tile

# mypy: disable-error-code="no-untyped-def, no-untyped-call"


@triton.jit(do_not_specialize=["num_rows"])
def rms_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    out_ptr,
    total_ptr,
    num_rows,
    num_inner,
    stride_outer,
    stride_inner,
    eps,
    WIDTH: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (cdiv(num_rows, ROWS),); one program normalises ROWS rows of WIDTH elements.

    Row r of x starts at r // num_inner * stride_outer + r % num_inner * stride_inner; all else is contiguous.
    """
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]  # [ROWS, 1]
    column = tl.arange(0, COLUMNS)[None, :]  # [1, COLUMNS]
    mask = (row < num_rows) & (column < WIDTH)
    x_offsets = row // num_inner * stride_outer + row % num_inner * stride_inner + column
    release_next(PDL)
    wait_for_previous(PDL)
    x = tl.load(x_ptr + x_offsets, mask=mask, other=0.0)  # [ROWS, COLUMNS]
    dtype = x.dtype
    offsets = row * WIDTH + column
    x32 = x.to(tl.float32)
    if HAS_RESIDUAL:
        x32 += tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        total = x32.to(dtype)
        tl.store(total_ptr + offsets, total, mask=mask)
        x32 = total.to(tl.float32)
    weight = tl.load(weight_ptr + column, mask=column < WIDTH, other=0.0).to(tl.float32)  # [1, COLUMNS]
    mean_square = tl.sum(x32 * x32, axis=1, keep_dims=True) / WIDTH  # [ROWS, 1]
    normalised = x32 * tl.rsqrt(mean_square + eps)
    if weight_ptr.dtype.element_ty == dtype:
        # Rounded before the weight is applied, as the reference does.
        normalised = normalised.to(dtype).to(tl.float32)
    tl.store(out_ptr + offsets, (normalised * weight).to(dtype), mask=mask)


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """See the package; x has two or three dimensions, or is contiguous."""
    rows = x.flatten(0, -2) if x.dim() > 3 else x
    if rows.stride(-1) != 1 or weight.stride(0) != 1:
        raise ValueError("the last dimension must be contiguous")
    if residual is not None and (residual.shape != x.shape or residual.dtype is not x.dtype):
        raise ValueError("the residual must have the shape and dtype of x")
    width = x.shape[-1]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = torch.empty_like(out) if residual is not None else None
    num_rows = out.numel() // width
    if num_rows > 0:
        tile = row_tile(width)
        rms_norm_kernel[(triton.cdiv(num_rows, tile.rows),)](
            rows,
            residual.contiguous() if residual is not None else out,
            weight,
            out,
            total if total is not None else out,
            num_rows,
            rows.shape[1] if rows.dim() == 3 else 1,
            rows.stride(0) if rows.dim() > 1 else width,
            rows.stride(1) if rows.dim() == 3 else 0,
            eps,
            WIDTH=width,
            HAS_RESIDUAL=residual is not None,
            ROWS=tile.rows,
            COLUMNS=tile.columns,
            **launch_options(x.device),
            num_warps=tile.num_warps,
        )
    return out if total is None else (out, total)
