"""The names that routes have for the fields of GenerateRequest, for the errors that admission finds."""

import re

from pagewire_router.http_front.errors import RenameField
from pagewire_router.http_front.fields import FieldTable

_PARAMS = ("sampling_params.", "beam_search_params.")
_CONSTRAINT = re.compile(r"(?:sampling|beam_search)_params\.structured_outputs")
_OF_BEAMS = {"beam_width": "n"}
_TOKEN_IDS = "token_ids"
_NAME = re.compile(r"\w+")
_OF_MESSAGE = re.compile(r"(\[\d+\])\.json\b")


def renaming(table: FieldTable, prompt: str, **others: str) -> RenameField:
    """Maps paths to the names of a route.

    Args:
        table: the fields of the route.
        prompt: its field with the prompt.
        others: the route's name for sampling parameters that no field of the table sets, and for parts of a ChatPrompt.
    """

    def rename(field: str) -> str:
        if field.startswith(_PARAMS):
            param, rest = _split(field.partition(".")[2])
            param = _OF_BEAMS.get(param, param)
            return (others.get(param) or table.name_of(param) or param) + rest
        if field.startswith("chat."):
            part, rest = _split(field.removeprefix("chat."))
            return others.get(part, part) + _OF_MESSAGE.sub(r"\1", rest)
        if field in ("prompt", "text", "chat"):
            return prompt
        if field == "beam_search_params":
            return "use_beam_search"
        if field.startswith(_TOKEN_IDS):
            return prompt + field.removeprefix(_TOKEN_IDS).removeprefix(".ids")
        return field

    return rename


def naming(rename: RenameField, constraint: str) -> RenameField:
    """A renaming that knows which field says what the output must match."""

    def name(field: str) -> str:
        if match := _CONSTRAINT.match(field):
            return constraint + field[match.end() :]
        return rename(field)

    return name


def _split(path: str) -> tuple[str, str]:
    match = _NAME.match(path)
    end = match.end() if match else 0
    return path[:end], path[end:]
