"""Incremental detokenization: text is returned as soon as it is certain, and never half a character.

Two decoders cover most models: byte-level BPE, and SentencePiece pieces with byte fallback. In both, the text is the
concatenation of one byte string for each token. A table of these, and a UTF-8 decoder that keeps the bytes of an
unfinished character, are exact and cost a list access for most tokens. For any other decoder, a short window of tokens
is decoded again with each token.

A prompt may end inside a character, such as when a client resumes a stream that broke there. The output token that
completes the character then yields all of it.
"""

import codecs
from collections.abc import Mapping
from typing import Protocol

from tokenizers import Tokenizer as Backend

from pagewire_router.text.piece_table import Piece, PieceTable

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
_MAX_HELD_TOKENS = 16
"""Most tokens that are held back. A character has at most 4 bytes, so longer undecodable text is malformed."""
_MAX_UNFINISHED_BYTES = 3
_UTF8_DECODER = codecs.getincrementaldecoder("utf-8")
_REPLACEMENTS = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"),
    (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip
"""The replacements of PreTrainedTokenizerBase.clean_up_tokenization in transformers, in its order."""
_UNDECIDED = " 'nvr"
"""Characters that the replaced texts have before their last one. After any other character no replaced text goes on."""


class Detokenizer(Protocol):
    """Turns the tokens of one sequence into text, piece by piece."""

    def feed(self, token_ids: list[int]) -> str:
        """Takes the next tokens and returns the text that became certain."""

    def flush(self) -> str:
        """Ends the sequence: returns the text that was held back, an unfinished character as U+FFFD."""


class PieceDetokenizer:
    """The detokenizer for decoders that concatenate one byte string for each token.

    A run of byte tokens that is not UTF-8 becomes U+FFFD where it is malformed. (The library's byte fallback gives up
    the whole run, including characters that were complete before the fault and have been sent.)
    """

    __slots__ = ("_at_start", "_bytes", "_pieces", "_strips_first_space")

    def __init__(self, table: PieceTable, prompt_token_ids: list[int], *, skip_special_tokens: bool) -> None:
        self._pieces = table.pieces_without_special if skip_special_tokens else table.pieces
        # The decoder strips the space before the first word, which is the prompt's if that has any.
        self._at_start = table.strips_first_space and not any(self._pieces[i] for i in prompt_token_ids)
        self._bytes = _unfinished_character(self._pieces, prompt_token_ids)

    def feed(self, token_ids: list[int]) -> str:
        if self._bytes is None and not self._at_start and len(token_ids) == 1:
            piece = self._pieces[token_ids[0]]
            if type(piece) is str:
                return piece
        return "".join([self._feed_one(i) for i in token_ids])

    def _feed_one(self, token_id: int) -> str:
        piece = self._pieces[token_id]
        if self._at_start and piece:
            self._at_start = False
            piece = piece.removeprefix(" ") if isinstance(piece, str) else piece.removeprefix(b" ")
        if isinstance(piece, str):
            return self.flush() + piece if piece else ""
        if self._bytes is None:
            self._bytes = _UTF8_DECODER("replace")
        text = self._bytes.decode(piece)
        if not self._bytes.getstate()[0]:
            self._bytes = None
        return text

    def flush(self) -> str:
        if self._bytes is None:
            return ""
        text = self._bytes.decode(b"", final=True)
        self._bytes = None
        return text


def _unfinished_character(pieces: list[Piece], token_ids: list[int]) -> codecs.IncrementalDecoder | None:
    """A decoder that holds the bytes of the unfinished character at the end of the tokens; None: there is none."""
    tail = b""
    for token_id in reversed(token_ids):
        piece = pieces[token_id]
        if isinstance(piece, str):
            if piece:
                break
            continue  # A token without text does not separate the bytes around it.
        tail = piece + tail
        if len(tail) >= _MAX_UNFINISHED_BYTES:
            break
    if not tail:
        return None
    num_unfinished = _num_unfinished_bytes(tail)
    if not num_unfinished:
        return None
    decoder = _UTF8_DECODER("replace")
    decoder.decode(tail[-num_unfinished:])
    return decoder


class WindowDetokenizer:
    """The detokenizer for any decoder: decodes a window of recent tokens with and without the new ones."""

    __slots__ = ("_backend", "_num_sent", "_previous", "_skip_special_tokens", "_window")

    def __init__(
        self,
        backend: Backend,
        prompt_token_ids: list[int],
        partial_pieces: Mapping[int, bytes],
        *,
        skip_special_tokens: bool,
    ) -> None:
        """partial_pieces: the bytes of those tokens that may hold part of a character."""
        self._backend = backend
        self._skip_special_tokens = skip_special_tokens
        start = max(0, len(prompt_token_ids) - _MAX_HELD_TOKENS)
        while start > 0 and _continues_a_character(partial_pieces.get(prompt_token_ids[start], b"")):
            start -= 1
        self._window = prompt_token_ids[start:]
        self._num_sent = len(self._window)
        self._previous = ""
        self._leave_out_unfinished_character(partial_pieces)

    def _leave_out_unfinished_character(self, partial_pieces: Mapping[int, bytes]) -> None:
        """If the prompt ends inside a character, the tokens that hold its bytes count as not sent yet."""
        window = self._window
        tail = b""
        while len(tail) < _MAX_UNFINISHED_BYTES and self._num_sent > 0:
            piece = partial_pieces.get(window[self._num_sent - 1])
            if piece is None:
                break
            self._num_sent -= 1
            tail = piece + tail
        num_unfinished = _num_unfinished_bytes(tail)
        while num_unfinished < len(tail):
            piece = partial_pieces[window[self._num_sent]]
            if len(tail) - len(piece) < num_unfinished:
                break
            tail = tail[len(piece) :]
            self._num_sent += 1
        if len(tail) == num_unfinished:
            self._previous = self._decode(window[: self._num_sent])
        else:
            # The first of these tokens has characters before the unfinished one.
            self._previous = self._decode(window).removesuffix(UNFINISHED)

    def feed(self, token_ids: list[int]) -> str:
        return "".join([self._feed_one(i) for i in token_ids])

    def _feed_one(self, token_id: int) -> str:
        self._window.append(token_id)
        text = self._decode(self._window)
        num_held = len(self._window) - self._num_sent
        if len(text) <= len(self._previous) or (text.endswith(UNFINISHED) and num_held < _MAX_HELD_TOKENS):
            return ""
        return self._send(text)

    def flush(self) -> str:
        text = self._decode(self._window)
        return self._send(text) if len(text) > len(self._previous) else ""

    def _send(self, text: str) -> str:
        new_text = text[len(self._previous) :]
        # The tokens just sent are the context of the next ones.
        self._window = self._window[self._num_sent :]
        self._num_sent = len(self._window)
        self._previous = self._decode(self._window)
        return new_text

    def _decode(self, token_ids: list[int]) -> str:
        return self._backend.decode(token_ids, skip_special_tokens=self._skip_special_tokens)


def _continues_a_character(piece: bytes) -> bool:
    return piece[:1] != b"" and 0x80 <= piece[0] < 0xC0


def _num_unfinished_bytes(data: bytes) -> int:
    """Number of bytes at the end that begin a character which more bytes would complete."""
    decoder = _UTF8_DECODER("replace")
    decoder.decode(data[-_MAX_UNFINISHED_BYTES:])
    return len(decoder.getstate()[0])


class SeparateSpecialTokens:
    """Removes the space that a decoder puts between two special tokens in a row."""

    __slots__ = ("_after_special", "_inner", "_special_token_ids")

    def __init__(self, inner: Detokenizer, special_token_ids: frozenset[int]) -> None:
        self._inner = inner
        self._special_token_ids = special_token_ids
        self._after_special = False

    def feed(self, token_ids: list[int]) -> str:
        return "".join([self._feed_one(i) for i in token_ids])

    def _feed_one(self, token_id: int) -> str:
        text = self._inner.feed([token_id])
        is_special = token_id in self._special_token_ids
        if is_special and self._after_special:
            text = text.removeprefix(" ")
        self._after_special = is_special
        return text

    def flush(self) -> str:
        return self._inner.flush()


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
