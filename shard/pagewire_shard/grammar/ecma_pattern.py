"""Patterns of JSON schemas are ECMA 262's, whose whitespace is not that of other regular expressions."""

_WHITESPACE = r"\t\n\v\f\r \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
"""ECMA 262: WhiteSpace and LineTerminator, as the inside of a character class."""


def spell_out_whitespace(pattern: str) -> str:
    r"""The pattern with `\s` and `\S` as character classes. A `\S` within a class stays as it is."""
    parts: list[str] = []
    in_class = False
    characters = iter(pattern)
    for character in characters:
        if character == "\\":
            parts.append(_escaped(next(characters, ""), in_class))
            continue
        in_class = character == "[" or (in_class and character != "]")
        parts.append(character)
    return "".join(parts)


def _escaped(character: str, in_class: bool) -> str:
    if character == "s":
        return _WHITESPACE if in_class else f"[{_WHITESPACE}]"
    if character == "S" and not in_class:
        return f"[^{_WHITESPACE}]"
    return f"\\{character}"
