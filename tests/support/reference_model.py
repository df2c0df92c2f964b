"""The greedy output of a model in transformers, and the rule by which another output counts as equal.

Logits of two correct implementations differ in their last bits, so that a choice between two tokens that are all but
equally good may fall either way. Such a difference is accepted where the reference itself would have chosen the other
token, had that token's logit been near_tie higher; it is counted, and nothing after it is compared.
"""

from dataclasses import dataclass, field

import torch
import transformers
from pagewire.v1.inference_pb2 import SamplingParams
from pagewire_common.sampling_params import with_defaults
from pagewire_kernels.sample import reference
from pagewire_kernels.sample.columns import FLOATS
from pagewire_router.request import Request
from pagewire_router.scheduling.sequence import sequence_seed
from sampling_rows import sampling_batch

NEAR_TIE = 1e-4


@dataclass
class Expected:
    """The correct greedy output of one sequence."""

    prompt: list[int]
    tokens: list[int]
    logits: torch.Tensor
    """[num_tokens, vocab_size]: what each token was chosen from."""
    params: SamplingParams
    eos_token_ids: tuple[int, ...] = ()
    index: int = 0
    bad_words: tuple[tuple[int, ...], ...] = ()


class ReferenceModel:
    """A transformers model and the definition of sampling."""

    def __init__(self, model: transformers.PreTrainedModel) -> None:
        self.model = model
        self._device = model.device

    def generate(self, prompt: list[int], num_tokens: int) -> Expected:
        """Greedy, by transformers' own generate."""
        vocab_size = self.model.config.vocab_size
        out = self.model.generate(
            torch.tensor([prompt], device=self._device),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long, device=self._device),
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            do_sample=False,
            eos_token_id=vocab_size,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        tokens = out.sequences[0, len(prompt) :].tolist()
        params = with_defaults(SamplingParams(temperature=0.0, max_tokens=num_tokens))
        return Expected(prompt, tokens, torch.cat(out.logits).float().cpu(), params)

    @torch.no_grad()
    def greedy_after(self, prompt: list[int], tokens: list[int]) -> Expected:
        """For each token of a greedy answer the right one, given those before it: one pass, however long it is."""
        ids = torch.tensor([prompt + tokens[:-1]], device=self._device)
        logits = self.model(ids).logits[0, len(prompt) - 1 :].float().cpu()
        params = with_defaults(SamplingParams(temperature=0.0, max_tokens=len(tokens)))
        return Expected(prompt, logits.argmax(-1).tolist(), logits, params)

    @torch.no_grad()
    def answer(self, request: Request, index: int = 0, max_len: int = 1 << 30) -> Expected:
        """Any request, token by token, with the whole sequence computed for each."""
        params, eos = request.params, request.eos_token_ids
        expected = Expected(request.prompt_token_ids, [], torch.empty(0), params, eos, index, request.bad_words)
        logits: list[torch.Tensor] = []
        limit = min(params.max_tokens, max_len - len(expected.prompt))
        while len(expected.tokens) < limit:
            ids = torch.tensor([expected.prompt + expected.tokens], device=self._device)
            logits.append(self.model(ids).logits[0, -1].float().cpu())
            token = choose(expected, len(expected.tokens), logits[-1])
            expected.tokens.append(token)
            if len(expected.tokens) > params.min_tokens and token in (*eos, *params.stop_token_ids):
                break
        expected.logits = torch.stack(logits)
        return expected


def choose(expected: Expected, position: int, logits: torch.Tensor) -> int:
    """The token that follows the first `position` tokens of an answer, given its logits [vocab_size]."""
    params = expected.params
    tokens = expected.prompt + expected.tokens[:position]
    stop = sorted({*expected.eos_token_ids, *params.stop_token_ids}) or [-1]
    seed = sequence_seed(params.seed, expected.index)
    batch = sampling_batch(
        1,
        len(logits),
        max_len=len(tokens),
        stop_token_ids=torch.tensor([stop], dtype=torch.int32),
        masks_stop=[position < params.min_tokens],
        logit_bias=dict(params.logit_bias),
        allowed=[params.allowed_token_ids],
        bad_words=[expected.bad_words],
        seed=seed,
        num_tokens=len(tokens),
        num_prompt_tokens=len(expected.prompt),
        top_k=params.top_k,
        **{column.name: getattr(params, column.name) for column in FLOATS},
    )
    batch.sequences.token_ids[:] = torch.tensor(tokens)
    return int(reference.sample(logits[None].clone(), batch))


@dataclass
class Comparison:
    """Compares answers with what is expected, and keeps count."""

    near_tie: float = NEAR_TIE
    """How far apart logits may be that count as equal."""
    num_tokens: int = 0
    """Tokens compared."""
    num_near_ties: int = 0
    """Differences that were accepted."""
    where: list[str] = field(default_factory=list)
    """A line for each of them."""

    def check(self, expected: Expected, tokens: list[int], what: str) -> None:
        """Asserts that the tokens are the expected ones."""
        for position, (right, token) in enumerate(zip(expected.tokens, tokens, strict=False)):
            self.num_tokens += 1
            if token == right:
                continue
            logits = expected.logits[position].clone()
            logits[token] += self.near_tie
            assert choose(expected, position, logits) == token, (
                f"{what}: token {position} is {token}, expected {right}\n{tokens}\n{expected.tokens}"
            )
            self.num_near_ties += 1
            self.where.append(f"{what}: token {position} is {token}, expected {right}")
            return
        assert len(tokens) == len(expected.tokens), f"{what}: {tokens} != {expected.tokens}"
