"""Incremental detokenization: tokens in, text out as soon as it is certain, never half a character.

Two decoders cover the decoder-only models: byte-level BPE, and SentencePiece pieces with byte fallback. In both, the
text is the concatenation of one byte string for each token, so a table and a UTF-8 decoder that keeps the bytes of an
unfinished character are exact and cost a list access for most tokens. Any other decoder is asked for the text of a
short window of tokens again and again.
"""

import codecs
from typing import Protocol

from tokenizers import Tokenizer as Backend

from pagewire_router.text.piece_table import PieceTable

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
_MAX_HELD_TOKENS = 16
"""A character has at most 4 bytes: text that stays undecodable for longer is malformed, not unfinished."""


class Detokenizer(Protocol):
    """Turns the tokens of one sequence into text, in pieces."""

    def feed(self, token_ids: list[int]) -> str:
        """Takes the next tokens and returns the text that became certain."""

    def flush(self) -> str:
        """The sequence ends: returns what was held back, an unfinished character as U+FFFD."""


class PieceDetokenizer:
    """For decoders that concatenate one byte string for each token.

    A run of byte tokens that is not UTF-8 becomes U+FFFD where it is malformed. (The library's byte fallback gives up
    the whole run, including characters that were complete before the fault and have been sent.)
    """

    __slots__ = ("_at_start", "_bytes", "_pieces", "_strips_first_space")

    def __init__(self, table: PieceTable, prompt_token_ids: list[int], *, skip_special_tokens: bool) -> None:
        self._pieces = table.pieces_without_special if skip_special_tokens else table.pieces
        # The decoder strips the space before the first word of a text: of the prompt's, if that has any.
        self._at_start = table.strips_first_space and not any(self._pieces[i] for i in prompt_token_ids)
        self._bytes: codecs.IncrementalDecoder | None = None

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
            self._bytes = codecs.getincrementaldecoder("utf-8")("replace")
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


class WindowDetokenizer:
    """For any decoder: decodes a window of recent tokens with and without the new ones; the difference is the text."""

    __slots__ = ("_backend", "_num_sent", "_previous", "_skip_special_tokens", "_window")

    def __init__(self, backend: Backend, prompt_token_ids: list[int], *, skip_special_tokens: bool) -> None:
        self._backend = backend
        self._skip_special_tokens = skip_special_tokens
        self._window = prompt_token_ids[-_MAX_HELD_TOKENS:]
        self._num_sent = len(self._window)
        self._previous = self._decode(self._window)

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


class SeparateSpecialTokens:
    """Takes out the space a decoder puts between two special tokens in a row."""

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
