"""One engine in a process of its own; needs nothing but that engine.

Standard output says {"engine": name and version, "import_s": ..., "start_s": ...} when the engine is ready. Then each
line of standard input asks for a run, {"prompts": [[token ids]], "max_tokens": [n], "sampling": {...}}, and is answered
with what it took. An engine that fails ends the process.
"""

import gc
import json
import os
import sys
import time
from importlib import metadata
from typing import Any

VLLM_ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_HOST_IP": "127.0.0.1"}
"""A benchmark needs no network."""


def load(engine: str, options: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """Starts an engine.

    Returns:
        Its LLM object, its class of sampling parameters, and what the start took.
    """
    began_s = time.perf_counter()
    if engine == "vllm":
        os.environ.update({name: os.environ.get(name, value) for name, value in VLLM_ENVIRONMENT.items()})
        from vllm import LLM, SamplingParams
    else:
        from pagewire import LLM, SamplingParams
    imported_s = time.perf_counter()
    llm = LLM(**options)
    ready_s = time.perf_counter()
    start = {"import_s": imported_s - began_s, "start_s": ready_s - imported_s}
    return llm, SamplingParams, {"engine": f"{engine} {version(engine)}"} | start


def version(engine: str) -> str:
    """Of the installed engine; its sources may also be on the path alone."""
    try:
        return metadata.version(engine)
    except metadata.PackageNotFoundError:
        return "from sources"


def run(llm: Any, sampling_params: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Generates for one batch. The time is that of the call alone."""
    inputs = [{"prompt_token_ids": ids} for ids in request["prompts"]]
    fixed = {"ignore_eos": True, "detokenize": False} | request["sampling"]
    params = [sampling_params(max_tokens=count, **fixed) for count in request["max_tokens"]]
    gc.collect()
    began_s = time.perf_counter()
    outputs = llm.generate(inputs, params, use_tqdm=False)
    seconds = time.perf_counter() - began_s
    return {
        "seconds": seconds,
        "num_output_tokens": [len(output.outputs[0].token_ids) for output in outputs],
        "num_cached_tokens": sum(output.num_cached_tokens or 0 for output in outputs),
    }


def main() -> None:
    """Loads the engine of the command line and takes turns until standard input ends."""
    # Output of libraries goes to standard error, since standard output carries the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    llm, sampling_params, start = load(sys.argv[1], json.loads(sys.argv[2]))
    print(json.dumps(start), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(run(llm, sampling_params, json.loads(line))), file=answers, flush=True)
    if hasattr(llm, "close"):
        llm.close()


if __name__ == "__main__":
    main()
