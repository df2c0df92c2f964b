"""Reference pages of the command lines, from the parsers that read them."""

import argparse
import importlib
from collections.abc import Iterator

from pagewire.cli import COMMANDS

from docs_pages.markdown import NOTE, cell, table


def client_page() -> str:
    """Every subcommand of `pagewire`."""
    intro = (
        "# pagewire\n\n"
        "The command of the client package. `serve` and `demo` need the extras `router` and `shard`; the others need "
        "nothing but the base install.\n\n"
    )
    rows = [(f"[`pagewire {name}`](#pagewire-{name})", cell(command.help)) for name, command in COMMANDS.items()]
    sections = [_section(_subcommand_parser(name), level=2) for name in COMMANDS]
    return NOTE + "\n" + intro + table(("command", "what it does"), rows) + "\n" + "\n".join(sections)


def router_page() -> str:
    """`pagewire-router`."""
    from pagewire_router.cli import build_parser

    return NOTE + "\n" + _section(build_parser(), level=1)


def shard_page() -> str:
    """`pagewire-shard`."""
    from pagewire_shard.cli import build_parser

    return NOTE + "\n" + _section(build_parser(), level=1)


def _subcommand_parser(name: str) -> argparse.ArgumentParser:
    command = COMMANDS[name]
    parser = argparse.ArgumentParser(prog=f"pagewire {name}", description=command.description)
    importlib.import_module(command.module).add_arguments(parser)
    return parser


def _section(parser: argparse.ArgumentParser, *, level: int) -> str:
    """A heading, what the command does, its usage, and a table for each group of arguments."""
    # argparse's usage lines are not used: they repeat the tables, and each version of Python breaks them differently.
    positionals = [f"[{_value(a)}]" if a.nargs == "?" else _value(a) for a in parser._get_positional_actions()]
    usage = " ".join([parser.prog, *positionals, "[FLAGS]"])
    parts = [f"{'#' * level} {parser.prog}", parser.description or "", f"```text\n{usage}\n```"]
    for group in parser._action_groups:
        rows = list(_rows(parser, group))
        if rows:
            # argparse's default group titles are left out: arguments come first, then flags.
            title = "" if group.title in ("options", "positional arguments") else f"**{group.title}**\n\n"
            parts.append(title + table(("flag", "meaning"), rows).rstrip())
    return "\n\n".join(part for part in parts if part) + "\n"


def _rows(parser: argparse.ArgumentParser, group: argparse._ArgumentGroup) -> Iterator[tuple[str, str]]:
    for action in group._group_actions:
        if action.help == argparse.SUPPRESS:
            continue
        if not isinstance(action, argparse._HelpAction | argparse._VersionAction):
            yield _name(action), _meaning(parser, action)


def _name(action: argparse.Action) -> str:
    """How it is written: `--flag VALUE`, the positive and the negative form of a switch, or the argument's name."""
    if not action.option_strings:
        return f"`{_value(action)}`"
    if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction):
        return ", ".join(f"`{flag}`" for flag in action.option_strings)
    return cell(f"`{action.option_strings[0]} {_value(action)}`")


def _value(action: argparse.Action) -> str:
    """The placeholder of an argument's value."""
    choices = None if action.choices is None else "{" + ",".join(map(str, action.choices)) + "}"
    return str(action.metavar or choices or action.dest.upper()) + (" ..." if action.nargs == "+" else "")


def _meaning(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    text = cell((action.help or "") % {**vars(action), "prog": parser.prog})
    if action.required and action.option_strings:
        return f"{text} (required)"
    says_nothing = action.default is None or action.default is False or action.default == argparse.SUPPRESS
    if says_nothing or "default" in text or "if not given" in text:
        return text
    return f"{text} (default: {action.default})"
