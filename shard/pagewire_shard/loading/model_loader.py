"""Builds a decoder from a Hugging Face model directory, or with random weights from its config.json alone.

Tensors are read one at a time into the parameter they are part of; a parameter that is complete is packed at once, so
that beside the packed weights about one parameter is in memory unpacked.
"""

import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from pagewire_shard.config import Dtype, LoadFormat
from pagewire_shard.errors import CorruptWeights
from pagewire_shard.loading.checkpoint import CheckpointTensor, read_tensors, stored_dtype
from pagewire_shard.loading.hf_config import HFConfig, read_hf_config
from pagewire_shard.loading.precision import Precision, resolve_precision
from pagewire_shard.models.decoder import Decoder
from pagewire_shard.models.names import NameMap, Target
from pagewire_shard.models.parameters import Parameter, parameters
from pagewire_shard.models.registry import find_family
from pagewire_shard.models.spec import DecoderSpec
from pagewire_shard.models.weights import Weights


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to run."""

    model: Decoder
    hf_config: HFConfig
    dtype_name: str
    """The weights' element type: float32, float16 or bfloat16."""
    cache_dtype: torch.dtype
    """Of the KV cache."""
    weight_bytes: int
    """Memory the weights take on the device."""
    load_time_s: float


def load_model(
    model_dir: Path, *, device: torch.device, dtype: Dtype = "auto", load_format: LoadFormat = "auto", seed: int = 0
) -> LoadedModel:
    """Loads the model in `model_dir`.

    Args:
        dtype: see resolve_precision.
        load_format: dummy: random weights, a function of `seed` and the configuration alone; only config.json is read.

    Raises:
        ModelNotFound: no such directory, or no config.json or safetensors in it.
        UnsupportedArchitecture: the configuration asks for something the decoder does not implement.
        CorruptWeights: a weight file is damaged, incomplete or does not fit the configuration.
        BadOption: the dtype is unknown.
        ModelError: the configuration is malformed.
    """
    started = time.perf_counter()
    config = read_hf_config(model_dir)
    family = find_family(config)
    spec = family.spec(config.fields)
    checkpoint_dtype = config.checkpoint_dtype
    if checkpoint_dtype is None and load_format != "dummy":
        checkpoint_dtype = stored_dtype(model_dir)
    precision = resolve_precision(device, dtype, checkpoint_dtype)
    with torch.inference_mode():
        if load_format == "dummy":
            weights = random_weights(spec, precision, seed)
        else:
            weights = read_weights(model_dir, spec, family.names, precision)
        if spec.tied_embeddings:
            weights.tie_output()
        model = Decoder(spec, weights)
    return LoadedModel(
        model=model,
        hf_config=config,
        dtype_name=precision.name,
        cache_dtype=precision.activations,
        weight_bytes=weights.num_bytes,
        load_time_s=time.perf_counter() - started,
    )


def random_weights(spec: DecoderSpec, precision: Precision, seed: int) -> Weights:
    """Normally distributed matrices, norms that scale by 1, biases of 0."""
    weights = Weights(precision)
    device = precision.device
    for name, parameter in parameters(spec).items():
        weight = torch.empty(parameter.weight_shape, dtype=weights.dtype(parameter), device=device)
        if parameter.role == "norm":
            weight.fill_(1.0)
        else:
            # One generator for each parameter: its values do not depend on which others there are.
            generator = torch.Generator(device).manual_seed(zlib.crc32(f"{seed} {name}".encode()))
            weight.normal_(0.0, spec.initializer_range, generator=generator)
        bias = torch.zeros(parameter.num_rows, dtype=precision.activations, device=device) if parameter.bias else None
        weights.put(name, parameter, weight, bias)
    return weights


def read_weights(model_dir: Path, spec: DecoderSpec, names: NameMap, precision: Precision) -> Weights:
    """Reads a checkpoint; every parameter must be filled by it, and every tensor of it used or known to be needless."""
    reader = _Reader(spec, names, Weights(precision))
    for tensor in read_tensors(model_dir):
        reader.add(tensor)
    reader.check_complete(model_dir)
    return reader.weights


