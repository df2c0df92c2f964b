"""Writes SmolLM2-135M-Instruct as a Hugging Face folder. Arguments: a folder that has its GGUF, and the new one."""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

OF_THE_FILE = {"quantization_config", "dtype", "torch_dtype", "transformers_version", "architectures", "model_type"}
"""Entries of the configuration that say how the GGUF is stored."""


def build(packages: Path, folder: Path) -> None:
    """Reads the only GGUF below `packages` and writes the folder."""
    (source,) = packages.rglob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    config = {key: value for key, value in loaded.config.to_dict().items() if key not in OF_THE_FILE}
    model = LlamaForCausalLM(LlamaConfig(**config)).to(torch.float16)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.save_pretrained(folder)
    # Last: its files say that the folder is whole.
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(sys.argv[2]))
