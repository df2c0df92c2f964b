"""The definition of sample and gather_logprobs.

Noise: Philox-4x32-10 with key = (seed & 0xffffffff, seed >> 32) and counter = (vocab_index // 4,
position & 0xffffffff, position >> 32, 0), lane vocab_index % 4. Of its 32-bit output x,
u = ((x >> 9) + 0.5) * 2**-23 lies strictly between 0 and 1, and -log(-log(u)) is Gumbel noise. The token with the
largest logit / temperature + noise is a draw from the softmax; noise depends on nothing but seed, position and token.

Filters keep, of the softmax of logit / temperature:
- min_p: tokens at least min_p times as probable as the most probable;
- top_k: of those, tokens with fewer than top_k strictly more probable ones (equals stay together);
- top_p: of those, tokens whose strictly more probable ones have less than top_p of the remaining mass.

Ties are won by the lowest index. A row that holds NaN or plus infinity, or nothing above minus infinity once its stop
tokens are masked, yields no token: -1.
"""

import torch

from pagewire_kernels.sample.batch import GREEDY_BELOW, SamplingBatch

_MASK = 0xFFFFFFFF


def sample(logits: torch.Tensor, params: SamplingBatch) -> torch.Tensor:
    """Samples each row."""
    vocab_size = logits.shape[1]
    is_sound = (logits < float("inf")).all(-1)
    if params.any_stop_mask:
        ids = torch.where(params.mask_stop[:, None], params.stop_token_ids.long(), -1)
        banned = torch.zeros(len(ids), vocab_size + 1, dtype=torch.bool, device=ids.device)
        banned.scatter_(1, torch.where((ids >= 0) & (ids < vocab_size), ids, vocab_size), True)
        logits = logits.masked_fill(banned[:, :-1], float("-inf"))
    is_sound &= (logits > float("-inf")).any(-1)
    return torch.where(is_sound, _choose(logits.masked_fill(~is_sound[:, None], 0.0), params), -1)


def _choose(logits: torch.Tensor, params: SamplingBatch) -> torch.Tensor:
    vocab_size = logits.shape[1]
    if params.any_penalties:
        logits = apply_penalties(logits, params)
    greedy = logits.argmax(dim=-1)
    if params.all_greedy:
        return greedy
    is_greedy = params.temperature < GREEDY_BELOW
    scaled = logits / torch.where(is_greedy, 1.0, params.temperature)[:, None]
    noisy = apply_filters(scaled, params) + gumbel_noise(params.seeds, params.positions, vocab_size)
    return torch.where(is_greedy, greedy, noisy.argmax(dim=-1))


def apply_penalties(logits: torch.Tensor, params: SamplingBatch) -> torch.Tensor:
    """Repetition penalty over prompt and output, then frequency and presence penalty over the output."""
    num_rows, vocab_size = logits.shape
    tokens = params.token_ids[params.slots].long()
    place = torch.arange(tokens.shape[1], device=tokens.device)
    known = place < params.num_tokens[:, None]
    generated = known & (place >= params.num_prompt_tokens[:, None])
    tokens = torch.where(known, tokens, 0)
    counts = torch.zeros(2, num_rows, vocab_size, device=logits.device)
    counts[0].scatter_add_(1, tokens, known.float())
    counts[1].scatter_add_(1, tokens, generated.float())
    repetition = params.repetition_penalty[:, None]
    repeated = torch.where(logits > 0, logits / repetition, logits * repetition)
    logits = torch.where(counts[0] > 0, repeated, logits)
    logits = logits - params.frequency_penalty[:, None] * counts[1]
    return logits - params.presence_penalty[:, None] * (counts[1] > 0)


def apply_filters(scaled: torch.Tensor, params: SamplingBatch) -> torch.Tensor:
    """Sets what min_p, top_k and top_p drop to minus infinity."""
    vocab_size = scaled.shape[1]
    floor = scaled.amax(-1, keepdim=True) + params.min_p.log()[:, None]
    scaled = scaled.masked_fill(scaled < floor, float("-inf"))
    ordered = scaled.sort(-1, descending=True).values
    top_k = torch.where((params.top_k <= 0) | (params.top_k > vocab_size), vocab_size, params.top_k).long()
    scaled = scaled.masked_fill(scaled < ordered.gather(1, top_k[:, None] - 1), float("-inf"))
    ordered = scaled.sort(-1, descending=True).values
    mass = ordered.double().softmax(-1).cumsum(-1)
    # A token is kept if its first equal is: the mass before that one is the mass of the strictly more probable tokens.
    first_equal = torch.searchsorted(-ordered, -ordered)
    mass_before = (mass - ordered.double().softmax(-1)).gather(1, first_equal)
    kept = mass_before < params.top_p.double()[:, None]
    kept |= (params.top_p >= 1)[:, None]
    smallest = torch.where(kept, ordered, float("inf")).amin(-1, keepdim=True)
    return scaled.masked_fill(scaled < smallest, float("-inf"))


def gumbel_noise(seeds: torch.Tensor, positions: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """[num_rows, vocab_size] float32 Gumbel noise."""
    lanes = philox(seeds, positions, -(-vocab_size // 4))
    uniform = ((lanes >> 9).float() + 0.5) * 2.0**-23
    return -torch.log(-torch.log(uniform))[:, :vocab_size]


def philox(seeds: torch.Tensor, positions: torch.Tensor, num_counters: int) -> torch.Tensor:
    """Philox-4x32-10 (Salmon et al., SC 2011): [num_rows, 4 * num_counters] 32-bit words in int64."""
    key = [(seeds & _MASK)[:, None], ((seeds >> 32) & _MASK)[:, None]]
    c0 = torch.arange(num_counters, device=seeds.device).expand(len(seeds), num_counters)
    c1 = (positions & _MASK)[:, None].expand_as(c0)
    c2 = ((positions >> 32) & _MASK)[:, None].expand_as(c0)
    c3 = torch.zeros_like(c0)
    for _ in range(10):
        high0, low0 = _multiply(0xD2511F53, c0)
        high1, low1 = _multiply(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ key[0], low1, high0 ^ c3 ^ key[1], low0
        key = [(key[0] + 0x9E3779B9) & _MASK, (key[1] + 0xBB67AE85) & _MASK]
    return torch.stack([c0, c1, c2, c3], dim=-1).flatten(1)


def _multiply(constant: int, words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low 32 bits of constant * words, by 16-bit halves: int64 has no room for the whole product."""
    low_product = (constant & 0xFFFF) * words
    high_product = (constant >> 16) * words + (low_product >> 16)
    return high_product >> 16, ((high_product & 0xFFFF) << 16) | (low_product & 0xFFFF)


def gather_logprobs(
    logits: torch.Tensor, sampled: torch.Tensor, num_top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-softmax of each row: the sampled token's, its rank, and the num_top largest."""
    logprobs = logits.float().log_softmax(dim=-1)
    chosen = logits.gather(1, sampled[:, None])
    rank = (logits > chosen).sum(-1) + 1
    top_ids = logits.sort(dim=-1, descending=True, stable=True).indices[:, :num_top]
    return logprobs.gather(1, sampled[:, None]).squeeze(1), rank, top_ids, logprobs.gather(1, top_ids)
