"""Log-probabilities in the forms of OpenAI's API."""

from collections.abc import Sequence
from typing import Any

from pagewire.v1 import inference_pb2

MIN_LOGPROB = -9999.0
"""JSON has no infinity: the log-probability of a token that cannot come is written as this, as vLLM does."""


class LogprobsWriter:
    """Writes the log-probabilities of one sequence, in order."""

    def __init__(self, *, as_token_ids: bool, text_offset: int = 0) -> None:
        """
        Args:
            as_token_ids: tokens are written as token_id:ID in place of their text.
            text_offset: characters that precede the first token in the text of its choice.
        """
        self._as_token_ids = as_token_ids
        self._text_offset = text_offset

    def for_completion(self, entries: Sequence[inference_pb2.TokenLogprobs]) -> dict[str, Any]:
        """The logprobs object of /v1/completions for the next tokens."""
        tokens, offsets, tops = [], [], []
        for entry in entries:
            token = self._text(entry.token_id, entry.token_text)
            # There may be as many as the vocabulary has: the loops are the interpreter's own.
            top = dict(zip(self._names(entry), _all_finite(entry), strict=True))
            top.setdefault(token, _finite(entry.logprob))
            tokens.append(token)
            offsets.append(self._text_offset)
            tops.append(top)
            self._text_offset += len(entry.token_text)
        return {
            "tokens": tokens,
            "token_logprobs": [_finite(entry.logprob) for entry in entries],
            "top_logprobs": tops,
            "text_offset": offsets,
        }

    def for_prompt(
        self, token_id: int, text: str, entries: Sequence[inference_pb2.TokenLogprobs], echo: str
    ) -> dict[str, Any]:
        """The logprobs object of /v1/completions for the tokens of a prompt.

        Args:
            token_id: the prompt's first token, which has no log-probability.
            text: its text.
            entries: of the other tokens.
            echo: the prompt's text, without special tokens that the tokenizer has added.
        """
        self._text_offset = len(text) if echo.startswith(text) else 0
        told = self.for_completion(entries)
        told["text_offset"] = [0, *(min(offset, len(echo)) for offset in told["text_offset"])]
        told["tokens"].insert(0, self._text(token_id, text))
        told["token_logprobs"].insert(0, None)
        told["top_logprobs"].insert(0, None)
        self._text_offset = len(echo)
        return told

    @staticmethod
    def for_vllm(entries: Sequence[inference_pb2.TokenLogprobs]) -> list[dict[str, Any] | None]:
        """vLLM's prompt_logprobs: for each token of the prompt, of which the first has none, entries by token id.

        Args:
            entries: of the tokens but the first.
        """
        return [None, *map(_by_token_id, entries)]

    def for_chat(self, entries: Sequence[inference_pb2.TokenLogprobs]) -> dict[str, Any]:
        """The logprobs object of /v1/chat/completions for the next tokens."""
        content = []
        for entry in entries:
            top = [
                {"token": name, "logprob": logprob, "bytes": [*text.encode()]}
                for name, text, logprob in zip(self._names(entry), _texts(entry), _all_finite(entry), strict=True)
            ]
            token = self._chat_token(entry.token_id, entry.token_text, entry.logprob)
            content.append({**token, "top_logprobs": top})
        return {"content": content, "refusal": None}

    def _chat_token(self, token_id: int, text: str, logprob: float) -> dict[str, Any]:
        return {"token": self._text(token_id, text), "logprob": _finite(logprob), "bytes": list(text.encode())}

    def _names(self, entry: inference_pb2.TokenLogprobs) -> Sequence[str]:
        """What the most probable tokens are called."""
        return [f"token_id:{token_id}" for token_id in entry.top_token_ids] if self._as_token_ids else _texts(entry)

    def _text(self, token_id: int, text: str) -> str:
        return f"token_id:{token_id}" if self._as_token_ids else text


def _texts(entry: inference_pb2.TokenLogprobs) -> Sequence[str]:
    """Texts of the most probable tokens; empty ones if the model has no tokenizer."""
    return list(entry.top_token_texts) or [""] * len(entry.top_token_ids)


def _all_finite(entry: inference_pb2.TokenLogprobs) -> list[float]:
    """The log-probabilities of the most probable tokens."""
    logprobs = list(entry.top_logprobs)
    return logprobs if min(logprobs, default=0.0) >= MIN_LOGPROB else [max(each, MIN_LOGPROB) for each in logprobs]


def _finite(logprob: float) -> float:
    return max(logprob, MIN_LOGPROB)


def _by_token_id(entry: inference_pb2.TokenLogprobs) -> dict[str, Any]:
    """The token itself, then the most probable ones."""
    told = {str(entry.token_id): _described(entry.logprob, entry.rank, entry.token_text)}
    tops = zip(entry.top_token_ids, _all_finite(entry), _texts(entry), strict=True)
    for rank, (token_id, logprob, text) in enumerate(tops, 1):
        if token_id != entry.token_id:
            told[str(token_id)] = {"logprob": logprob, "rank": rank, "decoded_token": text}
    return told


def _described(logprob: float, rank: int, text: str) -> dict[str, Any]:
    return {"logprob": _finite(logprob), "rank": rank, "decoded_token": text}
