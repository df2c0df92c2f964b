"""Logits processors that tests load, by name from this file or as classes."""

from typing import Any

import torch
from pagewire_shard.logits_processors import (
    AdapterLogitsProcessor,
    BatchUpdate,
    LogitsProcessor,
    ProcessorConfig,
    RequestLogitsProcessor,
    process_dict_updates,
)


def chained(prompt_ids: list[int], output_ids: list[int], vocab_size: int) -> int:
    """A token that follows from all tokens before it, and is none of the first ones, which are special."""
    value = 7
    for token_id in (*prompt_ids, -1, *output_ids):
        value = (value * 31 + token_id + 2) % 1_000_003
    return 16 + value % (vocab_size - 16)


def args_of(params: Any) -> dict[str, Any]:
    """Arguments of a request; empty: it gave none."""
    return params.extra_args or {}


class Chain(LogitsProcessor):
    """Leaves rows that ask for it with `chain` one token, which follows from their history. As those of vLLM do, it
    keeps the state of rows by their index."""

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        if not isinstance(args_of(sampling_params).get("chain", 0), int):
            raise ValueError("chain is no integer")

    def __init__(self, vllm_config: ProcessorConfig, device: torch.device, is_pin_memory: bool) -> None:
        self.vocab_size = vllm_config.model_config.get_vocab_size()
        self.rows: dict[int, tuple[list[int], list[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(
            self.rows,
            batch_update,
            lambda params, prompt, output: (prompt or [], output) if args_of(params).get("chain") else None,
        )

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        for row, (prompt_ids, output_ids) in self.rows.items():
            token_id = chained(prompt_ids, output_ids, self.vocab_size)
            kept = logits[row, token_id].clone()
            logits[row] = float("-inf")
            logits[row, token_id] = kept
        return logits


class Failing(AdapterLogitsProcessor):
    """Raises for rows that ask for it, behind as many tokens as `fail_after` says."""

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: Any) -> RequestLogitsProcessor | None:
        after = args_of(params).get("fail_after")
        if after is None:
            return None

        def process(output_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
            logits.fill_(float("nan"))
            if len(output_ids) >= after:
                raise SystemExit(1) if args_of(params).get("exits") else RuntimeError("this is not for clients")
            return torch.zeros_like(logits)

        return process


class Sharpen(AdapterLogitsProcessor):
    """Leaves the tokens whose logit, divided by the temperature, is at most `within` below the largest."""

    def is_argmax_invariant(self) -> bool:
        return True

    def new_req_logits_processor(self, params: Any) -> RequestLogitsProcessor | None:
        within = args_of(params).get("within")
        if within is None:
            return None

        def process(prompt_ids: list[int], output_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
            return logits.masked_fill(logits < logits.max() - within, float("-inf"))

        return process
