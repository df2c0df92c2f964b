"""`pagewire complete TEXT`: continues a text, token by token."""

import argparse
import sys
from collections.abc import Sequence

from pagewire.beam_search import BeamSearchParams
from pagewire.cli.request_flags import add_request_flags, given_parameters, request_options_from, sampling_params_from
from pagewire.cli.server_flags import add_server_flags, connection_from
from pagewire.errors import InvalidRequest
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
    parser.add_argument(
        "--beam-width",
        type=int,
        metavar="N",
        default=argparse.SUPPRESS,
        help="search for the most probable continuations with N beams instead of sampling",
    )
    parser.add_argument(
        "--length-penalty",
        type=float,
        metavar="F",
        default=argparse.SUPPRESS,
        help="with --beam-width: above 0 favours long continuations, below 0 short ones (default: 1)",
    )
    add_server_flags(parser)
    add_request_flags(parser, max_tokens=128)


def run(args: argparse.Namespace) -> int:
    """Prints the continuation, without the text."""
    from pagewire.cli.streaming import Reply, show, show_prompt_logprobs
    from pagewire.client import Client

    if hasattr(args, "beam_width"):
        return _search(args)
    if hasattr(args, "length_penalty"):
        raise InvalidRequest.of_field("--length-penalty", "given without --beam-width")
    params = sampling_params_from(args)
    options = request_options_from(args)
    text = _text_from(args)
    with Client(**connection_from(args)) as client:
        if params.n > 1 or args.no_stream:
            answer = client.complete(text, params, **options)
            show_prompt_logprobs(answer.prompt_logprobs or ())
            _show([output.text for output in answer.outputs])
            return 0
        show(client.generate(text, params, **options), Reply())
    print()
    return 0


def _search(args: argparse.Namespace) -> int:
    """Prints what a beam search finds: one continuation, unless --n says otherwise."""
    from pagewire.client import Client

    known = BeamSearchParams.__dataclass_fields__
    given = given_parameters(args)
    if unknown := given.keys() - known.keys():
        flags = ", ".join(sorted("--" + name.replace("_", "-") for name in unknown))
        raise InvalidRequest.of_field("--beam-width", f"given with {flags}, which are for sampling")
    own = {name: getattr(args, name) for name in ("beam_width", "length_penalty") if hasattr(args, name)}
    params = BeamSearchParams(**{"n": 1, **given, **own})
    text = _text_from(args)
    with Client(**connection_from(args)) as client:
        output = client.beam_search(text, params, **request_options_from(args))
    _show([(sequence.text or "").removeprefix(text) for sequence in output.sequences])
    return 0


def _text_from(args: argparse.Namespace) -> str:
    return sys.stdin.read() if args.text == "-" else str(args.text)


def _show(texts: Sequence[str]) -> None:
    if len(texts) == 1:
        print(texts[0])
        return
    for index, text in enumerate(texts):
        print(f"[{index}]\n{text}")
