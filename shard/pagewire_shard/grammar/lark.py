"""Lark text in llguidance's dialect: literals, tokens, and grammars that are written with `::=`."""

import json
import re
from collections.abc import Collection, Mapping

from llguidance import regex_to_lark
from llguidance.gbnf_to_lark import gbnf_to_lark

from pagewire_shard.grammar.errors import SourceRefused

ANY_TEXT = r"/(.|\n)*/"
"""Any text without special tokens."""
NO_TEXT = '""'
_GBNF_RULE = re.compile(r"^\s*[\w-]+\s*::=", re.MULTILINE)


def literal(text: str, special_tokens: Mapping[str, int]) -> str:
    """What matches a text. A special token in it stands for the token itself, not for its letters."""
    parts = [
        one_token(special_tokens[piece]) if piece in special_tokens else quoted(piece)
        for piece in pieces(text, special_tokens)
    ]
    return " ".join(parts) or NO_TEXT


def quoted(text: str) -> str:
    """What matches the letters of a text."""
    return json.dumps(text, ensure_ascii=False)


def regex(pattern: str) -> str:
    """What matches a regular expression, as a whole."""
    between_slashes = regex_to_lark(pattern, use_ascii="")
    return f"/{between_slashes}/" if pattern else NO_TEXT


def one_token(token_id: int) -> str:
    """What matches one token, special or not."""
    return f"<[{token_id}]>"


def any_token_but(token_ids: Collection[int]) -> str:
    """What matches one token, special or not, that is none of these."""
    return f"<[^{','.join(map(str, sorted(token_ids)))}]>"


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
    except RecursionError:
        raise SourceRefused("the grammar is nested too deeply") from None
    except Exception as error:  # the translation raises bare Exceptions
        raise SourceRefused(f"the grammar cannot be read as EBNF: {error}") from error
