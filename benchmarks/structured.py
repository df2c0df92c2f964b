"""What grammars cost: tokens per second of a batch whose rows follow JSON schemas, beside the same batch without.

The router's scheduler and the shard's engine, driven in this process without the wire, two plans in flight. Rows have
schemas of their own, arrays that no row comes to the end of; all rows decode when the clock starts. Batches with a
grammar in every row, in half of the rows and in none take turns, so that a machine that gets slower does so for all.

On a GPU the model has the shape of Llama-3.1-8B and random weights; on a CPU it is a Llama of 110M parameters.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from gpu_parts.engine_driver import Driver, Step, fill_caches, step_times_s
from machine import RESULTS, print_table, save_result
from pagewire.v1 import shard_pb2
from pagewire.v1.inference_pb2 import SamplingParams, StructuredOutputs
from pagewire_router.admission.structured_outputs import grammar_name
from pagewire_shard.config import ShardConfig
from pagewire_shard.engine.engine import Engine
from pagewire_shard.grammar.grammars import Grammars, Prepared
from pagewire_shard.grammar.vocabulary import VocabularySource
from pagewire_shard.startup import build_engine
from vocabulary import tokenizer_json

PROMPT_LEN = 65
NUM_WARM_STEPS = 8
PREPARE_TIMEOUT_S = 60.0
SHARES = {"none": 0.0, "half": 0.5, "all": 1.0}
"""Share of the rows that have a grammar."""
CPU_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32_000,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "dtype": "float32",
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def build_parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batches", type=_numbers, default=(64,), metavar="N,...", help="sequences (default: 64)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="turns of each kind (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=40, metavar="N", help="steps of a turn (default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: shows only that the benchmark runs")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="where the result goes")
    return parser


def _numbers(words: str) -> tuple[int, ...]:
    return tuple(int(word) for word in words.split(","))


def hf_config(args: argparse.Namespace) -> dict[str, Any]:
    """config.json of the model."""
    from gpu_parts.shapes import SHAPES

    config = SHAPES["llama-8b"].hf_config() if args.device == "cuda" else CPU_CONFIG
    return config | {"num_hidden_layers": 1, "hidden_size": 96, "intermediate_size": 96} if args.tiny else config


def build(args: argparse.Namespace, folder: Path) -> tuple[Engine, Grammars]:
    """An engine with dummy weights, and grammars over a vocabulary of its size."""
    config = hf_config(args)
    (folder / "config.json").write_text(json.dumps(config))
    source = VocabularySource(tokenizer_json(config["vocab_size"]), config["vocab_size"], (config["eos_token_id"],))
    grammars = Grammars()
    grammars.open(source)
    max_model_len = -(-(PROMPT_LEN + 2 * (args.steps + NUM_WARM_STEPS)) // 64) * 64
    head_dim = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    kv_bytes_per_token = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head_dim * 4
    shard = ShardConfig(
        model=str(folder),
        model_name="structured",
        device=args.device,
        dtype="auto" if args.device == "cuda" else "float32",
        max_num_seqs=max(args.batches),
        max_model_len=max_model_len,
        kv_cache_memory_bytes=kv_bytes_per_token * max_model_len * max(args.batches),
        load_format="dummy",
    )
    engine = build_engine(shard, folder, b"", grammars)
    fill_caches(engine)
    return engine, grammars


def schema(number: int) -> dict[str, Any]:
    """A schema unlike all others: a long array of objects with strings, numbers, enumerations and nested lists."""
    kinds: list[dict[str, Any]] = [
        {"type": "string", "maxLength": 12},
        {"type": "integer", "minimum": 0, "maximum": 10**6 + number},
        {"enum": [f"choice-{number}-{i}" for i in range(5)]},
        {"type": "boolean"},
        {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": 4},
        {"type": "string", "pattern": f"^[A-Z]{{2}}-[0-9]{{{2 + number % 3}}}$"},
    ]
    properties = {f"field_{number}_{i}": kinds[(number + i) % len(kinds)] for i in range(4 + number % 3)}
    item = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"type": "array", "items": item, "minItems": 200}


def structured_outputs(number: int) -> StructuredOutputs:
    """What row `number` must match."""
    return StructuredOutputs(json=json.dumps(schema(number)), disable_any_whitespace=True)


class StructuredDriver(Driver):
    """One turn: a batch of which some rows have a grammar."""

    def __init__(self, engine: Engine, grammars: Grammars, batch: int, num_constrained: int, max_tokens: int) -> None:
        super().__init__(engine)
        answers: list[Prepared] = []
        for row in range(batch):
            params = SamplingParams(temperature=1.0, seed=row)
            name = ""
            if row < num_constrained:
                params.structured_outputs.CopyFrom(outputs := structured_outputs(row))
                name = grammar_name(outputs)
                grammars.prepare(name, outputs, answers.append)
            prompt = self._rng.choices(range(1, engine.info.vocab_size), k=PROMPT_LEN)
            self.add_prompt(prompt, max_tokens, params=params, grammar=name)
        self.scheduler.take_messages()
        self._take_answers(answers, num_constrained)

    def _take_answers(self, answers: list[Prepared], num_asked: int) -> None:
        deadline_s = perf_counter() + PREPARE_TIMEOUT_S
        while len(answers) < num_asked and perf_counter() < deadline_s:
            torch.empty(1)  # lets other threads run
        assert len(answers) == num_asked, "grammars took too long to prepare"
        for answer in answers:
            assert not answer.message, answer.message
            self.scheduler.on_prepared(shard_pb2.Prepared(name=answer.name))


def measure(engine: Engine, grammars: Grammars, batch: int, share: float, num_steps: int) -> float:
    """Tokens per second of steps in which every row yields one."""
    max_tokens = 2 * (num_steps + NUM_WARM_STEPS)
    driver = StructuredDriver(engine, grammars, batch, int(share * batch), max_tokens)
    steps: list[Step] = []
    num_full = 0
    while len(steps) <= num_steps:
        step = driver.step()
        assert step is not None, "the requests ended before they were measured"
        num_full = num_full + 1 if step.num_sampled == batch else 0
        if num_full > NUM_WARM_STEPS:
            steps.append(step)
        elif steps:
            steps.clear()
    driver.close()
    times_s = step_times_s(steps)
    return batch * len(times_s) / sum(times_s)


class MaskClock:
    """Times the filling of masks."""

    def __init__(self, engine: Engine) -> None:
        self.times_s: list[float] = []
        constraints = engine._constraints
        assert constraints is not None
        fill = constraints.masks

        def timed(batch: Any) -> Any:
            began_s = perf_counter()
            masks = fill(batch)
            self.times_s.append(perf_counter() - began_s)
            return masks

        constraints.masks = timed  # type: ignore[method-assign]

    def take_ms(self) -> float:
        """The median since the last call, in milliseconds."""
        times_s, self.times_s = self.times_s, []
        return statistics.median(times_s) * 1e3 if times_s else 0.0


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each batch."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        engine, grammars = build(args, Path(folder))
        clock = MaskClock(engine)
        for batch in args.batches:
            rates: dict[str, list[float]] = {kind: [] for kind in SHARES}
            mask_ms: dict[str, list[float]] = {kind: [] for kind in SHARES}
            for share in SHARES.values():  # The first turn of each kind loads code.
                measure(engine, grammars, batch, share, 4)
            for _ in range(args.rounds):
                for kind, share in SHARES.items():
                    rates[kind].append(measure(engine, grammars, batch, share, args.steps))
                    mask_ms[kind].append(clock.take_ms())
            rows.append(_row(batch, rates, mask_ms))
            print(rows[-1], flush=True)
        grammars.close()
    return rows


def _row(batch: int, rates: dict[str, list[float]], mask_ms: dict[str, list[float]]) -> dict[str, Any]:
    row: dict[str, Any] = {"batch": batch}
    for kind in SHARES:
        row[f"{kind}_tokens_per_s"] = statistics.median(rates[kind])
    for kind in ("half", "all"):
        ratios = [with_grammar / without for with_grammar, without in zip(rates[kind], rates["none"], strict=True)]
        row[f"{kind}_ratio"] = statistics.median(ratios)
        row[f"{kind}_ratios"] = sorted(round(ratio, 3) for ratio in ratios)
        row[f"{kind}_mask_ms"] = statistics.median(mask_ms[kind])
    return row


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints a table and keeps the result."""
    args = build_parser().parse_args(argv)
    rows = run(args)
    columns = ("batch", *(f"{kind}_tokens_per_s" for kind in SHARES), "half_ratio", "all_ratio", "all_mask_ms")
    print_table("Structured output", columns, [[row[column] for column in columns] for row in rows])
    save_result(f"structured-{args.device}", vars(args), {"rows": rows}, args.out)


if __name__ == "__main__":
    main()
