"""How sources are read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Part = dict[str, Any]
"""One entry of llguidance's list of grammars: `lark_grammar` or `json_schema`, and a `name` unless it is the start."""


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """The same for all requests of a shard."""

    special_tokens: Mapping[str, int]
    """Ids of the vocabulary's special tokens by their text."""
    eos_token_ids: tuple[int, ...]
    """The model's end-of-sequence tokens."""
    coerce_one_of: bool = False
    """Reads `oneOf` as `anyOf` where its options cannot be told apart."""
    lenient: bool = False
    """Ignores keywords and formats of JSON schemas that are not supported."""
