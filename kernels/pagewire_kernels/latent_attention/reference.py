"""The definition of latent_attention."""

import torch

from pagewire_kernels.latent_attention.inputs import LatentInputs


def latent_attention(inputs: LatentInputs) -> torch.Tensor:
    """softmax(scale * (q c + q_rope k_rope)) c for each sequence and head by itself, where c are the latents, in
    float32; in float64 if the query is float64."""
    query = torch.cat((inputs.query_latent, inputs.query_rope), dim=2)
    dtype = torch.promote_types(query.dtype, torch.float32)
    out = torch.zeros(inputs.query_latent.shape, dtype=query.dtype, device=query.device)
    for row, seq_len in enumerate(inputs.seq_lens.tolist()):
        start, end = inputs.query_start_loc[row : row + 2].tolist()
        if seq_len == 0 or start == end:
            continue
        blocks = inputs.block_tables[row, : -(-seq_len // inputs.block_size)].long()
        keys = inputs.cache[blocks].flatten(0, 1)[:seq_len].to(dtype)  # [seq_len, latent_dim + rope_dim]
        scores = query[start:end].transpose(0, 1).to(dtype) @ keys.t() * inputs.scale  # [num_heads, queries, seq_len]
        positions = torch.arange(seq_len - (end - start), seq_len, device=query.device)
        visible = positions[:, None] >= torch.arange(seq_len, device=query.device)
        weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
        out[start:end] = (weights @ keys[:, : inputs.latent_dim]).transpose(0, 1).to(query.dtype)
    return out
