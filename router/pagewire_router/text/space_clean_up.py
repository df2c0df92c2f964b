"""Removes the spaces that some decoders leave before punctuation, as clean_up_tokenization_spaces asks for."""

from pagewire_router.text.detokenizer import Detokenizer

_REPLACEMENTS = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"),
    (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip
"""The replacements of PreTrainedTokenizerBase.clean_up_tokenization in transformers, in its order."""
_UNDECIDED = " 'nvr"
"""Characters that the replaced texts have before their last one. After any other character no replaced text goes on."""


def clean_up_spaces(text: str) -> str:
    """Cleans up a whole text."""
    for old, new in _REPLACEMENTS:
        text = text.replace(old, new)
    return text


class CleanUpDetokenizer:
    """Cleans up the text of another detokenizer; holds back the end of the text while the next tokens may change it."""

    __slots__ = ("_held", "_inner")

    def __init__(self, inner: Detokenizer) -> None:
        self._inner = inner
        self._held = ""

    def feed(self, token_ids: list[int]) -> str:
        text = self._held + self._inner.feed(token_ids)
        num_decided = len(text.rstrip(_UNDECIDED))
        # Every replaced text begins with a space.
        first_space = text.find(" ", num_decided)
        self._held = text[first_space:] if first_space >= 0 else ""
        return clean_up_spaces(text[:first_space] if first_space >= 0 else text)

    def flush(self) -> str:
        text, self._held = self._held + self._inner.flush(), ""
        return clean_up_spaces(text)
