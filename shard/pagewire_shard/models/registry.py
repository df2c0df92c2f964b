"""Maps architectures, as config.json names them, to families."""

from pagewire_shard.errors import UnsupportedArchitecture
from pagewire_shard.models.cohere import COHERE
from pagewire_shard.models.family import Family
from pagewire_shard.models.gpt2 import GPT2
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA, MISTRAL
from pagewire_shard.models.mixtral import MIXTRAL
from pagewire_shard.models.opt import OPT
from pagewire_shard.models.phi import PHI
from pagewire_shard.models.qwen2 import QWEN2
from pagewire_shard.models.qwen3 import QWEN3
from pagewire_shard.models.qwen3_moe import QWEN3_MOE

FAMILIES: dict[str, Family] = {
    "CohereForCausalLM": COHERE,
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


def find_family(fields: ConfigFields) -> tuple[str, Family]:
    """The first supported architecture that a configuration names, and its family; without `architectures`, model_type
    decides.

    Raises:
        ModelError: the configuration names neither.
        UnsupportedArchitecture: none of those it names is supported; the message lists the supported ones.
    """
    named = fields.texts("architectures") or ()
    if not named:
        model_type = fields.raw("model_type")
        if not isinstance(model_type, str):
            raise fields.malformed("architectures", "must name the model's architecture, or model_type its family")
        named = tuple(name for name, family in FAMILIES.items() if family.model_type == model_type)
        if not named:
            raise fields.unsupported("model_type", ", ".join(family.model_type for family in FAMILIES.values()))
    for architecture in named:
        if architecture in FAMILIES:
            return architecture, FAMILIES[architecture]
    raise UnsupportedArchitecture(
        f"{fields.path}: architecture {named[0]!r} is not supported; supported: {', '.join(FAMILIES)}"
    )
