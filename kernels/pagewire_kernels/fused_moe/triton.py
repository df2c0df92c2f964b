"""fused_moe on a GPU: routing, the product with silu-and-mul, the other product, the sum.

Four launches for few tokens; for many, whose routing takes a launch and a memset more, six.
"""

from functools import cache

import torch
import triton
import triton.language as tl

from pagewire_kernels.fused_moe.gate import ClampedSwiglu
from pagewire_kernels.fused_moe.router import RouterSpec
from pagewire_kernels.fused_moe.triton_route import Routing, route
from pagewire_kernels.gpu.dependent_launch import launch_options, release_next, wait_for_previous
from pagewire_kernels.tuning.fused_moe import MoeConfig, moe_config

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

_SUM_COLUMNS = 1024
_GROUP_M = 8
"""Blocks of rows that share a tile of weights, one after the other, while it is in the L2 cache."""


@triton.jit
def _tile_of(num_blocks, num_columns, GROUP_M: tl.constexpr):
    """Returns the program's block of rows and tile of columns. GROUP_M blocks take a tile of columns one by one."""
    program = tl.program_id(0)
    group = program // (GROUP_M * num_columns)
    first = group * GROUP_M
    size = tl.minimum(num_blocks - first, GROUP_M)
    within = program % (GROUP_M * num_columns)
    return first + within % size, within // size


