"""Maps architectures, as config.json names them, to families."""

from difflib import get_close_matches

from pagewire_shard.errors import UnsupportedArchitecture
from pagewire_shard.models.afmoe import AFMOE
from pagewire_shard.models.apertus import APERTUS
from pagewire_shard.models.bamba import BAMBA
from pagewire_shard.models.bloom import BLOOM
from pagewire_shard.models.cohere import COHERE, COHERE2
from pagewire_shard.models.deepseek import DEEPSEEK_V2, DEEPSEEK_V3, GLM4_MOE_LITE
from pagewire_shard.models.dots1 import DOTS1
from pagewire_shard.models.ernie4_5 import ERNIE4_5
from pagewire_shard.models.ernie4_5_moe import ERNIE4_5_MOE
from pagewire_shard.models.exaone4 import EXAONE4
from pagewire_shard.models.exaone_moe import EXAONE_MOE
from pagewire_shard.models.falcon import FALCON
from pagewire_shard.models.falcon_h1 import FALCON_H1
from pagewire_shard.models.family import Family
from pagewire_shard.models.gemma import GEMMA, GEMMA2, GEMMA3, GEMMA3_TEXT, VAULT_GEMMA
from pagewire_shard.models.gemma4 import GEMMA4, GEMMA4_TEXT
from pagewire_shard.models.glm import GLM, GLM4
from pagewire_shard.models.glm4_moe import GLM4_MOE, SOLAR_OPEN
from pagewire_shard.models.gpt2 import GPT2
from pagewire_shard.models.gpt_bigcode import GPT_BIGCODE
from pagewire_shard.models.gpt_neox import GPT_NEOX, PERSIMMON
from pagewire_shard.models.gpt_oss import GPT_OSS
from pagewire_shard.models.gptj import CODEGEN, GPTJ
from pagewire_shard.models.granite import GRANITE, GRANITE_MOE, GRANITE_MOE_SHARED
from pagewire_shard.models.granite_hybrid import GRANITE_MOE_HYBRID
from pagewire_shard.models.granite_swa import GRANITE_MOE_SWA, GRANITE_SWA
from pagewire_shard.models.helium import HELIUM
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.hunyuan import HUNYUAN, HUNYUAN_MOE, HY_V3
from pagewire_shard.models.hyperclovax import HYPERCLOVAX
from pagewire_shard.models.lfm2 import LFM2, LFM2_MOE
from pagewire_shard.models.llama import CWM, INTERNLM3, LLAMA, MINISTRAL, MISTRAL
from pagewire_shard.models.mamba2 import MAMBA2
from pagewire_shard.models.mellum import MELLUM
from pagewire_shard.models.minicpm3 import MINICPM3
from pagewire_shard.models.minimax_m2 import MINIMAX_M2
from pagewire_shard.models.ministral3 import MINISTRAL3
from pagewire_shard.models.mistral4 import MISTRAL4
from pagewire_shard.models.mixtral import MIXTRAL
from pagewire_shard.models.mpt import MPT
from pagewire_shard.models.multimodal import DEFAULT_TEXT_TYPES, text_part
from pagewire_shard.models.nanochat import NANOCHAT
from pagewire_shard.models.nemotron_h import NEMOTRON_H
from pagewire_shard.models.olmo import OLMO
from pagewire_shard.models.olmo2 import OLMO2, OLMO3
from pagewire_shard.models.olmo_hybrid import OLMO_HYBRID
from pagewire_shard.models.olmoe import FLEX_OLMO, OLMOE
from pagewire_shard.models.opt import OPT
from pagewire_shard.models.phi import PHI
from pagewire_shard.models.phi3 import PHI3
from pagewire_shard.models.phimoe import PHIMOE
from pagewire_shard.models.plain_mlp import ARCEE, JAIS2, NEMOTRON, STARCODER2
from pagewire_shard.models.qwen2 import QWEN2
from pagewire_shard.models.qwen2_moe import QWEN2_MOE
from pagewire_shard.models.qwen3 import QWEN3
from pagewire_shard.models.qwen3_moe import QWEN3_MOE
from pagewire_shard.models.qwen3_next import QWEN3_5, QWEN3_5_MOE, QWEN3_NEXT
from pagewire_shard.models.seed_oss import SEED_OSS
from pagewire_shard.models.smollm3 import SMOLLM3
from pagewire_shard.models.stablelm import STABLELM
from pagewire_shard.models.youtu import YOUTU

