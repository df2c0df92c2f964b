"""Builds a decoder from a Hugging Face model directory, or with random weights from its config.json alone."""

import logging
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pagewire_shard.config import Dtype, LoadFormat
from pagewire_shard.errors import BadOption
from pagewire_shard.layers.precision import resolve_precision
from pagewire_shard.layers.weights import Weights
from pagewire_shard.loading import mxfp4
from pagewire_shard.loading.checkpoint import CheckpointFile, checkpoint_files, stored_dtype
from pagewire_shard.loading.sliced import SlicedParameter, copy_rows, sliced_parameters
from pagewire_shard.loading.weight_reader import read_weights
from pagewire_shard.models.decoder import Decoder, DecoderSpec
from pagewire_shard.models.hf_config import HFConfig, describe, read_config_fields
from pagewire_shard.models.registry import find_family
from pagewire_shard.parallel.collectives import Collectives
from pagewire_shard.parallel.ranks import ALONE, CannotShare, Ranks
from pagewire_shard.parallel.stage import WHOLE, Stage

logger = logging.getLogger(__name__)

MAX_TENSOR_PARALLEL_SIZE = 64
"""Sizes up to this are named to who asks for one that a model cannot be shared out by."""


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
    collectives: Collectives | None = None,
    stage: Stage = WHOLE,
) -> LoadedModel:
    """Loads the model in `model_dir`, or what one rank has of it.

    Args:
        dtype: see resolve_precision.
        load_format: auto: safetensors, or PyTorch files where there are none; safetensors: nothing else; dummy:
            random weights, a function of `seed` and the configuration alone; only config.json is read.
        hf_overrides: fields that replace those of config.json; objects are merged.
        collectives: of the ranks that share the model, or its stage, out; None: one device holds all of it.
        stage: the stage of a pipeline that is loaded.

    Raises:
        ModelNotFound: no such directory, or no config.json or checkpoint in it.
        UnsupportedArchitecture: the configuration asks for something the decoder does not implement.
        CorruptWeights: a weight file is damaged, incomplete or does not fit the configuration.
        BadOption: the dtype is unknown.
        ModelError: the configuration is malformed.
    """
    stated = read_config_fields(model_dir).replaced(hf_overrides or {})
    architecture, family = find_family(stated)
    config = describe(model_dir, architecture, family.complete(stated), family.quantizations)
    spec = family.spec(config.fields)
    own_spec = _own_stage(
        _own_spec(spec, collectives.ranks if collectives else ALONE, architecture), stage, architecture
    )
    files = [] if load_format == "dummy" else checkpoint_files(model_dir, allow_torch=load_format == "auto")
    _report_format(files)
    checkpoint_dtype = config.checkpoint_dtype
    if checkpoint_dtype is None and files:
        checkpoint_dtype = stored_dtype(files)
    precision = resolve_precision(device, dtype, checkpoint_dtype)
    with torch.inference_mode():
        weights = Weights(precision, collectives=collectives)
        if load_format == "dummy":
            fill_randomly(weights, spec, seed, stage)
        else:
            reads_mxfp4 = mxfp4.METHOD in family.quantizations
            read_weights(files, spec, family.names_of(spec), weights, stage=stage, reads_mxfp4=reads_mxfp4)
        model = Decoder(own_spec, weights)
    return LoadedModel(
        model=model,
        hf_config=config,
        dtype_name=precision.name,
        precision=precision.summary,
        cache_dtype=precision.activations,
        weight_bytes=weights.num_bytes,
    )


def _own_spec(spec: DecoderSpec, ranks: Ranks, architecture: str) -> DecoderSpec:
    try:
        return spec.for_rank(ranks)
    except CannotShare as error:
        all_sizes = range(1, MAX_TENSOR_PARALLEL_SIZE + 1)
        sizes = [size for size in all_sizes if _can_share(spec, replace(ranks, rank=0, size=size))]
        raise BadOption(
            f"--tensor-parallel-size {ranks.size}: the {error} of {architecture} cannot be shared out among so many "
            f"ranks; the model takes {', '.join(map(str, sizes))}"
        ) from None


def _own_stage(spec: DecoderSpec, stage: Stage, architecture: str) -> DecoderSpec:
    try:
        return spec.for_stage(stage)
    except CannotShare as error:
        raise BadOption(f"--pipeline-parallel-size {stage.count}: {architecture}: its {error}") from None


def _can_share(spec: DecoderSpec, ranks: Ranks) -> bool:
    try:
        spec.for_rank(ranks)
    except CannotShare:
        return False
    return True


def _report_format(files: list[CheckpointFile]) -> None:
    if files and files[0].path.suffix != ".safetensors":
        logger.warning(
            "%s: no safetensors in the model's directory; its PyTorch files are read with torch's restricted loader "
            "(--load-format safetensors refuses them)",
            files[0].path,
        )


def fill_randomly(weights: Weights, spec: DecoderSpec, seed: int, stage: Stage = WHOLE) -> None:
    """Fills `weights` with normally distributed matrices, norms that scale by 1, and biases of 0; of a decoder that is
    the same however many ranks and stages share it out."""
    device, ranks = weights.precision.device, weights.collectives.ranks
    own = spec.for_rank(ranks).for_stage(stage)
    for name, sliced in sliced_parameters(spec, own).items():
        tensors = {}
        for tensor_name, tensor_spec in weights.specs(sliced.whole).items():
            tensor = torch.empty(tensor_spec.shape, dtype=tensor_spec.dtype, device=device)
            if tensor_spec.dummy is not None:
                tensor.fill_(tensor_spec.dummy)
            else:
                # One generator for each tensor, so that its values do not depend on the other tensors.
                generator = torch.Generator(device).manual_seed(zlib.crc32(f"{seed} {name}.{tensor_name}".encode()))
                tensor.normal_(0.0, spec.initializer_range, generator=generator)
            tensors[tensor_name] = tensor if ranks.is_alone else _own_part(weights, sliced, tensor_name, tensor)
        weights.put(name, sliced.own, tensors, is_partial=sliced.slice.is_partial)
    if spec.tied_embeddings and own.stage.is_last:
        weights.tie_output(own.lm_head)
    if not own.stage.is_first:
        weights.drop_embeddings()


def _own_part(weights: Weights, sliced: SlicedParameter, name: str, whole: torch.Tensor) -> torch.Tensor:
    own = whole.new_zeros(weights.specs(sliced.own)[name].shape)
    if name != "bias" or sliced.slice.has_bias:
        copy_rows(whole, sliced.slice.runs(None), sliced.slice.columns, None, own)
    return own
