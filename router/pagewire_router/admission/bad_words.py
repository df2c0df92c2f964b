"""Tokenizes bad words: strings become the token sequences that a shard does not let a sequence complete."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence

from pagewire.parameter_table import MAX_BAD_WORDS

from pagewire_router.admission.validation import Limits, Violations
from pagewire_router.caller import Caller
from pagewire_router.text.tokenizer import Tokenizer

MAX_REMEMBERED = 16
"""Lists of words whose token sequences are remembered."""
_FIELD = "sampling_params.bad_words"

TokenSequences = tuple[tuple[int, ...], ...]


class BadWords:
    """Tokenizes the bad words of requests on the text threads, and those of a call with many prompts once."""

    def __init__(self, tokenizer: Tokenizer, limits: Limits) -> None:
        self._tokenizer = tokenizer
        self._limits = limits
        self._recent: OrderedDict[tuple[Caller, tuple[str, ...]], asyncio.Task[tuple[TokenSequences, Violations]]]
        self._recent = OrderedDict()
        """Those under way included, the list that was used last at the end."""

    async def token_sequences(self, words: Sequence[str], caller: Caller) -> TokenSequences:
        """The token sequences of words that passed check_bad_words. Raises InvalidRequest, QueueFull, Unavailable."""
        key = caller, tuple(words)
        task = self._recent.get(key)
        if task is None:
            task = self._recent[key] = asyncio.create_task(self._tokenize(key[1], caller))
            task.add_done_callback(lambda task: self._on_done(key, task))
            if len(self._recent) > MAX_REMEMBERED:
                self._recent.popitem(last=False)
        else:
            self._recent.move_to_end(key)
        # The end of one request does not end what others wait for.
        sequences, violations = await asyncio.shield(task)
        violations.raise_if_any()
        return sequences

    def _on_done(
        self, key: tuple[Caller, tuple[str, ...]], task: asyncio.Task[tuple[TokenSequences, Violations]]
    ) -> None:
        """Forgets an attempt that failed: the next may succeed."""
        if (task.cancelled() or task.exception() is not None) and self._recent.get(key) is task:
            del self._recent[key]

    async def _tokenize(self, words: tuple[str, ...], caller: Caller) -> tuple[TokenSequences, Violations]:
        violations = Violations()
        sequences = await self._tokenizer.run_on_thread(
            lambda words: tokenize_bad_words(words, self._tokenizer, self._limits, violations),
            words,
            num_chars=2 * sum(map(len, words)),
            caller=caller,
        )
        return sequences, violations


def tokenize_bad_words(
    words: Sequence[str], tokenizer: Tokenizer, limits: Limits, violations: Violations
) -> TokenSequences:
    """The token sequences of the words, each once. They are void if violations were added.

    As in vLLM each word is tokenized as it stands at the beginning of a text, and behind a space, for most tokenizers
    have tokens of their own for a word behind a space. The second form is left out where it ends with the first, which
    bans it already: a tokenizer that adds a space itself yields the first form with one more space in front.
    """
    sequences: dict[tuple[int, ...], None] = {}
    for index, word in enumerate(words):
        bare = word.lstrip()
        plain, spaced = (tuple(tokenizer.encode_now(text, add_special_tokens=False)) for text in (bare, f" {bare}"))
        if not bare or not plain:
            violations.add(f"{_FIELD}[{index}]", f"{word!r} has no tokens of its own; accepted: more than spaces")
            continue
        if unknown := [token_id for token_id in (*plain, *spaced) if token_id >= limits.vocab_size]:
            violations.add(
                f"{_FIELD}[{index}]", f"holds token {unknown[0]}, which is not below the vocabulary size of the model"
            )
        sequences[plain] = None
        if spaced[-len(plain) :] != plain:
            sequences[spaced] = None
    if len(sequences) > MAX_BAD_WORDS:
        violations.add(_FIELD, f"come to {len(sequences)} token sequences; accepted: up to {MAX_BAD_WORDS}")
    num_tokens = sum(map(len, sequences))
    if num_tokens > limits.max_bad_word_tokens:
        violations.add(_FIELD, f"come to {num_tokens} tokens; accepted: up to {limits.max_bad_word_tokens}")
    return tuple(sequences)
