"""`pagewire chat`: a conversation on the terminal, or with standard input read line by line."""

import argparse
import contextlib
import json
import sys
from typing import Any

from pagewire.cli.request_flags import add_request_flags, request_options_from, sampling_params_from
from pagewire.cli.server_flags import add_server_flags, connection_from
from pagewire.cli.streaming import Reply, show
from pagewire.client import Client
from pagewire.errors import InvalidRequest, PagewireError
from pagewire.prompts import ChatMessage, ChatPrompt
from pagewire.sampling_params import SamplingParams
from pagewire.text import from_command_line

HELP = "Ctrl-C stops a reply, /reset starts anew, Ctrl-D leaves."
CLOSED_STDIN = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the subcommand's arguments."""
    parser.add_argument("--system", metavar="TEXT", type=from_command_line, help="the system message")
    parser.add_argument(
        "--chat-template-kwargs",
        type=_json_object,
        metavar="JSON",
        help='further variables for the chat template, such as {"enable_thinking": false}',
    )
    add_server_flags(parser)
    add_request_flags(parser, max_tokens=1024)


class Conversation:
    """Holds the messages so far and gets the next one."""

    def __init__(
        self,
        client: Client,
        params: SamplingParams,
        system: str | None,
        chat_template_kwargs: dict[str, Any] | None = None,
        request_options: dict[str, Any] | None = None,
    ) -> None:
        """request_options: further arguments of Client.generate."""
        self._client = client
        self._params = params
        self._request_options = request_options or {}
        self._chat_template_kwargs = chat_template_kwargs
        self._opening: list[ChatMessage] = [] if system is None else [{"role": "system", "content": system}]
        self.messages = list(self._opening)

    def reset(self) -> None:
        """Drops all messages but the system message."""
        self.messages = list(self._opening)

    def answer(self, text: str) -> None:
        """Shows the reply to `text` as it comes. Ctrl-C ends it early; the part that was shown is kept as the reply.

        Raises:
            PagewireError: there is no reply; `text` is dropped from the conversation.
        """
        self.messages.append({"role": "user", "content": text})
        prompt: ChatPrompt = {"messages": self.messages, "chat_template_kwargs": self._chat_template_kwargs}
        reply = Reply()
        try:
            with (
                contextlib.suppress(KeyboardInterrupt),
                contextlib.closing(self._client.generate(prompt, self._params, **self._request_options)) as events,
            ):
                show(events, reply)
        except PagewireError:
            self.messages.pop()
            raise
        self.messages.append({"role": "assistant", "content": reply.text})


def run(args: argparse.Namespace) -> int:
    """Runs the conversation until the input ends."""
    params = sampling_params_from(args)
    interactive = sys.stdin.isatty()
    with Client(**connection_from(args)) as client:
        model = client.get_model()
        if not model.supports_chat:
            raise InvalidRequest(f"the model {model.name} has no chat template; `pagewire complete` continues text")
        if interactive:
            _greet(model.name)
        options = request_options_from(args)
        conversation = Conversation(client, params, args.system, args.chat_template_kwargs, options)
        while (line := _read_line(interactive)) is not None:
            _handle(conversation, line, interactive)
    return 0


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {exc}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return value


def _greet(model: str) -> None:
    import readline  # noqa: F401  gives input() history and editing

    from rich.console import Console

    Console().print(f"[bold]{model}[/bold]  [dim]{HELP}[/dim]")


def _read_line(interactive: bool) -> str | None:
    """Returns the next line; None at the end of input."""
    if not interactive:
        line = sys.stdin.readline()
        return None if line == CLOSED_STDIN else line.strip()
    while True:
        try:
            return input("> ").strip()
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:  # at the prompt, Ctrl-C drops the line, as in a shell
            print()


def _handle(conversation: Conversation, line: str, interactive: bool) -> None:
    if not line:
        return
    if line == "/reset":
        conversation.reset()
        return
    try:
        conversation.answer(line)
        print()
    except InvalidRequest as exc:
        if not interactive:
            raise
        print(f"error: {exc}", file=sys.stderr)
