"""The gated delta rule of Qwen3-Next and Qwen3.5, decodes against a copy and prompts beside flash-linear-attention's.

Bytes of decodes are the states, read and written; operations of prompts are those of the recurrence itself.
"""

import importlib
import importlib.util
from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from pagewire_kernels.gated_delta_net import DeltaInputs, gated_delta_net

from gpu_parts.part import Bench, Part, Row
from gpu_parts.roofline import Call, row


def delta_inputs(bench: Bench, query_lens: list[int], num_decodes: int = 0) -> DeltaInputs:
    """Sequences whose states are written where they are read."""
    num_key_heads, num_heads, dim = (2, 4, 16) if bench.tiny else (16, 32, 128)
    num_tokens, num_seqs, device = sum(query_lens), len(query_lens), bench.device
    sizes = [num_key_heads * dim] * 2 + [num_heads * dim] * 2 + [num_heads] * 2
    projected = torch.randn(num_tokens, sum(sizes), dtype=bench.dtype, device=device)
    query, key, value, gate, beta, decay = projected.split_with_sizes(sizes, 1)
    slots = torch.arange(num_seqs, dtype=torch.int32, device=device)
    starts = torch.tensor([0, *query_lens], device=device).cumsum(0)
    return DeltaInputs(
        query=query.view(num_tokens, num_key_heads, dim),
        key=key.view(num_tokens, num_key_heads, dim),
        value=value.view(num_tokens, num_heads, dim),
        beta_logits=beta,
        decay_logits=decay,
        a_log=torch.zeros(num_heads, device=device),
        dt_bias=torch.zeros(num_heads, device=device),
        gate=gate.view(num_tokens, num_heads, dim),
        norm_weight=torch.ones(dim, dtype=bench.dtype, device=device),
        eps=1e-6,
        state=torch.zeros(num_seqs, num_heads, dim, dim, device=device),
        read_slots=slots,
        write_slots=slots.clone(),
        query_start_loc=starts.to(torch.int32),
        max_query_len=max(query_lens),
        num_decodes=num_decodes,
    )


def delta_rows(bench: Bench) -> Iterator[Row]:
    """Decodes of 1 to 256 sequences, and prompts of one sequence and of several."""
    for num_seqs in (1, 16, 64, bench.size(256, 4)):

        def decode(num_seqs: int = num_seqs) -> Call:
            return partial(gated_delta_net, delta_inputs(bench, [1] * num_seqs, num_seqs))

        state_bytes = 2 * delta_inputs(bench, [1]).state.nbytes * num_seqs
        yield row(bench, f"gated_delta_net, {num_seqs} decodes", decode, state_bytes)
    for num_seqs, query_len in ((1, bench.size(8192, 70)), (bench.size(8, 2), bench.size(1024, 40))):
        lens = [query_len] * num_seqs
        inputs = delta_inputs(bench, lens)
        # The state is multiplied by key and query, and the product of key and correction is added to it.
        num_flops = 6.0 * inputs.value.numel() * inputs.key_dim
        num_bytes = 4 * inputs.value.nbytes + 2 * inputs.state.nbytes
        name = f"{num_seqs} x {query_len} tokens"
        calls: dict[str, Call] = {"gated_delta_net": partial(gated_delta_net, inputs)}
        if importlib.util.find_spec("fla") is not None:
            calls["flash-linear-attention's rule alone"] = of_fla(inputs)
        for kind, call in calls.items():
            yield row(bench, f"{kind}, {name}", partial(_itself, call), num_bytes, num_flops)


def of_fla(inputs: DeltaInputs) -> Call:
    """The same prompts by flash-linear-attention, whose gates are computed before, without the norm behind them."""
    chunk_rule = importlib.import_module("fla.ops.gated_delta_rule").chunk_gated_delta_rule
    decay = -inputs.a_log.exp() * F.softplus(inputs.decay_logits.float() + inputs.dt_bias)
    beta = torch.sigmoid(inputs.beta_logits.float()).to(inputs.query.dtype)
    query, key, value = (part.contiguous()[None] for part in (inputs.query, inputs.key, inputs.value))
    return partial(
        chunk_rule,
        query,
        key,
        value,
        decay[None],
        beta[None],
        initial_state=inputs.state.clone(),
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
        cu_seqlens=inputs.query_start_loc.long(),
    )


def _itself(call: Call) -> Call:
    # All calls share their inputs, which are larger than any cache.
    return call


def _all(bench: Bench) -> list[Row]:
    return list(delta_rows(bench))


PARTS = (Part("kernels:delta", _all),)
