"""The definition of sample and gather_logprobs.

The stages of a row, in vLLM's order:
- mask, allowed tokens: tokens that the row's mask or the slot's allowed tokens leave out have logits of minus infinity;
- bad words: so has the last token of a bad word if the tokens before it, of the output alone, are the word's others;
- bias: adds the row's biases to the logits;
- stop mask: while a sequence is shorter than min_len, its stop tokens have logits of minus infinity;
- penalties: the repetition penalty divides positive and multiplies negative logits of all its tokens, then the
  frequency penalty, times how often the output has the token, and the presence penalty, if it has it, are subtracted;
- greedy rows take the most probable token now, the others divide by the temperature, filter and draw.

Noise: Philox-4x32-10 with key = (seed & 0xffffffff, seed >> 32) and counter = (vocab_index // 4,
position & 0xffffffff, position >> 32, 0), lane vocab_index % 4. Of its 32-bit output x,
u = ((x >> 9) + 0.5) * 2**-23 lies strictly between 0 and 1, and -log(-log(u)) is Gumbel noise. The token with the
largest logit / temperature + noise is a draw from the softmax; noise depends on nothing but seed, position and token.

Filters keep, of the softmax of logit / temperature:
- min_p: tokens at least min_p times as probable as the most probable;
- top_k: of those, tokens with fewer than top_k strictly more probable ones (equals stay together);
- top_p: of those, tokens whose strictly more probable ones have less than top_p of the remaining mass.

Ties are won by the lowest index. A row whose logits hold NaN or plus infinity, or nothing above minus infinity once
what may not be sampled has been taken, yields no token: -1.
"""

import torch

from pagewire_kernels.sample.batch import SamplingBatch
from pagewire_kernels.sample.columns import BITS, GREEDY_BELOW, Stage

_MASK = 0xFFFFFFFF


