"""The peer: transformers' continuous batching (`generate_batch`), the same shapes and workload in the same run."""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from gpu_parts.cases import WORKLOADS, Case
from gpu_parts.part import Bench, Part, Row
from gpu_parts.shapes import model_directory


def generate(case: Case, bench: Bench) -> list[Row]:
    """The workload of the engine's `offline` part; from the first request's creation to the last token's time stamp.

    Warm-up and graph capture happen before the requests are created. Attention is scaled_dot_product_attention, which
    needs no further package.
    """
    case.check_fits(bench, bench.output_len)
    num_seqs, context = case.scaled(bench)
    shape = case.shape(bench)
    path = model_directory(shape, bench.folder)
    model = bench.model(f"transformers:{shape.name}", lambda: _load(path, bench))
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(1, shape.vocab_size, (context,), generator=generator).tolist() for _ in range(num_seqs)]
    outputs = _run(model, prompts, bench.output_len)
    num_tokens = sum(len(output.generated_tokens) for output in outputs)
    if len(outputs) != num_seqs or num_tokens != num_seqs * bench.output_len:
        errors = {output.error for output in outputs if output.error}
        raise RuntimeError(f"{len(outputs)} of {num_seqs} requests with {num_tokens} tokens came back: {errors}")
    took_s = max(output.timestamps[-1] for output in outputs) - min(output.created_time for output in outputs)
    return [
        {
            "name": f"transformers, {case.shape_name}, {num_seqs} x {context} -> {bench.output_len}",
            "output_tokens_per_s": num_tokens / took_s,
            "duration_s": took_s,
        }
    ]


def _load(path: Path, bench: Bench) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(path)
    with torch.device(bench.device):
        model = AutoModelForCausalLM.from_config(config, dtype=bench.dtype, attn_implementation="sdpa")
    return model.eval()


def _run(model: Any, prompts: list[list[int]], output_len: int) -> list[Any]:
    from transformers import GenerationConfig

    # There is no end-of-sequence token, so that every request generates all its tokens.
    config = GenerationConfig(max_new_tokens=output_len, do_sample=False, eos_token_id=-1, pad_token_id=0)
    outputs = model.generate_batch(prompts, generation_config=config, record_timestamps=True)
    return list(outputs.values())


PARTS = tuple(Part(f"transformers:{case.name}", partial(generate, case), 240.0) for case in WORKLOADS)
