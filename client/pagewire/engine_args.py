"""vLLM's EngineArgs: the options of a server as one object, and as flags of a program of one's own."""

import argparse
from typing import Any, Self

from pagewire.serve.engine_arguments import ENGINE_ARGUMENTS, FLAGS
from pagewire.serve.options import MODEL_OPTIONS


class EngineArgs:
    """The arguments of LLM, for LLMEngine.from_engine_args and AsyncLLM.from_engine_args.

    Args:
        model: directory of a Hugging Face model, or its id on the hub; None: the bundled demo model.
        **options: those of LLM. They are checked when a server is started with them.
    """

    def __init__(self, model: str | None = None, **options: Any) -> None:
        self.model = model
        self.options = options

    @staticmethod
    def add_cli_args(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        """Adds --model and a flag for each option to a parser, and returns it. What is not given is None."""
        group = parser.add_argument_group("model options")
        group.add_argument(
            "--model", metavar="MODEL", help="Hugging Face directory or hub id (default: the demo model)"
        )
        own = {option.name: option for option in MODEL_OPTIONS}
        for name in dict.fromkeys((*own, *ENGINE_ARGUMENTS)):
            option = own.get(name)
            text = option.help if option is not None and name not in ENGINE_ARGUMENTS else argparse.SUPPRESS
            flag = f"--{name.replace('_', '-')}"
            if name in FLAGS or (option is not None and option.type is bool):
                group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
            else:
                group.add_argument(flag, metavar="VALUE", help=text if option is None else option.help)
        return parser

    @classmethod
    def from_cli_args(cls, args: argparse.Namespace) -> Self:
        """The options among the attributes of parsed arguments."""
        names = (*(option.name for option in MODEL_OPTIONS), *ENGINE_ARGUMENTS)
        given = {name: getattr(args, name, None) for name in dict.fromkeys(names)}
        return cls(getattr(args, "model", None), **{name: value for name, value in given.items() if value is not None})