def sample(logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    """Samples each row."""
    is_sound = (logits < float("inf")).all(-1)
    logits = take_tokens(logits, batch)
    if Stage.BIAS in batch.stages:
        logits = add_biases(logits, batch)
    if Stage.STOP_MASK in batch.stages:
        logits = mask_stop_tokens(logits, batch)
    is_sound &= (logits > float("-inf")).any(-1)
    return torch.where(is_sound, _choose(logits.masked_fill(~is_sound[:, None], 0.0), batch), -1)


def _choose(logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    if Stage.PENALTIES in batch.stages:
        logits = apply_penalties(logits, batch)
    greedy = logits.argmax(dim=-1)
    if Stage.DRAW not in batch.stages:
        return greedy
    temperature = batch.parameter("temperature")
    is_greedy = temperature < GREEDY_BELOW
    scaled = logits / torch.where(is_greedy, 1.0, temperature)[:, None]
    noise = gumbel_noise(batch.parameter("seed"), batch.num_tokens(), logits.shape[1])
    return torch.where(is_greedy, greedy, (apply_filters(scaled, batch) + noise).argmax(dim=-1))


def take_tokens(logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    """Sets the logits of tokens that masks, allowed tokens and bad words take to minus infinity."""
    if Stage.MASK in batch.stages and batch.masks is not None:
        # A row of zeros for the rows that have none.
        bits = torch.nn.functional.pad(batch.masks.bits, (0, 0, 0, 1))
        logits = keep_allowed(logits, bits[batch.masks.rows], batch.masks.rows >= 0)
    if Stage.ALLOWED_TOKENS in batch.stages:
        bits = batch.columns.allowed[batch.slots]
        logits = keep_allowed(logits, bits, batch.parameter("allowed_token_ids") > 0)
    return ban_bad_words(logits, batch) if Stage.BAD_WORDS in batch.stages else logits


def keep_allowed(logits: torch.Tensor, bits: torch.Tensor, has_mask: torch.Tensor) -> torch.Tensor:
    """Takes the tokens whose bits are 0 from the rows that have a mask; bits: [num_rows, num_words] int32."""
    token = torch.arange(logits.shape[1], device=logits.device)
    is_allowed = (bits[:, token // BITS] >> (token % BITS).int()) & 1 == 1
    return logits.masked_fill(has_mask[:, None] & ~is_allowed, float("-inf"))


def ban_bad_words(logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    """Takes the last token of each bad word whose other tokens the output ends with."""
    logits = logits.clone()
    lens = torch.stack([batch.slots, batch.parameter("num_prompt_tokens"), batch.num_tokens()], dim=1).tolist()
    for row, (slot, num_prompt_tokens, num_tokens) in enumerate(lens):
        for *others, last in batch.columns.bad_words_of(slot):
            begin = num_tokens - len(others)
            if begin >= num_prompt_tokens and batch.sequences.token_ids[slot, begin:num_tokens].tolist() == others:
                logits[row, last] = float("-inf")
    return logits


def add_biases(logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    """Adds each row's biases to the logits of their tokens."""
    logits = logits.clone()
    for row, slot in enumerate(batch.slots.tolist()):
        token_ids, biases = batch.columns.entries("logit_bias", slot)
        logits[row, token_ids.long()] += biases
    return logits


def mask_stop_tokens(logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    """Takes the stop tokens of rows that are shorter than their min_len."""
    vocab_size = logits.shape[1]
    masks = batch.num_tokens() < batch.parameter("min_len")
    ids = torch.where(masks[:, None], batch.sequences.stop_token_ids[batch.slots].long(), -1)
    banned = torch.zeros(len(ids), vocab_size + 1, dtype=torch.bool, device=ids.device)
    banned.scatter_(1, torch.where((ids >= 0) & (ids < vocab_size), ids, vocab_size), True)
    return logits.masked_fill(banned[:, :-1], float("-inf"))


def apply_penalties(logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    """Repetition penalty over prompt and output, then frequency and presence penalty over the output."""
    num_rows, vocab_size = logits.shape
    tokens = batch.sequences.token_ids[batch.slots].long()
    place = torch.arange(tokens.shape[1], device=tokens.device)
    repetition, frequency, presence = (
        batch.parameter(f"{name}_penalty")[:, None] for name in ("repetition", "frequency", "presence")
    )
    penalises = (repetition != 1) | (frequency != 0) | (presence != 0)
    known = penalises & (place < batch.num_tokens()[:, None])
    generated = known & (place >= batch.parameter("num_prompt_tokens")[:, None])
    tokens = torch.where(known, tokens, 0)
    counts = torch.zeros(2, num_rows, vocab_size, device=logits.device)
    counts[0].scatter_add_(1, tokens, known.float())
    counts[1].scatter_add_(1, tokens, generated.float())
    repeated = torch.where(logits > 0, logits / repetition, logits * repetition)
    logits = torch.where(counts[0] > 0, repeated, logits)
    return logits - frequency * counts[1] - presence * (counts[1] > 0)


def apply_filters(scaled: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    """Sets what min_p, top_k and top_p drop to minus infinity."""
    vocab_size = scaled.shape[1]
    min_p, top_k, top_p = (batch.parameter(name) for name in ("min_p", "top_k", "top_p"))
    floor = scaled.amax(-1, keepdim=True) + min_p.log()[:, None]
    scaled = scaled.masked_fill(scaled < floor, float("-inf"))
    ordered = scaled.sort(-1, descending=True).values
    top_k = torch.where((top_k <= 0) | (top_k > vocab_size), vocab_size, top_k)
    scaled = scaled.masked_fill(scaled < ordered.gather(1, top_k[:, None] - 1), float("-inf"))
    ordered = scaled.sort(-1, descending=True).values
    mass = ordered.double().softmax(-1).cumsum(-1)
    # A token is kept if its first equal is: the mass before that one is the mass of the strictly more probable tokens.
    first_equal = torch.searchsorted(-ordered, -ordered)
    mass_before = (mass - ordered.double().softmax(-1)).gather(1, first_equal)
    kept = mass_before < top_p.double()[:, None]
    kept |= (top_p >= 1)[:, None]
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


def taken(logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    """Logits of minus infinity for all tokens that a row may not sample."""
    return mask_stop_tokens(take_tokens(logits, batch), batch)


def most_probable(logits: torch.Tensor, batch: SamplingBatch, num_top: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The most probable tokens that rows may sample, with log-probabilities of the whole distribution."""
    logits = logits.float()
    token_ids = taken(logits, batch).sort(dim=-1, descending=True, stable=True).indices[:, :num_top]
    return token_ids, taken(logits.log_softmax(dim=-1), batch).gather(1, token_ids)


def gather_logprobs(
    logits: torch.Tensor, sampled: torch.Tensor, num_top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-softmax of each row: the sampled token's, its rank, and the num_top largest."""
    logprobs = logits.float().log_softmax(dim=-1)
    chosen = logits.gather(1, sampled[:, None])
    rank = (logits > chosen).sum(-1) + 1
    top_ids = logits.sort(dim=-1, descending=True, stable=True).indices[:, :num_top]
    return logprobs.gather(1, sampled[:, None]).squeeze(1), rank, top_ids, logprobs.gather(1, top_ids)
