"""Fills a decoder's parameters from the tensors of a checkpoint.

Tensors are read one at a time into the parameter they are part of; a parameter that is complete is packed at once, so
that beside the packed weights about one parameter is in memory unpacked.
"""

import logging
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch

from pagewire_shard.errors import CorruptWeights, UnsupportedArchitecture
from pagewire_shard.layers.parameter import Parameter, TensorSpec
from pagewire_shard.layers.weights import Weights
from pagewire_shard.loading.checkpoint import CheckpointFile, CheckpointTensor
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.hf_config import UNQUANTIZED
from pagewire_shard.models.names import NameMap, Target, is_needless

logger = logging.getLogger(__name__)

QUANTIZED = re.compile(
    r"\.(qweight|qzeros|scales|g_idx"  # GPTQ, AWQ
    r"|weight_(scale|scale_inv|packed|shape|zero_point)|(input|output)_scale|[kv]_scale"  # FP8, compressed-tensors
    r"|SCB|weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..+)"  # bitsandbytes
    r"|\w+_(blocks|scales))$"  # MXFP4
)
"""Names of tensors that only quantized weights have, for checkpoints whose config.json does not tell."""


def read_weights(files: list[CheckpointFile], spec: DecoderSpec, names: NameMap, weights: Weights) -> None:
    """Reads a checkpoint into `weights`, which are empty.

    Every parameter must be filled by the checkpoint, and every tensor of it used or known to be needless.

    Raises:
        CorruptWeights: the message names the tensor that is missing, has no place or does not fit.
    """
    reader = _Reader(spec, names, weights)
    for file in files:
        for tensor in file.tensors():
            reader.add(tensor)
    reader.finish(files[0].path.parent)


class _Pending:
    """A parameter that is being filled."""

    def __init__(self, specs: Mapping[str, TensorSpec], device: torch.device) -> None:
        self.specs = specs
        self.tensors = {name: torch.empty(spec.shape, dtype=spec.dtype, device=device) for name, spec in specs.items()}
        self.missing = {(name, part) for name, spec in specs.items() for part in range(len(spec.parts))}
        """Tensor and part."""

    def place(self, name: str, part: int | None) -> torch.Tensor:
        """A view of one part, or of the whole tensor."""
        tensor, parts = self.tensors[name], self.specs[name].parts
        return tensor if part is None else tensor.narrow(0, sum(parts[:part]), parts[part])

    def filled(self, name: str, part: int | None) -> None:
        """Marks one part, or the whole tensor, as filled."""
        self.missing -= (
            {(name, each) for each in range(len(self.specs[name].parts))} if part is None else {(name, part)}
        )


def _are_equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.to(b.dtype), b)


