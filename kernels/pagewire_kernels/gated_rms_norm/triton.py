"""gated_rms_norm on a GPU: one pass over memory."""

import torch
import triton
import triton.language as tl

from pagewire_kernels.gpu.dependent_launch import launch_options, release_next, wait_for_previous
from pagewire_kernels.gpu.row_tile import row_tile

# mypy: disable-error-code="no-untyped-def, no-untyped-call"


@triton.jit(do_not_specialize=["num_rows"])
def gated_rms_norm_kernel(
    x_ptr,
    gate_ptr,
    weight_ptr,
    out_ptr,
    num_rows,
    stride_x,
    stride_gate,
    eps,
    NUM_GROUPS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    SHARED_WEIGHT: tl.constexpr,
    NORM_FIRST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (cdiv(num_rows, ROWS),); one program normalises ROWS groups, of num_rows in all: row r is group
    r % NUM_GROUPS of token r // NUM_GROUPS."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]  # [ROWS, 1]
    column = tl.arange(0, COLUMNS)[None, :]  # [1, COLUMNS]
    mask = (row < num_rows) & (column < GROUP_SIZE)
    token, group = row // NUM_GROUPS, row % NUM_GROUPS
    columns = group * GROUP_SIZE + column  # [ROWS, COLUMNS]
    release_next(PDL)
    wait_for_previous(PDL)
    x = tl.load(x_ptr + token * stride_x + columns, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + token * stride_gate + columns, mask=mask, other=0.0).to(tl.float32)
    if SHARED_WEIGHT:
        weight = tl.load(weight_ptr + column, mask=column < GROUP_SIZE, other=0.0).to(tl.float32)
    else:
        weight = tl.load(weight_ptr + columns, mask=mask, other=0.0).to(tl.float32)
    activated = gate * tl.sigmoid(gate)
    if not NORM_FIRST:
        x = x * activated
    mean_square = tl.sum(x * x, axis=1, keep_dims=True) / GROUP_SIZE  # [ROWS, 1]
    out = x * tl.rsqrt(mean_square + eps) * weight
    if NORM_FIRST:
        out = out * activated
    tl.store(out_ptr + row * GROUP_SIZE + column, out.to(out_ptr.dtype.element_ty), mask=mask)


def gated_rms_norm(
    x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, eps: float, group_size: int, norm_first: bool
) -> torch.Tensor:
    """See the package."""
    num_tokens, width = x.shape
    out = torch.empty((num_tokens, width), dtype=x.dtype, device=x.device)
    num_groups = width // group_size
    num_rows = num_tokens * num_groups
    if num_rows > 0:
        tile = row_tile(group_size)
        gated_rms_norm_kernel[(triton.cdiv(num_rows, tile.rows),)](
            x,
            gate,
            weight,
            out,
            num_rows,
            x.stride(0),
            gate.stride(0),
            eps,
            NUM_GROUPS=num_groups,
            GROUP_SIZE=group_size,
            SHARED_WEIGHT=weight.shape[0] == group_size,
            NORM_FIRST=norm_first,
            ROWS=tile.rows,
            COLUMNS=tile.columns,
            **launch_options(x.device),
            num_warps=tile.num_warps,
        )
    return out
