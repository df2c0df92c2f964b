"""fused_moe on a GPU: routing, the product with silu-and-mul, the other product, the sum.

Four launches for few tokens; for many, whose routing takes a launch and a memset more, six.
"""

from dataclasses import replace
from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from pagewire_kernels.fused_moe.gate import ClampedSwiglu, Gate, num_parts
from pagewire_kernels.fused_moe.router import RouterSpec
from pagewire_kernels.fused_moe.triton_route import Routing, route
from pagewire_kernels.gpu.dependent_launch import launch_options, release_next, wait_for_previous
from pagewire_kernels.tuning.fused_moe import MoeConfig, moe_config

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

_SUM_COLUMNS = 1024
_SQRT_8_OVER_PI = tl.constexpr(1.5957691216057308)
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
    weights_ptr,
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
    IS_GELU: tl.constexpr,
    IS_GATED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (num_blocks * cdiv(SIZE, BLOCK_N),); one program makes BLOCK_N columns of act(gate) * up for a block.

    act is SiLU, with IS_GELU the tanh form of GELU; LIMIT > 0: ClampedSwiglu in its place; without IS_GATED
    there is one matrix, up, and out is relu(up)**2. bias_ptr: [num_experts, 2 * SIZE], [num_experts, SIZE] without a
    gate, or None. weights_ptr: of the pairs, [num_pairs], which multiply the rows of x; None: nothing does.
    Rows of x are gathered by their pairs; rows of out, [num_blocks * BLOCK_M, SIZE], stand in the order of the blocks.
    """
    NUM_ROWS: tl.constexpr = (2 if IS_GATED else 1) * SIZE
    block, column_tile = _tile_of(num_blocks, tl.cdiv(SIZE, BLOCK_N), GROUP_M)
    wait_for_previous(PDL)
    num_rows = tl.load(block_num_rows_ptr + block)
    if num_rows <= 0:
        return
    expert = tl.load(block_experts_ptr + block).to(tl.int64)
    row = tl.arange(0, BLOCK_M)
    is_row = row < num_rows
    pair = tl.load(pairs_ptr + block * BLOCK_M + row, mask=is_row, other=0).to(tl.int64)
    token = pair // TOP_K
    column = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    is_column = column < SIZE
    inner = tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + token[:, None] * stride_x + inner[None, :]
    gate_ptrs = gate_up_ptr + (expert * NUM_ROWS + column)[:, None] * HIDDEN + inner[None, :]
    gate = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    up = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, HIDDEN, BLOCK_K):
        is_inner = (start + inner < HIDDEN)[None, :]
        x = tl.load(x_ptrs + start, mask=is_row[:, None] & is_inner, other=0.0)  # [BLOCK_M, BLOCK_K]
        weight_mask = is_column[:, None] & is_inner
        gate_weight = tl.load(gate_ptrs + start, mask=weight_mask, other=0.0)  # [BLOCK_N, BLOCK_K]
        if IS_GATED:
            up_weight = tl.load(gate_ptrs + start + SIZE * HIDDEN, mask=weight_mask, other=0.0)
        gate = tl.dot(x, tl.trans(gate_weight), gate, input_precision="ieee")
        if IS_GATED:
            up = tl.dot(x, tl.trans(up_weight), up, input_precision="ieee")
    release_next(PDL)
    if weights_ptr is not None:
        # A factor of the rows is one of the products.
        weight = tl.load(weights_ptr + pair, mask=is_row, other=0.0)[:, None]
        gate *= weight
        up *= weight
    if bias_ptr is not None:
        biases_ptr = bias_ptr + expert * NUM_ROWS + column
        gate += tl.load(biases_ptr, mask=is_column, other=0.0).to(tl.float32)[None, :]
        if IS_GATED:
            up += tl.load(biases_ptr + SIZE, mask=is_column, other=0.0).to(tl.float32)[None, :]
    if not IS_GATED:
        gate = tl.maximum(gate, 0.0)
        out = gate * gate
    elif LIMIT > 0:
        gate = tl.minimum(gate, LIMIT)
        up = tl.minimum(tl.maximum(up, -LIMIT), LIMIT)
        out = gate * tl.sigmoid(gate * ALPHA) * (up + 1.0)
    elif IS_GELU:
        # 0.5 (1 + tanh(y)) = sigmoid(2 y)
        out = gate * tl.sigmoid(gate * (1.0 + 0.044715 * gate * gate) * _SQRT_8_OVER_PI) * up
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
    scales_ptr,
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
    order of the pairs. bias_ptr: [num_experts, HIDDEN], or None. weights_ptr: of the pairs, [num_pairs]; None: nothing
    multiplies the rows. scales_ptr: [num_experts], which multiply the weights, or None.
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
    if weights_ptr is not None:
        total = total * tl.load(weights_ptr + pair, mask=is_row, other=0.0)[:, None]
    if scales_ptr is not None:
        total = total * tl.load(scales_ptr + expert).to(tl.float32)
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
    gate: Gate = "silu",
    scales: torch.Tensor | None = None,
    first_expert: int = 0,
    config: MoeConfig | None = None,
) -> torch.Tensor:
    """See the package.

    Args:
        config: tile configuration; None: the tuning table's choice.
    """
    num_tokens, hidden = x.shape
    num_experts, top_k = router_logits.shape[1], router.top_k
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
    if scales is not None and router.weighs_inputs:
        raise ValueError("scales multiply the weights of outputs; the router weighs inputs")
    routing = route(router_logits, router, correction, config.block_m)
    # With one expert for each token there is nothing to add up.
    by_pair = out if top_k == 1 else torch.empty((num_tokens * top_k, hidden), dtype=x.dtype, device=x.device)
    if len(gate_up) < num_experts:
        routing = _held(routing, first_expert, len(gate_up))
        scales = None if scales is None else scales[first_expert:]
        by_pair.zero_()
    up_bias, down_bias = biases or (None, None)
    experts = _Experts(gate_up, down, up_bias, down_bias, gate, scales)
    _products(x, experts, by_pair, routing, router.weighs_inputs, config)
    if top_k > 1:
        columns = min(_SUM_COLUMNS, triton.next_power_of_2(hidden))
        moe_sum_kernel[(num_tokens, triton.cdiv(hidden, columns))](
            by_pair, out, HIDDEN=hidden, TOP_K=top_k, COLUMNS=columns, **launch_options(x.device)
        )
    return out


def _held(routing: Routing, first_expert: int, num_held: int) -> Routing:
    """The same with experts counted from first_expert on, and without rows of those beyond num_held."""
    experts = routing.block_experts - first_expert
    is_held = (experts >= 0) & (experts < num_held)
    return replace(
        routing,
        block_experts=torch.where(is_held, experts, 0),
        block_num_rows=torch.where(is_held, routing.block_num_rows, 0),
    )


class _Experts(NamedTuple):
    """The experts as fused_moe is given them."""

    gate_up: torch.Tensor
    down: torch.Tensor
    up_bias: torch.Tensor | None
    down_bias: torch.Tensor | None
    gate: Gate
    scales: torch.Tensor | None


def _products(
    x: torch.Tensor,
    experts: _Experts,
    by_pair: torch.Tensor,
    routing: Routing,
    weighs_inputs: bool,
    config: MoeConfig,
) -> None:
    hidden, size = x.shape[1], experts.down.shape[2]
    clamp = experts.gate if isinstance(experts.gate, ClampedSwiglu) else None
    num_blocks = len(routing.block_experts)
    middle = torch.empty((num_blocks * config.block_m, size), dtype=x.dtype, device=x.device)
    moe_up_kernel[(num_blocks * triton.cdiv(size, config.up_n),)](
        x,
        experts.gate_up,
        experts.up_bias,
        routing.weights if weighs_inputs else None,
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
        IS_GELU=experts.gate == "gelu_tanh",
        IS_GATED=num_parts(experts.gate) == 2,
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
        experts.down,
        experts.down_bias,
        by_pair,
        None if weighs_inputs else routing.weights,
        experts.scales,
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
