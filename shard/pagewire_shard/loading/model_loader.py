"""Builds a decoder from a Hugging Face model directory, or with random weights from its config.json alone."""

import logging
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pagewire_shard.config import Dtype, LoadFormat
from pagewire_shard.layers.precision import resolve_precision
from pagewire_shard.layers.weights import Weights
from pagewire_shard.loading.checkpoint import CheckpointFile, checkpoint_files, stored_dtype
from pagewire_shard.loading.weight_reader import read_weights
from pagewire_shard.models.decoder import Decoder, DecoderSpec
from pagewire_shard.models.hf_config import HFConfig, describe, read_config_fields
from pagewire_shard.models.registry import find_family

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to run."""

    model: Decoder
    hf_config: HFConfig
    dtype_name: str
    """The weights' element type: float32, float16 or bfloat16."""
    precision: str
    """Element types and products, in words."""
    cache_dtype: torch.dtype
    """Of the KV cache."""
    weight_bytes: int
    """Memory the weights take on the device."""


def load_model(
    model_dir: Path,
    *,
    device: torch.device,
    dtype: Dtype = "auto",
    load_format: LoadFormat = "auto",
    seed: int = 0,
    hf_overrides: Mapping[str, Any] | None = None,
) -> LoadedModel:
    """Loads the model in `model_dir`.

    Args:
        dtype: see resolve_precision.
        load_format: auto: safetensors, or PyTorch files where there are none; safetensors: nothing else; dummy:
            random weights, a function of `seed` and the configuration alone; only config.json is read.
        hf_overrides: fields that replace those of config.json; objects are merged.

    Raises:
        ModelNotFound: no such directory, or no config.json or checkpoint in it.
        UnsupportedArchitecture: the configuration asks for something the decoder does not implement.
        CorruptWeights: a weight file is damaged, incomplete or does not fit the configuration.
        BadOption: the dtype is unknown.
        ModelError: the configuration is malformed.
    """
    stated = read_config_fields(model_dir).replaced(hf_overrides or {})
    architecture, family = find_family(stated)
    config = describe(model_dir, architecture, family.complete(stated))
    spec = family.spec(config.fields)
    files = [] if load_format == "dummy" else checkpoint_files(model_dir, allow_torch=load_format == "auto")
    _report_format(files)
    checkpoint_dtype = config.checkpoint_dtype
    if checkpoint_dtype is None and files:
        checkpoint_dtype = stored_dtype(files)
    precision = resolve_precision(device, dtype, checkpoint_dtype)
    with torch.inference_mode():
        weights = Weights(precision)
        if load_format == "dummy":
            fill_randomly(weights, spec, seed)
        else:
            read_weights(files, spec, family.names, weights)
        model = Decoder(spec, weights)
    return LoadedModel(
        model=model,
        hf_config=config,
        dtype_name=precision.name,
        precision=precision.summary,
        cache_dtype=precision.activations,
        weight_bytes=weights.num_bytes,
    )


def _report_format(files: list[CheckpointFile]) -> None:
    if files and files[0].path.suffix != ".safetensors":
        logger.warning(
            "%s: no safetensors in the model's directory; its PyTorch files are read with torch's restricted loader "
            "(--load-format safetensors refuses them)",
            files[0].path,
        )


def fill_randomly(weights: Weights, spec: DecoderSpec, seed: int) -> None:
    """Fills `weights` with normally distributed matrices, norms that scale by 1, and biases of 0."""
    device = weights.precision.device
    for name, parameter in spec.parameters().items():
        tensors = {}
        for tensor_name, tensor_spec in weights.specs(parameter).items():
            tensor = torch.empty(tensor_spec.shape, dtype=tensor_spec.dtype, device=device)
            if tensor_spec.dummy is not None:
                tensor.fill_(tensor_spec.dummy)
            else:
                # One generator for each tensor, so that its values do not depend on the other tensors.
                generator = torch.Generator(device).manual_seed(zlib.crc32(f"{seed} {name}.{tensor_name}".encode()))
                tensor.normal_(0.0, spec.initializer_range, generator=generator)
            tensors[tensor_name] = tensor
        weights.put(name, parameter, tensors)
    if spec.tied_embeddings:
        weights.tie_output(spec.lm_head)
