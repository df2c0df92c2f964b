"""Which family reads which architecture."""

from pagewire_shard.errors import UnsupportedArchitecture
from pagewire_shard.loading.hf_config import HFConfig
from pagewire_shard.models.family import Family
from pagewire_shard.models.gpt2 import GPT2
from pagewire_shard.models.llama import LLAMA, MISTRAL
from pagewire_shard.models.mixtral import MIXTRAL
from pagewire_shard.models.opt import OPT
from pagewire_shard.models.phi import PHI
from pagewire_shard.models.qwen2 import QWEN2
from pagewire_shard.models.qwen3 import QWEN3
from pagewire_shard.models.qwen3_moe import QWEN3_MOE

FAMILIES: dict[str, Family] = {
    "GPT2LMHeadModel": GPT2,
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": MISTRAL,
    "MixtralForCausalLM": MIXTRAL,
    "OPTForCausalLM": OPT,
    "PhiForCausalLM": PHI,
    "Qwen2ForCausalLM": QWEN2,
    "Qwen3ForCausalLM": QWEN3,
    "Qwen3MoeForCausalLM": QWEN3_MOE,
}


def find_family(config: HFConfig) -> Family:
    """The family of the configuration's architecture.

    Raises:
        UnsupportedArchitecture: there is none; the message names those there are.
    """
    family = FAMILIES.get(config.architecture)
    if family is None:
        raise UnsupportedArchitecture(
            f"{config.fields.path}: architecture {config.architecture!r} is not supported; "
            f"supported: {', '.join(FAMILIES)}"
        )
    return family
