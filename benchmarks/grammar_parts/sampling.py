"""Texts that a random model writes within a grammar."""

import numpy as np
from numpy.typing import NDArray
from pagewire_shard.grammar.grammars import Grammars
from pagewire_shard.grammar.matcher import Matcher

TEMPERATURE = 1.5
LOGITS_SCALE = 3.0
"""Standard deviation of the random logits, about that of a trained model."""
PATIENCE_TOKENS = 40
"""From here on tokens that close something gain weight, so that texts end."""
CLOSING, OPENING = '"]}', "[{:,"
"""First characters of tokens that bring a JSON text nearer to its end, and farther from it."""


class RandomModel:
    """Normally distributed logits in each step, whatever came before."""

    def __init__(self, grammars: Grammars, tokens: list[str], eos_token_ids: tuple[int, ...], seed: int = 0) -> None:
        """tokens: the text of each token of the vocabulary."""
        self._grammars = grammars
        self._random = np.random.default_rng(seed)
        self._eos = eos_token_ids
        self._closes = np.array([_pull(text) for text in tokens])
        self._closes[list(eos_token_ids)] = 8.0
        self._mask = np.zeros((1, grammars.num_mask_words), dtype=np.int32)

    def sample(self, matcher: Matcher, max_tokens: int) -> list[int] | None:
        """The tokens of one text without its end; None: it was not at its end after max_tokens.

        Raises RuntimeError if the matcher fails.
        """
        token_ids: list[int] = []
        while len(token_ids) < max_tokens:
            token_id = self._next(matcher, len(token_ids))
            if token_id in self._eos:
                return token_ids
            token_ids.append(token_id)
            if not matcher.advance([token_id]):
                raise RuntimeError(f"a token that the mask allows is refused: {matcher.error}")
        return None

    def _next(self, matcher: Matcher, num_tokens: int) -> int:
        if self._grammars.fill_masks([matcher], self._mask):
            raise RuntimeError(matcher.error)
        allowed = _bits(self._mask[0], len(self._closes))
        logits = self._random.standard_normal(len(allowed)) * LOGITS_SCALE / TEMPERATURE
        if num_tokens > PATIENCE_TOKENS:
            logits += self._closes * (num_tokens - PATIENCE_TOKENS) / 20
        noisy = logits + self._random.gumbel(size=len(allowed))
        return int(np.where(allowed, noisy, -np.inf).argmax())


def _pull(text: str) -> float:
    if not text or text.isspace():
        return -4.0
    return 4.0 if text[0] in CLOSING else -4.0 if text[0] in OPENING else 0.0


def _bits(mask: NDArray[np.int32], num_tokens: int) -> NDArray[np.bool_]:
    return np.unpackbits(mask.view(np.uint8), bitorder="little")[:num_tokens].astype(bool)
