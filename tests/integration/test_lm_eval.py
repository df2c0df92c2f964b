"""lm-eval itself, on a served model and on the same model in transformers. Needs `pip install 'lm-eval[hf]'`."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster import Cluster
from random_models import TEXT

pytestmark = pytest.mark.slow
lm_eval = pytest.importorskip("lm_eval")
pytest.importorskip("lm_eval.models.huggingface", exc_type=ImportError)

CHOICES = {
    "task": "choices",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
ROLLING = {
    "task": "rolling",
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{question}}",
    "metric_list": [{"metric": "word_perplexity"}],
}
GENERATION = {
    "task": "generation",
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{choices[0]}}",
    "generation_kwargs": {"until": ["\n", "."], "max_gen_toks": 12},
    "metric_list": [{"metric": "exact_match"}],
}


@pytest.fixture
def tasks(tmp_path: Path) -> Any:
    """Three tasks on 12 questions of nonsense."""
    words = TEXT.split()
    data = tmp_path / "questions.jsonl"
    lines = [
        {
            "question": " ".join(words[i : i + 5 + i]),
            "choices": [" " + words[j] for j in (i, i + 7, i + 9)],
            "answer": 1,
        }
        for i in range(12)
    ]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for task in (CHOICES, ROLLING, GENERATION):
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
        (tmp_path / f"{task['task']}.yaml").write_text(yaml.safe_dump({**source, **task}))
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(tmp_path), include_defaults=False)


def test_a_served_model_gets_the_results_of_transformers(cluster: Cluster, model: Path, tasks: Any) -> None:
    from lm_eval.models.huggingface import HFLM
    from pagewire.lm_eval import PagewireLM

    names = [CHOICES["task"], ROLLING["task"], GENERATION["task"]]
    served, local = (
        lm_eval.simple_evaluate(model=lm, tasks=names, task_manager=tasks, log_samples=True, bootstrap_iters=0)
        for lm in (PagewireLM(cluster.address), HFLM(str(model), device="cpu", dtype="float32"))
    )
    for name in names:
        for ours, theirs in zip(served["samples"][name], local["samples"][name], strict=True):
            assert ours["arguments"] == theirs["arguments"]
            for mine, right in zip(ours["resps"], theirs["resps"], strict=True):
                assert flat(mine) == pytest.approx(flat(right), abs=2e-3)
        for metric, value in local["results"][name].items():
            if isinstance(value, float):
                assert served["results"][name][metric] == pytest.approx(value, rel=1e-3)


def flat(answer: Any) -> Any:
    """The only answer of a request: text, or numbers."""
    [only] = answer
    return tuple(only) if isinstance(only, list | tuple) else only
