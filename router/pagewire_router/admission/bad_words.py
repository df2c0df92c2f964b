"""Tokenizes bad words: strings become the token sequences that a shard does not let a sequence complete."""

from collections.abc import Sequence

from pagewire.parameter_table import MAX_BAD_WORDS

from pagewire_router.admission.validation import Limits, Violations
from pagewire_router.text.tokenizer import Tokenizer

_FIELD = "sampling_params.bad_words"


def tokenize_bad_words(
    words: Sequence[str], tokenizer: Tokenizer, limits: Limits, violations: Violations
) -> tuple[tuple[int, ...], ...]:
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
