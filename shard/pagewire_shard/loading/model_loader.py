"""Builds a decoder from a Hugging Face model directory, or with random weights from its config.json alone.

Tensors are read one at a time into the parameter they are part of; a parameter that is complete is packed at once, so
that beside the packed weights about one parameter is in memory unpacked.
"""

import logging
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from pagewire_shard.config import Dtype, LoadFormat
from pagewire_shard.errors import CorruptWeights
from pagewire_shard.layers.precision import Precision, resolve_precision
from pagewire_shard.layers.spec import DecoderSpec
from pagewire_shard.loading.checkpoint import CheckpointFile, CheckpointTensor, checkpoint_files, stored_dtype
from pagewire_shard.models.decoder import Decoder
from pagewire_shard.models.hf_config import HFConfig, describe, read_config_fields
from pagewire_shard.models.names import NameMap, Target, is_needless
from pagewire_shard.models.parameters import Parameter, lm_head, parameters
from pagewire_shard.models.registry import find_family
from pagewire_shard.models.weights import Weights

logger = logging.getLogger(__name__)


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
        load_format: auto: safetensors, or PyTorch files where there are none; safetensors: nothing else; dummy:
            random weights, a function of `seed` and the configuration alone; only config.json is read.

    Raises:
        ModelNotFound: no such directory, or no config.json or checkpoint in it.
        UnsupportedArchitecture: the configuration asks for something the decoder does not implement.
        CorruptWeights: a weight file is damaged, incomplete or does not fit the configuration.
        BadOption: the dtype is unknown.
        ModelError: the configuration is malformed.
    """
    started = time.perf_counter()
    stated = read_config_fields(model_dir)
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
        if load_format == "dummy":
            weights = random_weights(spec, precision, seed)
        else:
            weights = read_weights(files, spec, family.names, precision)
        model = Decoder(spec, weights)
    return LoadedModel(
        model=model,
        hf_config=config,
        dtype_name=precision.name,
        cache_dtype=precision.activations,
        weight_bytes=weights.num_bytes,
        load_time_s=time.perf_counter() - started,
    )


def _report_format(files: list[CheckpointFile]) -> None:
    if files and files[0].path.suffix != ".safetensors":
        logger.warning(
            "%s: no safetensors in the model's directory, so its PyTorch files are read, by torch's restricted loader "
            "(--load-format safetensors refuses them)",
            files[0].path,
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
    if spec.tied_embeddings:
        weights.tie_output()
    return weights


def read_weights(files: list[CheckpointFile], spec: DecoderSpec, names: NameMap, precision: Precision) -> Weights:
    """Reads a checkpoint; every parameter must be filled by it, and every tensor of it used or known to be needless."""
    reader = _Reader(spec, names, Weights(precision))
    for file in files:
        for tensor in file.tensors():
            reader.add(tensor)
    reader.finish(files[0].path.parent)
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


def _are_equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.to(b.dtype), b)


class _Reader:
    """Puts checkpoint tensors in their places."""

    def __init__(self, spec: DecoderSpec, names: NameMap, weights: Weights) -> None:
        self.weights = weights
        self._names = names
        self._spec = spec
        self._parameters = parameters(spec)
        self._tied: dict[tuple[str, str], CheckpointTensor] = {}
        """Of tied embeddings, by parameter and field: what is stored of the output projection, and the embeddings."""
        self._pending: dict[str, _Pending] = {}
        self._complete: set[str] = set()

    def add(self, tensor: CheckpointTensor) -> None:
        """Copies the tensor to its place, and packs the parameter if that completes it."""
        target = self._names.target(tensor.name)
        if target is None and is_needless(tensor.name):
            return
        tensor.check_usable()
        if target is not None and self._spec.tied_embeddings and target.parameter in ("embed", "lm_head"):
            self._tied[target.parameter, target.field] = tensor
            if target.parameter == "lm_head":
                return
        parameter = self._parameters.get(target.parameter) if target else None
        if target is None or parameter is None or not _has_place(parameter, target):
            raise CorruptWeights(
                f"{tensor.path}: tensor {tensor.name!r} does not belong to the model config.json describes"
            )
        self._fill(tensor, target)

    def _fill(self, tensor: CheckpointTensor, target: Target) -> None:
        parameter = self._parameters[target.parameter]
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

    def finish(self, model_dir: Path) -> None:
        """Makes a tied output projection. Raises CorruptWeights naming the tensors that never came."""
        if self._spec.tied_embeddings:
            self._finish_tied()
        self._check_complete(model_dir)
        if "lm_head" not in self.weights.linears:
            bias = self._tied.get(("lm_head", "bias"))
            self.weights.tie_output(None if bias is None else bias.value.to(self.weights.precision.activations))

    def _finish_tied(self) -> None:
        """As transformers 5 does it: one stored table serves for both, two that differ are not tied."""
        embed, head = self._tied.get(("embed", "weight")), self._tied.get(("lm_head", "weight"))
        if head is not None and embed is None:
            self._fill(head, Target("embed", "weight", None))
        elif head is not None and embed is not None and not _are_equal(head.value, embed.value):
            logger.warning(
                "%s: tensor %r differs from %r, so the two are not tied, though config.json says so (set "
                "tie_word_embeddings to false in it to silence this)",
                head.path, head.name, embed.name,
            )  # fmt: skip
            self._parameters["lm_head"] = lm_head(self._spec)
            for (parameter, field), tensor in list(self._tied.items()):
                if parameter == "lm_head":
                    self._fill(tensor, Target("lm_head", field, None))

    def _check_complete(self, model_dir: Path) -> None:
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
