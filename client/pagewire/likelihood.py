"""Log-likelihoods of texts under a served model, and the generation that evaluation harnesses ask for.

The three methods of Scorer are those of lm-eval's `LM`, with its rules for the border between context and continuation,
for texts without a context and for texts longer than the model's; lm_eval.py makes an `LM` of it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pagewire.client import Client
from pagewire.errors import InvalidRequest
from pagewire.outputs import RequestOutput
from pagewire.sampling_params import SamplingParams

MAX_GEN_TOKS = 256
"""Tokens to generate at most, where a request does not say."""
_SCORING = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
_MAX_TOKENS_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


class Scorer:
    """Scores and continues texts on one server. Requests are sent side by side; answers are in the order of what was
    given."""

    def __init__(self, client: Client, *, prefix_token_id: int | None = None) -> None:
        """
        Args:
            prefix_token_id: the token that comes before a text without a context; None: the token that the tokenizer
                begins every text with, or else the model's first end-of-sequence token.

        Raises:
            InvalidRequest: prefix_token_id is None, and the model has neither of the two.
        """
        self._client = client
        model = client.get_model()
        self.max_prompt_tokens = model.max_model_len - 1
        """Longest text that can be scored at once, in tokens: a request samples one token at least."""
        self._max_model_len = model.max_model_len
        self.prefix_token_id = (
            _prefix_token_id(client, model.eos_token_ids) if prefix_token_id is None else prefix_token_id
        )
        self._prefix_text = client.detokenize([self.prefix_token_id], skip_special_tokens=False)

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """For each (context, continuation): the log-probability of the continuation behind the context, and whether it
        is what greedy sampling would yield. Of a text that is too long the beginning is left out."""
        contexts: dict[str, list[int]] = {}
        return self.score_tokens([self._encode_pair(*pair, contexts) for pair in pairs])

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[float]:
        """For each text the log-probability of all its tokens. A long text is cut into windows; each token counts once,
        behind as many tokens as its window has before it."""
        windows = [list(self._windows(self.encode(text))) for text in texts]
        scores = iter(self.score_tokens([window for of_text in windows for window in of_text]))
        return [sum(next(scores)[0] for _ in of_text) for of_text in windows]

    def generate_until(self, requests: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """For each (context, options) the continuation, greedy unless the options say otherwise.

        The options are lm-eval's: until (a string or several, left out of the answer), max_gen_toks, do_sample and
        temperature; all others are SamplingParams'. Of a context that is too long the beginning is left out.
        """
        params = [self._generation(options) for _, options in requests]
        prompts = [self.encode(context) for context, _ in requests]
        return [output.outputs.text for output in self._client.complete_many(prompts, params)]

    def score_tokens(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """As loglikelihood, of token ids; each context has one token at least."""
        prompts = [[*context, *continuation][-self.max_prompt_tokens :] for context, continuation in pairs]
        outputs = self._client.complete_many(prompts, _SCORING)
        return [_score(output, len(continuation)) for output, (_, continuation) in zip(outputs, pairs, strict=True)]

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The text's tokens. A text that begins with the special token, as rendered conversations do, gets no other."""
        begins = bool(self._prefix_text) and text.startswith(self._prefix_text)
        return self._client.tokenize(text, add_special_tokens=add_special_tokens and not begins) if text else []

    def _encode_pair(
        self, context: str, continuation: str, contexts: dict[str, list[int]]
    ) -> tuple[list[int], list[int]]:
        """Spaces at the end of a context count as the continuation's, for tokens begin with spaces.

        contexts: tokens of contexts, which tasks with several choices repeat.
        """
        if not context:
            token_ids = self.encode(continuation, add_special_tokens=False)
            if token_ids[:1] == [self.prefix_token_id]:
                return token_ids[:1], token_ids[1:]
            return [self.prefix_token_id], token_ids
        stem = context.rstrip()
        whole = self.encode(context + continuation)
        if stem not in contexts:
            contexts[stem] = self.encode(stem)
        num_context = max(1, min(len(contexts[stem]), len(whole)))
        return whole[:num_context], whole[num_context:]

    def _windows(self, token_ids: list[int]) -> Iterator[tuple[list[int], list[int]]]:
        size = self.max_prompt_tokens - 1
        for start in range(0, len(token_ids), size):
            end = min(start + size, len(token_ids))
            context = token_ids[max(0, end - size - 1) : start] if start else [self.prefix_token_id]
            yield context, token_ids[start:end]

    def _generation(self, options: Mapping[str, Any]) -> SamplingParams:
        given = dict(options)
        until = given.pop("until", None) or []
        stop = [text for text in ([until] if isinstance(until, str) else until) if text]
        lengths = [given.pop(name) for name in _MAX_TOKENS_NAMES if name in given]
        max_tokens = min(int(lengths[0]) if lengths else MAX_GEN_TOKS, self._max_model_len - 1)
        temperature, do_sample = given.pop("temperature", 0.0), given.pop("do_sample", None)
        return SamplingParams(
            stop=stop,
            max_tokens=max_tokens,
            temperature=0.0 if do_sample is False else float(temperature),
            truncate_prompt_tokens=self._max_model_len - max_tokens,
            **given,
        )


def _score(output: RequestOutput, num_tokens: int) -> tuple[float, bool]:
    """Of the prompt's last num_tokens tokens, or of all but the first if there are no more."""
    assert output.prompt_logprobs is not None
    num_tokens = min(num_tokens, len(output.prompt_token_ids) - 1)
    entries = output.prompt_logprobs[len(output.prompt_token_ids) - num_tokens :]
    logprobs = [next(iter(entry.values())) for entry in entries if entry is not None]
    return sum(logprob.logprob for logprob in logprobs), all(logprob.rank == 1 for logprob in logprobs)


def _prefix_token_id(client: Client, eos_token_ids: Sequence[int]) -> int:
    with_special, without = (client.tokenize("a", add_special_tokens=add) for add in (True, False))
    if with_special[: len(with_special) - len(without)] and with_special[0] != without[0]:
        return with_special[0]
    if not eos_token_ids:
        raise InvalidRequest.of_field(
            "prefix_token_id", "none given, and the model has no token that begins or ends texts"
        )
    return eos_token_ids[0]
