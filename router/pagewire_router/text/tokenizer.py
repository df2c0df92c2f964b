"""The served model's tokenizer: text and chat to token ids and back."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from tokenizers import Tokenizer as Backend

from pagewire_router.caller import Caller
from pagewire_router.text.chat_template import ChatTemplates
from pagewire_router.text.detokenizer import (
    CleanUpDetokenizer,
    Detokenizer,
    PieceDetokenizer,
    SeparateSpecialTokens,
    WindowDetokenizer,
    clean_up_spaces,
)
from pagewire_router.text.length_bound import max_chars_per_token
from pagewire_router.text.piece_table import SPACE_MARK, Piece, build_piece_table, partial_pieces
from pagewire_router.text.text_threads import QueueBounds, TextThreads
from pagewire_router.text.tokenizer_files import (
    build_backend,
    chat_templates,
    special_tokens,
    tokenizer_config,
    tokenizer_settings,
)

T = TypeVar("T")
A = TypeVar("A")
MAX_INLINE_CHARS = 1024
"""Texts up to this length are encoded on the event loop, in under 0.2 ms. A hop to a thread takes 0.05 ms."""


class Tokenizer:
    """Encodes and decodes as transformers' AutoTokenizer does, with which the shard reads the model's files."""

    def __init__(
        self,
        files: Mapping[str, bytes],
        vocab_size: int,
        *,
        num_threads: int = 1,
        queue_bounds: QueueBounds | None = None,
    ) -> None:
        """
        Args:
            files: files of the model by name.
            vocab_size: vocabulary size of the model, which may exceed the tokenizer's.
            num_threads: most long texts that are encoded at a time.
            queue_bounds: bounds of the texts that wait for a thread; None: the defaults.

        Raises:
            TokenizerFilesError: the files are not those of a tokenizer.
        """
        self._backend: Backend = build_backend(files)
        self._cleans_up_spaces = tokenizer_settings(files).clean_up_tokenization_spaces
        self._table = build_piece_table(self._backend, vocab_size)
        self._partial_pieces = partial_pieces(self._backend) if self._table is None else {}
        self._decoded_pieces: dict[int, str] = {}
        self._special_token_ids = frozenset(
            token_id for token_id, token in self._backend.get_added_tokens_decoder().items() if token.special
        )
        self._threads = TextThreads(num_threads, queue_bounds or QueueBounds())
        self.chat_templates = ChatTemplates(chat_templates(files), special_tokens(files))
        self.response_template: Any = tokenizer_config(files).get("response_template")
        """How the model marks what it writes, in Hugging Face's format; None: its files do not say."""
        self.max_chars_per_token = max_chars_per_token(self._backend)
        """Most characters of a text for each of its tokens; None: there is no bound."""
        # On a thread, since importing Jinja takes 0.1 s. A malformed template is reported when it is used.
        self._threads.submit(self.chat_templates.compile)

    async def encode(self, text: str, *, add_special_tokens: bool, caller: Caller) -> list[int]:
        """Token ids of a text; long texts are encoded on a thread. Raises QueueFull, Unavailable."""
        if len(text) <= MAX_INLINE_CHARS:
            return self.encode_now(text, add_special_tokens=add_special_tokens)
        return await self.run_on_thread(
            lambda whole: self.encode_now(whole, add_special_tokens=add_special_tokens),
            text,
            num_chars=len(text),
            caller=caller,
        )

    async def run_on_thread(self, function: Callable[[A], T], argument: A, *, num_chars: int, caller: Caller) -> T:
        """Runs work on a text of about so many characters beside the event loop, when it is the caller's turn.

        Raises QueueFull, Unavailable.
        """
        return await self._threads.run(function, argument, num_chars=num_chars, caller=caller)

    def encode_now(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of a text, encoded on the calling thread."""
        # Unlike encode(), this releases the interpreter's lock, and does not compute offsets.
        (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        token_ids: list[int] = encoding.ids
        return token_ids

    def added_tokens(self, *, special_only: bool = False) -> dict[str, int]:
        """Ids by text of the tokens that stand beside the vocabulary proper, such as special ones."""
        tokens = self._backend.get_added_tokens_decoder().items()
        return {token.content: token_id for token_id, token in tokens if token.special or not special_only}

    def token_text(self, token_id: int) -> str:
        """The token as the vocabulary writes it; empty if there is none with this id."""
        return self._backend.id_to_token(token_id) or ""

    def piece(self, token_id: int) -> Piece:
        """The token decoded alone, with its leading space; its bytes if it may hold part of a character."""
        if self._table is not None:
            piece = self._table.pieces[token_id]
            return clean_up_spaces(piece) if self._cleans_up_spaces and isinstance(piece, str) else piece
        if token_id in self._partial_pieces:
            return self._partial_pieces[token_id]
        if token_id not in self._decoded_pieces:
            self._decoded_pieces[token_id] = self._decode_alone(token_id)
        return self._decoded_pieces[token_id]

    def _decode_alone(self, token_id: int) -> str:
        text = self.decode([token_id], skip_special_tokens=False)
        # Such decoders strip the space before the first word of a text.
        starts_word = self.token_text(token_id).startswith(SPACE_MARK) and not text.startswith(" ")
        return f" {text}" if starts_word else text

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """The text of a whole sequence of tokens. Ids without a token have no text."""
        text: str = self._backend.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return clean_up_spaces(text) if self._cleans_up_spaces else text

    def detokenizer(
        self, prompt_token_ids: list[int], *, skip_special_tokens: bool, spaces_between_special_tokens: bool
    ) -> Detokenizer:
        """A detokenizer for one sequence that continues the prompt."""
        detokenizer = self._plain_detokenizer(prompt_token_ids, skip_special_tokens, spaces_between_special_tokens)
        return CleanUpDetokenizer(detokenizer) if self._cleans_up_spaces else detokenizer

    def _plain_detokenizer(
        self, prompt_token_ids: list[int], skip_special_tokens: bool, spaces_between_special_tokens: bool
    ) -> Detokenizer:
        if self._table is not None:
            # Decoders with a piece table never put a space between tokens.
            return PieceDetokenizer(self._table, prompt_token_ids, skip_special_tokens=skip_special_tokens)
        window = WindowDetokenizer(
            self._backend, prompt_token_ids, self._partial_pieces, skip_special_tokens=skip_special_tokens
        )
        if skip_special_tokens or spaces_between_special_tokens:
            return window
        return SeparateSpecialTokens(window, self._special_token_ids)

    def close(self) -> None:
        """Ends the threads."""
        self._threads.close()