class _Pending:
    """A parameter that is being filled."""

    def __init__(self, parameter: Parameter, dtype: torch.dtype, precision: Precision) -> None:
        self.weight = torch.empty(parameter.weight_shape, dtype=dtype, device=precision.device)
        self.bias: torch.Tensor | None = None
        if parameter.bias:
            self.bias = torch.empty(parameter.num_rows, dtype=precision.activations, device=precision.device)
        self.missing = set(_places(parameter))

    def field(self, name: str) -> torch.Tensor:
        field = self.weight if name == "weight" else self.bias
        assert field is not None
        return field


def _places(parameter: Parameter) -> Iterator[tuple[str, int]]:
    """(field, part) of all that fills a parameter."""
    for field in ("weight", "bias") if parameter.bias else ("weight",):
        for part in range(len(parameter.parts)):
            yield field, part


def _has_place(parameter: Parameter, target: Target) -> bool:
    """False for a bias that the parameter does not have, or an expert beyond the last."""
    return (target.field == "weight" or parameter.bias) and (target.part or 0) < len(parameter.parts)


class _Reader:
    """Puts checkpoint tensors in their places."""

    def __init__(self, spec: DecoderSpec, names: NameMap, weights: Weights) -> None:
        self.weights = weights
        self._names = names
        self._tied = spec.tied_embeddings
        self._parameters = parameters(spec)
        self._pending: dict[str, _Pending] = {}
        self._complete: set[str] = set()

    def add(self, tensor: CheckpointTensor) -> None:
        """Copies the tensor to its place, and packs the parameter if that completes it."""
        target = self._names.target(tensor.name)
        if self._is_needless(tensor.name, target):
            return
        parameter = self._parameters.get(target.parameter) if target else None
        if target is None or parameter is None or not _has_place(parameter, target):
            raise CorruptWeights(
                f"{tensor.path}: tensor {tensor.name!r} does not belong to the model config.json describes"
            )
        pending = self._pending.get(target.parameter)
        if pending is None:
            if target.parameter in self._complete:
                raise CorruptWeights(f"{tensor.path}: tensor {tensor.name!r} is there twice")
            pending = _Pending(parameter, self.weights.dtype(parameter), self.weights.precision)
            self._pending[target.parameter] = pending
        self._copy(tensor, target, parameter, pending)
        if not pending.missing:
            del self._pending[target.parameter]
            self._complete.add(target.parameter)
            self.weights.put(target.parameter, parameter, pending.weight, pending.bias)

    def check_complete(self, model_dir: Path) -> None:
        """Raises CorruptWeights naming the tensors that never came."""
        # A merged checkpoint tensor fills several places: it is named once.
        missing = list(
            dict.fromkeys(
                self._names.source(name, field, part)
                for name, parameter in self._parameters.items()
                if name not in self._complete
                for field, part in _places(parameter)
                if name not in self._pending or (field, part) in self._pending[name].missing
            )
        )
        if missing:
            shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise CorruptWeights(f"{model_dir}: the checkpoint lacks {len(missing)} tensors: {shown}")

    def _is_needless(self, name: str, target: Target | None) -> bool:
        if target is not None and target.parameter == "lm_head" and self._tied:
            return True
        return target is None and self._names.is_ignored(name)

    def _copy(self, tensor: CheckpointTensor, target: Target, parameter: Parameter, pending: _Pending) -> None:
        destination = pending.field(target.field)
        filled = {(target.field, part) for part in range(len(parameter.parts))}
        if target.part is not None:
            start = sum(parameter.parts[: target.part])
            destination = destination[start : start + parameter.parts[target.part]]
            filled = {(target.field, target.part)}
        value = tensor.value
        if parameter.role == "experts" and value.ndim == 3:
            value = value.flatten(0, 1)  # The experts of a layer in one tensor.
        if self._names.transposed and target.parameter.startswith("layers.") and value.ndim == 2:
            value = value.t()
        if value.shape != destination.shape:
            raise CorruptWeights(
                f"{tensor.path}: tensor {tensor.name!r} has shape {list(value.shape)}, "
                f"config.json asks for {list(destination.shape)}"
            )
        destination.copy_(value)
        pending.missing -= filled
