"""Shows what structured output accepts, whether samples are valid, and what hostile grammars cost.

Suite: every schema of the JSON-Schema-Test-Suite (draft 2020-12) is compiled as a shard compiles it. A random model
writes samples within each one that is accepted, at temperature 1.5, and the package jsonschema judges them. Hostile:
how long each of a set of grammars takes to be answered, and how long a thread of the same process, which wants to run
every millisecond, is kept from it meanwhile.
"""

import argparse
import json
import queue
import re
import statistics
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import grpc
from grammar_parts.hostile import HOSTILE
from grammar_parts.sampling import TEMPERATURE, RandomModel
from grammar_parts.suite import SuiteSchema, suite_folder, suite_schemas
from grammar_parts.validity import NotJudged, Samples, fault_finder
from machine import print_table, save_result
from models import LLAMA_110M, model_directory
from pagewire.v1 import inference_pb2
from pagewire_shard.grammar.grammars import Grammars, Prepared
from pagewire_shard.grammar.vocabulary import VocabularySource
from tokenizers import Tokenizer

EOS = 0
MAX_TOKENS = 400
TIMEOUT_S = 60.0


def prepare(grammars: Grammars, name: str, outputs: inference_pb2.StructuredOutputs) -> Prepared:
    """Prepares a grammar and waits for the answer."""
    answers: queue.Queue[Prepared] = queue.Queue()
    grammars.prepare(name, outputs, answers.put)
    return answers.get(timeout=TIMEOUT_S)


def feature(message: str) -> str:
    """What a refusal names: the keyword, or the message if it names none."""
    named = re.search(r"`([^`]+)`|'((?:max|min)\w+|multipleOf)'", message)
    return (named[1] or named[2]) if named else message.removeprefix("JSON schema: ")[:60]


def measure_suite(grammars: Grammars, tokenizer: Tokenizer, num_samples: int) -> dict[str, Any]:
    """Compiles each schema, and samples those that are accepted."""
    tokens = [tokenizer.decode([i], skip_special_tokens=False) for i in range(tokenizer.get_vocab_size())]
    model = RandomModel(grammars, tokens, (EOS,))
    refused: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    invalid: dict[str, list[str]] = {}
    not_judged: dict[str, str] = {}
    compile_s: list[float] = []
    for schema in suite_schemas(suite_folder()):
        begun_s = perf_counter()
        answer = prepare(grammars, schema.name, inference_pb2.StructuredOutputs(json=json.dumps(schema.schema)))
        compile_s.append(perf_counter() - begun_s)
        if answer.code is not grpc.StatusCode.OK:
            refused[feature(answer.message)] += 1
            continue
        counts["accepted"] += 1
        try:
            samples = sample(grammars, model, tokenizer, schema, num_samples)
        except NotJudged as reason:
            not_judged[schema.name] = str(reason)
            continue
        counts["valid samples"] += samples.num_valid
        counts["unfinished samples"] += samples.num_unfinished
        if samples.faults:
            invalid[schema.name] = samples.faults
        grammars.forget([schema.name])
    return {
        "schemas": {
            "all": counts["accepted"] + refused.total(),
            "accepted": counts["accepted"],
            "refused by name": refused.total(),
            "not judged by the validator": len(not_judged),
            "with invalid samples": len(invalid),
        },
        "samples": {
            "valid": counts["valid samples"],
            "invalid": sum(map(len, invalid.values())),
            f"unfinished after {MAX_TOKENS} tokens": counts["unfinished samples"],
        },
        "prepare_ms": percentiles(compile_s),
        "refused": dict(refused.most_common()),
        "invalid": invalid,
        "not_judged": not_judged,
    }


def sample(
    grammars: Grammars, model: RandomModel, tokenizer: Tokenizer, schema: SuiteSchema, num_samples: int
) -> Samples:
    """Writes and judges samples of one schema. Raises NotJudged."""
    find_fault = fault_finder(schema.schema)
    samples = Samples()
    for _ in range(num_samples):
        token_ids = model.sample(grammars.matcher(schema.name, (EOS,)), MAX_TOKENS)
        if token_ids is None:
            samples.num_unfinished += 1
            continue
        text = tokenizer.decode(token_ids, skip_special_tokens=False)
        fault = find_fault(text)
        if fault is None:
            samples.num_valid += 1
        else:
            samples.faults.append(f"{text}: {fault}")
    return samples


@contextmanager
def probe() -> Iterator[list[float]]:
    """A thread that wants to run every millisecond; yields the list of its gaps, in seconds."""
    gaps_s: list[float] = [0.0]
    stop = threading.Event()

    def run() -> None:
        last_s = perf_counter()
        while not stop.wait(0.001):
            now_s = perf_counter()
            gaps_s.append(now_s - last_s)
            last_s = now_s

    thread = threading.Thread(target=run)
    thread.start()
    yield gaps_s
    stop.set()
    thread.join()


def measure_hostile(grammars: Grammars) -> list[dict[str, Any]]:
    """Prepares each hostile grammar, the probe beside it."""
    rows = []
    for name, outputs in HOSTILE.items():
        with probe() as gaps_s:
            begun_s = perf_counter()
            answer = prepare(grammars, name, outputs)
            elapsed_s = perf_counter() - begun_s
        grammars.forget([name])
        what = "accepted" if answer.code is grpc.StatusCode.OK else f"{answer.code.name}: {answer.message[:80]}"
        rows.append({"grammar": name, "s": elapsed_s, "longest_gap_ms": 1e3 * max(gaps_s), "answer": what})
    return rows


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Median and high percentiles in milliseconds."""
    hundredths = statistics.quantiles(seconds, n=100)
    return {"p50": 1e3 * hundredths[49], "p99": 1e3 * hundredths[98], "max": 1e3 * max(seconds)}


def main() -> None:
    """Measures, prints tables, writes benchmarks/results/grammars.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20, metavar="N", help="for each schema (default %(default)s)")
    arguments = parser.parse_args()
    path = model_directory(LLAMA_110M) / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    grammars = Grammars(num_threads=1)
    begun_s = perf_counter()
    grammars.open(VocabularySource(path.read_text(), LLAMA_110M.vocab_size, (EOS,)))
    vocabulary_s = perf_counter() - begun_s
    begun_s = perf_counter()
    prepare(grammars, "first", inference_pb2.StructuredOutputs(json_object=True))
    first_s = perf_counter() - begun_s
    suite = measure_suite(grammars, tokenizer, arguments.samples)
    hostile = measure_hostile(grammars)
    grammars.close()
    settings = {"vocabulary": LLAMA_110M.vocab_size, "temperature": TEMPERATURE, "samples": arguments.samples}
    start = {"vocabulary_at_start_s": vocabulary_s, "first_grammar_s": first_s}
    for title in ("schemas", "samples", "prepare_ms", "refused"):
        print_table(title, (title, ""), [(name, str(value)) for name, value in suite[title].items()])
    rows = [(row["grammar"], f"{row['s']:.2f}", f"{row['longest_gap_ms']:.0f}", row["answer"]) for row in hostile]
    print_table("hostile grammars", ("grammar", "s", "longest gap, ms", "answer"), rows)
    for name, faults in suite["invalid"].items():
        print(name, *faults[:3], sep="\n    ")
    print("written:", save_result("grammars", settings, {"start": start, **suite, "hostile": hostile}))


if __name__ == "__main__":
    main()
