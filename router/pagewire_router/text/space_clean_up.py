"""Taking out the spaces that some decoders leave before punctuation, as clean_up_tokenization_spaces asks for."""

from pagewire_router.text.detokenizer import Detokenizer

_REPLACEMENTS = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"),
    (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip
"""In transformers' order: PreTrainedTokenizerBase.clean_up_tokenization."""
_UNDECIDED = " 'nvr"
"""What the beginnings of the replaced texts are made of. No replaced text goes on after any other character."""


def clean_up_spaces(text: str) -> str:
    """A whole text, cleaned up."""
    for old, new in _REPLACEMENTS:
        text = text.replace(old, new)
    return text


class CleanUpDetokenizer:
    """Cleans up what another detokenizer writes; holds the end of the text while more may change it."""

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
