"""Lark text in llguidance's dialect: literals, and grammars that are written with `::=`."""

import json
import re
from collections.abc import Collection

from llguidance.gbnf_to_lark import gbnf_to_lark

from pagewire_shard.grammar.errors import SourceRefused

ANY_TEXT = r"/(.|\n)*/"
"""Any text without special tokens."""
_GBNF_RULE = re.compile(r"^\s*[\w-]+\s*::=", re.MULTILINE)


def literal(text: str, special_tokens: Collection[str]) -> str:
    """The rule part that matches a text. A special token in it stands for the token itself, not for its letters."""
    return " ".join(
        piece if piece in special_tokens else json.dumps(piece, ensure_ascii=False)
        for piece in pieces(text, special_tokens)
    )


def pieces(text: str, special_tokens: Collection[str]) -> list[str]:
    """The text cut before and behind each special token; longer tokens come before those that they begin with."""
    found = [token for token in special_tokens if token in text]
    if not found:
        return [text] if text else []
    pattern = "|".join(map(re.escape, sorted(found, key=len, reverse=True)))
    return [piece for piece in re.split(f"({pattern})", text) if piece]


def to_lark(grammar: str) -> str:
    """A grammar in Lark's notation, translated if it is written with `::=`. Raises SourceRefused."""
    if not _GBNF_RULE.search(grammar):
        return grammar
    try:
        return gbnf_to_lark(grammar)
    except Exception as error:  # the translation raises bare Exceptions
        raise SourceRefused(f"the grammar cannot be read as EBNF: {error}") from error
