"""`pagewire complete TEXT`: continues a text, token by token."""

import argparse
import sys

from pagewire.cli.request_flags import add_request_flags, request_options_from, sampling_params_from
from pagewire.cli.server_flags import add_server_flags, connection_from
from pagewire.text import from_command_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the subcommand's arguments."""
    parser.add_argument(
        "text", metavar="TEXT", type=from_command_line, help='what to continue; "-" reads standard input'
    )
    parser.add_argument("--no-stream", action="store_true", help="print the whole answer at once")
    parser.add_argument(
        "--n",
        type=int,
        metavar="N",
        default=argparse.SUPPRESS,
        help="continuations to sample; several are printed at once, each after a line with its number (default: 1)",
    )
    parser.add_argument(
        "--prompt-logprobs",
        type=int,
        metavar="N",
        default=argparse.SUPPRESS,
        help="print a line for each token of TEXT but the first: its log-probability, rank and text, then the N most "
        "probable tokens in its place (default: no lines)",
    )
    add_server_flags(parser)
    add_request_flags(parser, max_tokens=128)


def run(args: argparse.Namespace) -> int:
    """Prints the continuation, without the text."""
    from pagewire.cli.streaming import Reply, show, show_prompt_logprobs
    from pagewire.client import Client

    params = sampling_params_from(args)
    options = request_options_from(args)
    text = sys.stdin.read() if args.text == "-" else args.text
    with Client(**connection_from(args)) as client:
        if params.n > 1 or args.no_stream:
            answer = client.complete(text, params, **options)
            show_prompt_logprobs(answer.prompt_logprobs or ())
            if params.n == 1:
                print(answer.outputs.text)
            else:
                for output in answer.outputs:
                    print(f"[{output.index}]\n{output.text}")
            return 0
        show(client.generate(text, params, **options), Reply())
    print()
    return 0