@triton.jit
def moe_up_kernel(
    x_ptr,
    gate_up_ptr,
    bias_ptr,
    out_ptr,
    pairs_ptr,
    block_experts_ptr,
    block_num_rows_ptr,
    num_blocks,
    stride_x,
    HIDDEN: tl.constexpr,
    SIZE: tl.constexpr,
    TOP_K: tl.constexpr,
    ALPHA: tl.constexpr,
    LIMIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (num_blocks * cdiv(SIZE, BLOCK_N),); one program makes BLOCK_N columns of silu(gate) * up for a block.

    LIMIT > 0: ClampedSwiglu in its place. bias_ptr: [num_experts, 2 * SIZE], or None.
    Rows of x are gathered by their pairs; rows of out, [num_blocks * BLOCK_M, SIZE], stand in the order of the blocks.
    """
    block, column_tile = _tile_of(num_blocks, tl.cdiv(SIZE, BLOCK_N), GROUP_M)
    wait_for_previous(PDL)
    num_rows = tl.load(block_num_rows_ptr + block)
    if num_rows <= 0:
        return
    expert = tl.load(block_experts_ptr + block).to(tl.int64)
    row = tl.arange(0, BLOCK_M)
    is_row = row < num_rows
    token = tl.load(pairs_ptr + block * BLOCK_M + row, mask=is_row, other=0).to(tl.int64) // TOP_K
    column = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    is_column = column < SIZE
    inner = tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + token[:, None] * stride_x + inner[None, :]
    gate_ptrs = gate_up_ptr + (expert * 2 * SIZE + column)[:, None] * HIDDEN + inner[None, :]
    gate = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    up = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, HIDDEN, BLOCK_K):
        is_inner = (start + inner < HIDDEN)[None, :]
        x = tl.load(x_ptrs + start, mask=is_row[:, None] & is_inner, other=0.0)  # [BLOCK_M, BLOCK_K]
        weight_mask = is_column[:, None] & is_inner
        gate_weight = tl.load(gate_ptrs + start, mask=weight_mask, other=0.0)  # [BLOCK_N, BLOCK_K]
        up_weight = tl.load(gate_ptrs + start + SIZE * HIDDEN, mask=weight_mask, other=0.0)
        gate = tl.dot(x, tl.trans(gate_weight), gate, input_precision="ieee")
        up = tl.dot(x, tl.trans(up_weight), up, input_precision="ieee")
    release_next(PDL)
    if bias_ptr is not None:
        biases_ptr = bias_ptr + expert * (2 * SIZE) + column
        gate += tl.load(biases_ptr, mask=is_column, other=0.0).to(tl.float32)[None, :]
        up += tl.load(biases_ptr + SIZE, mask=is_column, other=0.0).to(tl.float32)[None, :]
    if LIMIT > 0:
        gate = tl.minimum(gate, LIMIT)
        up = tl.minimum(tl.maximum(up, -LIMIT), LIMIT)
        out = gate * tl.sigmoid(gate * ALPHA) * (up + 1.0)
    else:
        out = gate * tl.sigmoid(gate) * up
    out_row = (block * BLOCK_M + row).to(tl.int64)
    out_ptrs = out_ptr + out_row[:, None] * SIZE + column[None, :]
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=is_row[:, None] & is_column[None, :])


@triton.jit
def moe_down_kernel(
    x_ptr,
    down_ptr,
    bias_ptr,
    out_ptr,
    weights_ptr,
    pairs_ptr,
    block_experts_ptr,
    block_num_rows_ptr,
    num_blocks,
    HIDDEN: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (num_blocks * cdiv(HIDDEN, BLOCK_N),); one program makes BLOCK_N columns of weight * down(x) for a block.

    Rows of x, [num_blocks * BLOCK_M, SIZE], stand in the order of the blocks; rows of out, [num_pairs, HIDDEN], in the
    order of the pairs. bias_ptr: [num_experts, HIDDEN], or None.
    """
    block, column_tile = _tile_of(num_blocks, tl.cdiv(HIDDEN, BLOCK_N), GROUP_M)
    wait_for_previous(PDL)
    num_rows = tl.load(block_num_rows_ptr + block)
    if num_rows <= 0:
        return
    expert = tl.load(block_experts_ptr + block).to(tl.int64)
    row = tl.arange(0, BLOCK_M)
    is_row = row < num_rows
    column = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    is_column = column < HIDDEN
    inner = tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + (block * BLOCK_M + row).to(tl.int64)[:, None] * SIZE + inner[None, :]
    weight_ptrs = down_ptr + (expert * HIDDEN + column)[:, None] * SIZE + inner[None, :]
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, SIZE, BLOCK_K):
        is_inner = (start + inner < SIZE)[None, :]
        x = tl.load(x_ptrs + start, mask=is_row[:, None] & is_inner, other=0.0)  # [BLOCK_M, BLOCK_K]
        weight = tl.load(weight_ptrs + start, mask=is_column[:, None] & is_inner, other=0.0)  # [BLOCK_N, BLOCK_K]
        total = tl.dot(x, tl.trans(weight), total, input_precision="ieee")
    release_next(PDL)
    if bias_ptr is not None:
        total += tl.load(bias_ptr + expert * HIDDEN + column, mask=is_column, other=0.0).to(tl.float32)[None, :]
    pair = tl.load(pairs_ptr + block * BLOCK_M + row, mask=is_row, other=0).to(tl.int64)
    total = total * tl.load(weights_ptr + pair, mask=is_row, other=0.0)[:, None]
    out_ptrs = out_ptr + pair[:, None] * HIDDEN + column[None, :]
    tl.store(out_ptrs, total.to(out_ptr.dtype.element_ty), mask=is_row[:, None] & is_column[None, :])


