"""The log-probabilities of one sequence, or of a prompt, as clients get them: with the text of each token they name."""

import codecs
from collections.abc import Callable, Iterable

from pagewire.v1 import inference_pb2, shard_pb2

from pagewire_router.text.piece_table import Piece

_UTF8_DECODER = codecs.getincrementaldecoder("utf-8")


class TokenLogprobsBuilder:
    """Builds one message for each token of a sequence, in order. Made only for requests that ask for log-probabilities.

    The text of a token is vLLM's `decoded_token`: the token decoded alone, special tokens included. A token that ends
    inside a character has the text of the characters it completes, which may be none; the token that brings the last
    byte of a character has the whole character. So no character is lost or doubled over the sampled tokens.
    """

    __slots__ = ("_piece_of", "_unfinished")

    def __init__(self, piece_of: Callable[[int], Piece] | None) -> None:
        """piece_of: the text or the bytes of a token (Tokenizer.piece); None: messages have no texts."""
        self._piece_of = piece_of
        self._unfinished = b""

    def pass_over(self, token_id: int) -> None:
        """Takes in a token that has no message: the next one may complete its last character."""
        if self._piece_of is not None:
            self._unfinished = self._decode(token_id)[1]

    def build(self, token_id: int, logprobs: shard_pb2.SequenceLogprobs) -> inference_pb2.TokenLogprobs:
        """The message of the next token."""
        message = inference_pb2.TokenLogprobs(
            token_id=token_id,
            logprob=logprobs.logprob,
            rank=logprobs.rank,
            top_token_ids=logprobs.top_token_ids,
            top_logprobs=logprobs.top_logprobs,
        )
        if self._piece_of is not None:
            message.top_token_texts.extend(self._texts(logprobs.top_token_ids))
            message.token_text, self._unfinished = self._decode(token_id)
        return message

    def _texts(self, token_ids: Iterable[int]) -> list[str]:
        """The text of each token after those before it. There may be as many as the vocabulary has."""
        assert self._piece_of is not None
        pieces = map(self._piece_of, token_ids)
        return [piece if type(piece) is str else self._decode_piece(piece)[0] for piece in pieces]

    def _decode(self, token_id: int) -> tuple[str, bytes]:
        """The text of a token after those before it, and the bytes of the character that it ends inside of."""
        assert self._piece_of is not None
        return self._decode_piece(self._piece_of(token_id))

    def _decode_piece(self, piece: Piece) -> tuple[str, bytes]:
        if isinstance(piece, str):
            return piece, b""
        decoder = _UTF8_DECODER("ignore")
        text = decoder.decode(self._unfinished + piece)
        return text, decoder.getstate()[0]
