"""The definition of paged_attention, on the NHD layout."""

import torch

from pagewire_kernels.paged_attention.inputs import AttentionInputs


def paged_attention(inputs: AttentionInputs) -> torch.Tensor:
    """softmax(scale * q k) v for each sequence by itself, in float32; in float64 if the query is float64."""
    query, key_cache, value_cache = inputs.query, inputs.key_cache, inputs.value_cache
    dtype = torch.promote_types(query.dtype, torch.float32)
    block_size, num_kv_heads = key_cache.shape[1:3]
    group_size = query.shape[1] // num_kv_heads
    out = torch.zeros_like(query, memory_format=torch.contiguous_format)
    for row, seq_len in enumerate(inputs.seq_lens.tolist()):
        start, end = inputs.query_start_loc[row : row + 2].tolist()
        if seq_len == 0 or start == end:
            continue
        blocks = inputs.block_tables[row, : -(-seq_len // block_size)].long()
        # [num_heads, seq_len, head_dim]
        keys, values = (
            cache[blocks].flatten(0, 1)[:seq_len].transpose(0, 1).repeat_interleave(group_size, dim=0).to(dtype)
            for cache in (key_cache, value_cache)
        )
        scores = query[start:end].transpose(0, 1).to(dtype) @ keys.transpose(1, 2) * inputs.scale
        if inputs.logit_softcap:
            scores = inputs.logit_softcap * torch.tanh(scores / inputs.logit_softcap)
        # distance[i, j]: how far key j lies behind query i
        query_positions = torch.arange(seq_len - (end - start), seq_len, device=query.device)
        distance = query_positions[:, None] - torch.arange(seq_len, device=query.device)
        if inputs.alibi_slopes is not None:
            scores = scores - inputs.alibi_slopes.to(dtype)[:, None, None] * distance
        visible = distance >= 0
        if inputs.sliding_window:
            visible &= distance < inputs.sliding_window
        scores = scores.masked_fill(~visible, float("-inf"))
        if inputs.sinks is not None:
            scores = torch.cat([scores, inputs.sinks.to(dtype)[:, None, None].expand(-1, end - start, 1)], dim=2)
        attention = scores.softmax(dim=-1)[:, :, :seq_len] @ values
        out[start:end] = attention.transpose(0, 1).to(query.dtype)
    return out