@triton.jit
def moe_sum_kernel(x_ptr, out_ptr, HIDDEN: tl.constexpr, TOP_K: tl.constexpr, COLUMNS: tl.constexpr, PDL: tl.constexpr):
    """Grid: (num_tokens, cdiv(HIDDEN, COLUMNS)); one program adds COLUMNS columns of a token's TOP_K rows."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = column < HIDDEN
    total = tl.zeros([COLUMNS], tl.float32)
    release_next(PDL)
    wait_for_previous(PDL)
    for place in tl.static_range(TOP_K):
        total += tl.load(x_ptr + (token * TOP_K + place) * HIDDEN + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + token * HIDDEN + column, total.to(out_ptr.dtype.element_ty), mask=mask)


def fused_moe(
    x: torch.Tensor,
    router_logits: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    router: RouterSpec,
    correction: torch.Tensor | None = None,
    biases: tuple[torch.Tensor, torch.Tensor] | None = None,
    clamp: ClampedSwiglu | None = None,
    config: MoeConfig | None = None,
) -> torch.Tensor:
    """See the package.

    Args:
        config: tile configuration; None: the tuning table's choice.
    """
    num_tokens, hidden = x.shape
    num_experts, top_k = len(gate_up), router.top_k
    if x.stride(1) != 1 or router_logits.stride(1) != 1:
        raise ValueError("rows of x and of router_logits must be contiguous")
    if not all(tensor.is_contiguous() for tensor in (gate_up, down, *(biases or ()))):
        raise ValueError("the experts' weights and biases must be contiguous")
    out = torch.empty((num_tokens, hidden), dtype=x.dtype, device=x.device)
    if num_tokens == 0:
        return out
    if config is None:
        rows_per_expert = triton.cdiv(num_tokens * top_k, num_experts)
        config = moe_config(_generation(x.device), x.element_size(), rows_per_expert)
    routing = route(router_logits, router, correction, config.block_m)
    # With one expert for each token there is nothing to add up.
    by_pair = out if top_k == 1 else torch.empty((num_tokens * top_k, hidden), dtype=x.dtype, device=x.device)
    _products(x, (gate_up, down), biases or (None, None), by_pair, routing, clamp, config)
    if top_k > 1:
        columns = min(_SUM_COLUMNS, triton.next_power_of_2(hidden))
        moe_sum_kernel[(num_tokens, triton.cdiv(hidden, columns))](
            by_pair, out, HIDDEN=hidden, TOP_K=top_k, COLUMNS=columns, **launch_options(x.device)
        )
    return out


def _products(
    x: torch.Tensor,
    weights: tuple[torch.Tensor, torch.Tensor],
    biases: tuple[torch.Tensor | None, torch.Tensor | None],
    by_pair: torch.Tensor,
    routing: Routing,
    clamp: ClampedSwiglu | None,
    config: MoeConfig,
) -> None:
    (gate_up, down), (up_bias, down_bias) = weights, biases
    hidden, size = x.shape[1], down.shape[2]
    num_blocks = len(routing.block_experts)
    middle = torch.empty((num_blocks * config.block_m, size), dtype=x.dtype, device=x.device)
    moe_up_kernel[(num_blocks * triton.cdiv(size, config.up_n),)](
        x,
        gate_up,
        up_bias,
        middle,
        routing.pairs,
        routing.block_experts,
        routing.block_num_rows,
        num_blocks,
        x.stride(0),
        HIDDEN=hidden,
        SIZE=size,
        TOP_K=routing.weights.shape[1],
        ALPHA=clamp.alpha if clamp else 0.0,
        LIMIT=clamp.limit if clamp else 0.0,
        BLOCK_M=config.block_m,
        BLOCK_N=config.up_n,
        BLOCK_K=config.up_k,
        GROUP_M=_GROUP_M,
        **launch_options(x.device),
        num_warps=config.up_warps,
        num_stages=config.up_stages,
    )
    moe_down_kernel[(num_blocks * triton.cdiv(hidden, config.down_n),)](
        middle,
        down,
        down_bias,
        by_pair,
        routing.weights,
        routing.pairs,
        routing.block_experts,
        routing.block_num_rows,
        num_blocks,
        HIDDEN=hidden,
        SIZE=size,
        BLOCK_M=config.block_m,
        BLOCK_N=config.down_n,
        BLOCK_K=config.down_k,
        GROUP_M=_GROUP_M,
        **launch_options(x.device),
        num_warps=config.down_warps,
        num_stages=config.down_stages,
    )


@cache
def _generation(device: torch.device) -> int:
    """Returns the compute capability times ten; 0 in the interpreter."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
