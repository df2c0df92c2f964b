"""The definition of paged_attention, on the NHD layout."""

import torch


def paged_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_tables: torch.Tensor,
    query_start_loc: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
    max_query_len: int,
    max_seq_len: int,
    sliding_window: int = 0,
    logit_softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    num_decodes: int = 0,
) -> torch.Tensor:
    """softmax(scale * q k) v for each sequence by itself, in float32; in float64 if the query is float64."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    block_size, num_kv_heads = key_cache.shape[1:3]
    group_size = query.shape[1] // num_kv_heads
    out = torch.zeros_like(query, memory_format=torch.contiguous_format)
    for row, seq_len in enumerate(seq_lens.tolist()):
        start, end = query_start_loc[row : row + 2].tolist()
        if seq_len == 0 or start == end:
            continue
        blocks = block_tables[row, : -(-seq_len // block_size)].long()
        # [num_heads, seq_len, head_dim]
        keys, values = (
            cache[blocks].flatten(0, 1)[:seq_len].transpose(0, 1).repeat_interleave(group_size, dim=0).to(dtype)
            for cache in (key_cache, value_cache)
        )
        scores = query[start:end].transpose(0, 1).to(dtype) @ keys.transpose(1, 2) * scale
        if logit_softcap:
            scores = logit_softcap * torch.tanh(scores / logit_softcap)
        # distance[i, j]: how far key j lies behind query i
        query_positions = torch.arange(seq_len - (end - start), seq_len, device=query.device)
        distance = query_positions[:, None] - torch.arange(seq_len, device=query.device)
        if alibi_slopes is not None:
            scores = scores - alibi_slopes.to(dtype)[:, None, None] * distance
        visible = distance >= 0
        if sliding_window:
            visible &= distance < sliding_window
        scores = scores.masked_fill(~visible, float("-inf"))
        if sinks is not None:
            scores = torch.cat([scores, sinks.to(dtype)[:, None, None].expand(-1, end - start, 1)], dim=2)
        attention = scores.softmax(dim=-1)[:, :, :seq_len] @ values
        out[start:end] = attention.transpose(0, 1).to(query.dtype)
    return out
