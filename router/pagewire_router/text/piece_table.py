"""The bytes of each token, for tokenizers whose decoder concatenates them."""

import json
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer as Backend

Piece = str | bytes
"""str if the token's bytes are whole characters, else bytes."""
SPACE_MARK = "▁"
"""The character that SentencePiece writes for a space."""


@dataclass(frozen=True, slots=True)
class PieceTable:
    """Pieces by token id. Ids without a token have an empty piece, as the library decodes them to nothing."""

    pieces: list[Piece]
    """[vocab_size]"""
    pieces_without_special: list[Piece]
    """[vocab_size]: special tokens have an empty piece."""
    strips_first_space: bool
    """The decoder leaves out a space at the very start of a text."""


def build_piece_table(backend: Backend, vocab_size: int) -> PieceTable | None:
    """The table for a tokenizer, or None if its decoder is of another kind.

    vocab_size: the model's, which may exceed the tokenizer's.
    """
    steps = decoder_steps(backend)
    if [step.get("type") for step in steps] == ["ByteLevel"]:
        to_bytes, strips_first_space = _byte_level_bytes, False
    elif _is_byte_fallback(steps):
        to_bytes, strips_first_space = _byte_fallback_bytes, steps[-1]["type"] == "Strip"
    else:
        return None
    tokens = _tokens_by_id(backend)
    pieces: list[Piece] = [""] * max(vocab_size, max(tokens, default=-1) + 1)
    for token_id, token in tokens.items():
        pieces[token_id] = _whole_characters(to_bytes(token))
    without_special = pieces.copy()
    for token_id, added_token in backend.get_added_tokens_decoder().items():
        if added_token.special:
            without_special[token_id] = ""
    return PieceTable(pieces, without_special, strips_first_space)


def partial_pieces(backend: Backend) -> dict[int, bytes]:
    """The bytes of each token that may hold part of a character, for decoders that are no concatenation."""
    types = {step.get("type") for step in decoder_steps(backend)}
    if types.isdisjoint({"ByteLevel", "ByteFallback"}):
        return {}
    to_bytes = _byte_level_bytes if "ByteLevel" in types else _byte_fallback_bytes
    pieces = {token_id: _whole_characters(to_bytes(token)) for token_id, token in _tokens_by_id(backend).items()}
    return {token_id: piece for token_id, piece in pieces.items() if isinstance(piece, bytes)}


def decoder_steps(backend: Backend) -> list[dict[str, Any]]:
    """The decoder's description, one entry for each step."""
    # Without the vocabulary, whose description takes a second for the largest.
    decoder: dict[str, Any] = json.loads(backend.decoder.__getstate__()) if backend.decoder is not None else {}
    return decoder["decoders"] if decoder.get("type") == "Sequence" else [decoder]


def _tokens_by_id(backend: Backend) -> dict[int, str]:
    """Added tokens take precedence where an id has two names."""
    tokens = {token_id: token for token, token_id in backend.get_vocab(with_added_tokens=True).items()}
    added = backend.get_added_tokens_decoder()
    return tokens | {token_id: added_token.content for token_id, added_token in added.items()}


def _is_byte_fallback(steps: list[dict[str, Any]]) -> bool:
    """Replace, ByteFallback, Fuse, and perhaps Strip of one leading space: Llama 2's and Gemma's decoder."""
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    replace = {"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "}
    plain = [replace, {"type": "ByteFallback"}, {"type": "Fuse"}]
    return steps in (plain, [*plain, strip])


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's characters for bytes: printable ones stand for themselves, the others for code points from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_LEVEL_ALPHABET = _byte_level_alphabet()


def _byte_level_bytes(token: str) -> bytes:
    try:
        return bytes([BYTE_LEVEL_ALPHABET[character] for character in token])
    except KeyError:
        return token.encode()  # An added token: it is text already.


def _byte_fallback_bytes(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes.fromhex(token[3:5])
        except ValueError:
            pass
    return token.replace(SPACE_MARK, " ").encode()


def _whole_characters(piece: bytes) -> Piece:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return piece
