"""The model's vocabulary as grammars see it: the bytes of every token, the special tokens, the ends of a text."""

import json
from dataclasses import dataclass

from llguidance import LLTokenizer

from pagewire_shard.grammar.errors import UnusableTokenizer

WORD_BITS = 32
"""Tokens in a word of a mask: token t is bit t % 32 of word t // 32."""


@dataclass(frozen=True, slots=True)
class VocabularySource:
    """What a vocabulary is made of; it can be sent to another process."""

    tokenizer_json: str
    """A tokenizer.json, as routers get it."""
    num_logits: int
    """Tokens that the model has logits for; may be more than the tokenizer knows."""
    eos_token_ids: tuple[int, ...]
    """The model's end-of-sequence tokens."""


class Vocabulary:
    """llguidance's form of a tokenizer. Takes some 10 us a token to make, and then never changes."""

    def __init__(self, source: VocabularySource) -> None:
        """Holds the GIL all the while, because llguidance does. Raises UnusableTokenizer."""
        if not source.eos_token_ids:
            raise UnusableTokenizer("the model names no end-of-sequence token")
        self.tokenizer = _tokenizer(source)
        self.eos_token_ids = source.eos_token_ids
        self.num_mask_words = -(-source.num_logits // WORD_BITS)
        """Width of a mask, in words of 32 tokens that the model has logits for."""
        self.num_own_mask_words = -(-self.tokenizer.vocab_size // WORD_BITS)
        """Width of the masks that llguidance writes: more if the tokenizer knows tokens without logits."""


def special_tokens(tokenizer_json: str) -> dict[str, int]:
    """Ids of the special tokens by their text. A grammar allows such a token only where it names it."""
    added_tokens = json.loads(tokenizer_json).get("added_tokens", [])
    return {token["content"]: token["id"] for token in added_tokens if token["special"]}


def _tokenizer(source: VocabularySource) -> LLTokenizer:
    eos_token_ids = list(source.eos_token_ids)
    try:
        try:
            return LLTokenizer(source.tokenizer_json, n_vocab=source.num_logits, eos_token=eos_token_ids)
        except ValueError:
            # It may know more tokens than the model has logits for.
            return LLTokenizer(source.tokenizer_json, eos_token=eos_token_ids)
    except Exception as error:  # llguidance and tokenizers raise bare Exceptions
        reason = (str(error).splitlines() or [""])[0]
        raise UnusableTokenizer(f"llguidance cannot read the tokenizer: {reason}") from error
