"""Offline throughput: pagewire.LLM.generate, router and gRPC included, against transformers' batched generate.

Both run on all cores of this machine, in turns, on the same random prompts. transformers computes in float32 whatever
--dtype says: its half-precision kernels are far slower on CPUs without hardware for them. peers.py has it in bfloat16.
"""

import argparse
from dataclasses import asdict

from contest import Batch, Entrant, compete, print_contest
from machine import save_result
from models import LLAMA_110M, SHAPES, model_directory


def main() -> None:
    """Runs the contest, prints a table and keeps the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", choices=sorted(SHAPES), default=LLAMA_110M.name)
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of pagewire's weights"
    )
    parser.add_argument("--num-prompts", type=int, default=16)
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument("--num-turns", type=int, default=5)
    args = parser.parse_args()
    shape = SHAPES[args.model]
    batch = Batch(args.num_prompts, args.input_len, args.output_len, shape.vocab_size)
    entrants = [Entrant("pagewire", args.dtype), Entrant("transformers", "float32")]
    result = compete(entrants, model_directory(shape), batch, args.num_turns)
    print_contest(f"{shape.name}: {batch.num_prompts} prompts x {batch.input_len} -> {batch.output_len} tokens", result)
    settings = {"model": asdict(shape), "batch": asdict(batch), "num_turns": args.num_turns}
    save_result(f"offline-{shape.name}-{args.dtype}", settings, result)


if __name__ == "__main__":
    main()
