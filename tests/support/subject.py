"""One small random model, both in transformers and here, with greedy answers to prompts of many lengths."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from model_world import CPU, MakeRunner, ModelWorld
from pagewire_router.scheduling.scheduler import GroupLimits
from pagewire_shard.execution.model_runner import ModelRunner
from pagewire_shard.loading.model_loader import load_model
from pagewire_shard.models.decoder import Decoder
from random_models import MAX_LEN, family_configs, random_model, random_prompts
from reference_model import Expected, ReferenceModel

PROMPT_LENS = (1, 2, 7, 16, 33, 70)
NUM_TOKENS = 20


@dataclass(frozen=True)
class Subject:
    """The same weights in transformers and here."""

    name: str
    reference: ReferenceModel
    model: Decoder
    greedy: list[Expected]
    """NUM_TOKENS tokens after prompts of PROMPT_LENS."""

    device: torch.device = CPU
    dtype: torch.dtype = torch.float32

    def world(self, *, window: int = 2, make_runner: MakeRunner = ModelRunner, **limits: Any) -> ModelWorld:
        """limits are GroupLimits'; the pool is ample unless they say otherwise."""
        values = {
            "num_blocks": 4096 // limits.get("block_size", 16),
            "block_size": 16,
            "max_num_seqs": 16,
            "max_num_batched_tokens": 512,
            "max_model_len": MAX_LEN,
        } | limits
        return ModelWorld(
            self.model, GroupLimits(**values), window, make_runner=make_runner, device=self.device, dtype=self.dtype
        )


def subject(name: str, directory: Path, device: torch.device = CPU) -> Subject:
    """The family of that name, saved in the directory; float32."""
    model = random_model(family_configs()[name])
    model.save_pretrained(directory)
    reference = ReferenceModel(model.to(device))
    greedy = [reference.generate(prompt, NUM_TOKENS) for prompt in random_prompts(PROMPT_LENS)]
    return Subject(name, reference, load_model(directory, device=device, dtype="float32").model, greedy, device)