class _Reader:
    """Puts checkpoint tensors in their places."""

    def __init__(self, spec: DecoderSpec, names: NameMap, weights: Weights) -> None:
        self._weights = weights
        self._names = names
        self._is_tied = spec.tied_embeddings
        self._lm_head = spec.lm_head
        self._layers = spec.layers
        self._skipped: Counter[str] = Counter()
        """Number of tensors that are not loaded, by the beginning of their names."""
        self._parameters = spec.parameters()
        self._tied: dict[tuple[str, str], CheckpointTensor] = {}
        """By parameter and tensor: what the checkpoint stores of embeddings and output projection, if they are tied."""
        self._pending: dict[str, _Pending] = {}
        self._complete: set[str] = set()

    def add(self, tensor: CheckpointTensor) -> None:
        """Copies the tensor to its place, and packs the parameter if that completes it."""
        target = self._names.target(tensor.name)
        spec = self._spec_of(target) if target else None
        if target is None or spec is None:
            if self._is_skipped(tensor.name):
                return
            if QUANTIZED.search(tensor.name):
                raise UnsupportedArchitecture(
                    f"{tensor.path}: tensor {tensor.name!r} is part of quantized weights, which is not supported; "
                    f"supported: {UNQUANTIZED}"
                )
            tensor.check_usable()
            raise CorruptWeights(
                f"{tensor.path}: tensor {tensor.name!r} does not belong to the model config.json describes"
            )
        tensor.check_usable(spec.dtype)
        if self._is_tied and target.parameter in ("embed", "lm_head"):
            self._tied[target.parameter, target.tensor] = tensor
            if target.parameter == "lm_head":
                return
        self._fill(tensor, target)

    def _is_skipped(self, name: str) -> bool:
        """Whether the decoder does without the tensor."""
        if is_needless(name) or self._names.is_unused(name):
            return True
        index = self._names.layer_index(name) if self._names.mtp_layers else None
        is_mtp = index is not None and index >= len(self._layers)
        if not (is_mtp or name.startswith(self._names.skipped)):
            return False
        self._skipped[".".join(name.split(".")[: 3 if is_mtp else 2])] += 1
        return True

    def finish(self, model_dir: Path) -> None:
        """Makes a tied output projection. Raises CorruptWeights naming the tensors that are missing."""
        for module, count in sorted(self._skipped.items()):
            logger.info("%s: %d tensors of %s are not part of the text model and not loaded", model_dir, count, module)
        if self._is_tied:
            self._finish_tied()
        self._check_complete(model_dir)
        if "lm_head" not in self._weights.linears:
            bias = self._tied.get(("lm_head", "bias"))
            dtype = self._weights.precision.activations
            self._weights.tie_output(self._lm_head, None if bias is None else bias.value.to(dtype))

    def _spec_of(self, target: Target) -> TensorSpec | None:
        """The shape and type of the target's tensor; None if the parameter has no such tensor or part."""
        parameter = self._parameters.get(target.parameter)
        if parameter is None and self._is_tied and target.parameter == "lm_head":
            parameter = self._lm_head
        if parameter is None or (target.part or 0) >= len(parameter.parts):
            return None
        return self._weights.specs(parameter).get(target.tensor)

    def _fill(self, tensor: CheckpointTensor, target: Target) -> None:
        parameter = self._parameters[target.parameter]
        pending = self._pending.get(target.parameter)
        if pending is None:
            if target.parameter in self._complete:
                raise CorruptWeights(f"{tensor.path}: tensor {tensor.name!r} is there twice")
            pending = _Pending(self._weights.specs(parameter), self._weights.precision.device)
            self._pending[target.parameter] = pending
        self._copy(tensor, target, parameter, pending)
        if not pending.missing:
            del self._pending[target.parameter]
            self._complete.add(target.parameter)
            self._weights.put(target.parameter, parameter, pending.tensors)

    def _copy(self, tensor: CheckpointTensor, target: Target, parameter: Parameter, pending: _Pending) -> None:
        place = pending.place(target.tensor, target.part)
        value = tensor.value
        if parameter.role == "experts" and value.ndim == 3 and self._names.transposed_experts:
            value = value.transpose(1, 2)
        if parameter.role == "experts" and target.part is None:
            value = value.flatten(0, 1)  # All experts of a layer in one tensor.
        if parameter.role == "correction":
            value = value.flatten()  # Some checkpoints store it as a row.
        if self._names.transposed and target.parameter.startswith("layers.") and value.ndim == 2:
            value = value.t()
        if value.shape != place.shape:
            raise CorruptWeights(
                f"{tensor.path}: tensor {tensor.name!r} has shape {list(value.shape)}, "
                f"config.json asks for {list(place.shape)}"
            )
        order = self._names.row_order(tensor.name, self._layers)
        place.copy_(value if order is None else value[order])
        pending.filled(target.tensor, target.part)

    def _finish_tied(self) -> None:
        """Ties as transformers 5 does: one stored table is used for both, and two that differ are not tied."""
        embed, head = self._tied.get(("embed", "weight")), self._tied.get(("lm_head", "weight"))
        if head is not None and embed is None:
            self._fill(head, Target("embed", "weight", None))
        elif head is not None and embed is not None and not _are_equal(head.value, embed.value):
            logger.warning(
                "%s: tensor %r differs from %r, so the two are not tied, though config.json says so (set "
                "tie_word_embeddings to false in it to silence this)",
                head.path, head.name, embed.name,
            )  # fmt: skip
            self._parameters["lm_head"] = self._lm_head
            for (parameter, name), tensor in list(self._tied.items()):
                if parameter == "lm_head":
                    self._fill(tensor, Target("lm_head", name, None))

    def _check_complete(self, model_dir: Path) -> None:
        """Raises CorruptWeights naming the tensors that are missing."""
        # A checkpoint tensor that fills several places is named once.
        missing = list(
            dict.fromkeys(
                self._names.source(name, tensor, part)
                for name, parameter in self._parameters.items()
                if name not in self._complete
                for tensor, spec in self._weights.specs(parameter).items()
                for part in range(len(spec.parts))
                if name not in self._pending or (tensor, part) in self._pending[name].missing
            )
        )
        if missing:
            shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise CorruptWeights(f"{model_dir}: the checkpoint lacks {len(missing)} tensors: {shown}")