FAMILIES: dict[str, Family] = {
    "AfmoeForCausalLM": AFMOE,
    "ApertusForCausalLM": APERTUS,
    "ArceeForCausalLM": ARCEE,
    "BambaForCausalLM": BAMBA,
    "BloomForCausalLM": BLOOM,
    "CodeGenForCausalLM": CODEGEN,
    "Cohere2ForCausalLM": COHERE2,
    "CohereForCausalLM": COHERE,
    "CwmForCausalLM": CWM,
    "DeepseekV2ForCausalLM": DEEPSEEK_V2,
    "DeepseekV3ForCausalLM": DEEPSEEK_V3,
    "Dots1ForCausalLM": DOTS1,
    "Ernie4_5ForCausalLM": ERNIE4_5,
    "Ernie4_5_MoeForCausalLM": ERNIE4_5_MOE,
    "Exaone4ForCausalLM": EXAONE4,
    "ExaoneMoeForCausalLM": EXAONE_MOE,
    "FalconForCausalLM": FALCON,
    "FalconH1ForCausalLM": FALCON_H1,
    "FlexOlmoForCausalLM": FLEX_OLMO,
    "GPT2LMHeadModel": GPT2,
    "GPTBigCodeForCausalLM": GPT_BIGCODE,
    "GPTJForCausalLM": GPTJ,
    "GPTNeoXForCausalLM": GPT_NEOX,
    "Gemma2ForCausalLM": GEMMA2,
    "Gemma3ForCausalLM": GEMMA3_TEXT,
    "Gemma3ForConditionalGeneration": GEMMA3,
    "Gemma4ForCausalLM": GEMMA4_TEXT,
    "Gemma4ForConditionalGeneration": GEMMA4,
    "GemmaForCausalLM": GEMMA,
    "Glm4ForCausalLM": GLM4,
    "Glm4MoeForCausalLM": GLM4_MOE,
    "Glm4MoeLiteForCausalLM": GLM4_MOE_LITE,
    "GlmForCausalLM": GLM,
    "GptOssForCausalLM": GPT_OSS,
    "GraniteForCausalLM": GRANITE,
    "GraniteMoeForCausalLM": GRANITE_MOE,
    "GraniteMoeHybridForCausalLM": GRANITE_MOE_HYBRID,
    "GraniteMoeSWAForCausalLM": GRANITE_MOE_SWA,
    "GraniteMoeSharedForCausalLM": GRANITE_MOE_SHARED,
    "GraniteSWAForCausalLM": GRANITE_SWA,
    "HYV3ForCausalLM": HY_V3,
    "HeliumForCausalLM": HELIUM,
    "HunYuanDenseV1ForCausalLM": HUNYUAN,
    "HunYuanMoEV1ForCausalLM": HUNYUAN_MOE,
    "HyperCLOVAXForCausalLM": HYPERCLOVAX,
    "InternLM3ForCausalLM": INTERNLM3,
    "Jais2ForCausalLM": JAIS2,
    "Lfm2ForCausalLM": LFM2,
    "Lfm2MoeForCausalLM": LFM2_MOE,
    "LlamaForCausalLM": LLAMA,
    "MPTForCausalLM": MPT,
    "Mamba2ForCausalLM": MAMBA2,
    "MellumForCausalLM": MELLUM,
    "MiniCPM3ForCausalLM": MINICPM3,
    "MiniMaxM2ForCausalLM": MINIMAX_M2,
    "Ministral3ForCausalLM": MINISTRAL3,
    "MinistralForCausalLM": MINISTRAL,
    "Mistral4ForCausalLM": MISTRAL4,
    "MistralForCausalLM": MISTRAL,
    "MixtralForCausalLM": MIXTRAL,
    "MptForCausalLM": MPT,
    "NanoChatForCausalLM": NANOCHAT,
    "NemotronForCausalLM": NEMOTRON,
    "NemotronHForCausalLM": NEMOTRON_H,
    "OPTForCausalLM": OPT,
    "Olmo2ForCausalLM": OLMO2,
    "Olmo3ForCausalLM": OLMO3,
    "OlmoForCausalLM": OLMO,
    "OlmoHybridForCausalLM": OLMO_HYBRID,
    "OlmoeForCausalLM": OLMOE,
    "PersimmonForCausalLM": PERSIMMON,
    "Phi3ForCausalLM": PHI3,
    "PhiForCausalLM": PHI,
    "PhimoeForCausalLM": PHIMOE,
    "Qwen2ForCausalLM": QWEN2,
    "Qwen2MoeForCausalLM": QWEN2_MOE,
    "Qwen3ForCausalLM": QWEN3,
    "Qwen3MoeForCausalLM": QWEN3_MOE,
    "Qwen3NextForCausalLM": QWEN3_NEXT,
    "Qwen3_5ForCausalLM": QWEN3_5,
    "Qwen3_5MoeForCausalLM": QWEN3_5_MOE,
    "SeedOssForCausalLM": SEED_OSS,
    "SmolLM3ForCausalLM": SMOLLM3,
    "SolarOpenForCausalLM": SOLAR_OPEN,
    "StableLmForCausalLM": STABLELM,
    "Starcoder2ForCausalLM": STARCODER2,
    "VaultGemmaForCausalLM": VAULT_GEMMA,
    "YoutuForCausalLM": YOUTU,
}

SUPPORTED = sorted([*FAMILIES, *DEFAULT_TEXT_TYPES])
"""All architectures, those of which only the text model is served included."""
SAVED_AS: dict[tuple[str, object], str] = {("LlamaForCausalLM", "internlm3"): "InternLM3ForCausalLM"}
"""Architecture and model_type that a checkpoint names -> architecture, of families that share another's code."""


def find_family(fields: ConfigFields) -> tuple[str, Family]:
    """The first supported architecture that a configuration names, and its family; without `architectures`, model_type
    decides.

    Raises:
        ModelError: the configuration names neither.
        UnsupportedArchitecture: none of those it names is supported; the message lists the supported ones and says
            which is nearest by its name.
    """
    named = fields.texts("architectures") or ()
    if not named:
        model_type = fields.raw("model_type")
        if not isinstance(model_type, str):
            raise fields.malformed("architectures", "must name the model's architecture, or model_type its family")
        named = tuple(name for name, family in FAMILIES.items() if family.model_type == model_type)
        if not named:
            raise fields.unsupported("model_type", ", ".join(sorted(family.model_type for family in FAMILIES.values())))
    for architecture in named:
        if architecture in DEFAULT_TEXT_TYPES:
            return architecture, text_part(fields, architecture, FAMILIES.values())
        if architecture in FAMILIES:
            architecture = SAVED_AS.get((architecture, fields.raw("model_type")), architecture)
            return architecture, FAMILIES[architecture]
    nearest = get_close_matches(named[0], SUPPORTED, n=1)
    advice = f"; the nearest is {nearest[0]}" if nearest else ""
    raise UnsupportedArchitecture(
        f"{fields.path}: architecture {named[0]!r} is not supported; supported: {', '.join(SUPPORTED)}{advice}"
    )
