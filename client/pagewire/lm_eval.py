"""A model for lm-eval (https://github.com/EleutherAI/lm-evaluation-harness), which must be installed.

    python -m pagewire.lm_eval --model pagewire --model_args server=localhost:50051 --tasks hellaswag,gsm8k

takes the flags of `lm_eval`. In Python: `lm_eval.simple_evaluate(model=PagewireLM("localhost:50051"), tasks=[...])`.
"""

from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from pagewire.client import Client
from pagewire.likelihood import Scorer


@register_model("pagewire")
class PagewireLM(LM):  # type: ignore[misc]
    """A served model as lm-eval's LM."""

    def __init__(
        self,
        server: str = "localhost:50051",
        api_key: str | None = None,
        prefix_token_id: int | None = None,
        **_options: object,
    ) -> None:
        """
        Args:
            server: where it serves, as Client's target.
            prefix_token_id: see Scorer.
            _options: batch_size, device and what else lm-eval passes to every model; the server decides on these.
        """
        super().__init__()
        self._client = Client(server, api_key=api_key)
        self.scorer = Scorer(self._client, prefix_token_id=prefix_token_id)

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """See Scorer."""
        return self._kept("loglikelihood", requests, self.scorer.loglikelihood([each.args for each in requests]))

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """See Scorer."""
        answers = self.scorer.loglikelihood_rolling([each.args[0] for each in requests])
        return self._kept("loglikelihood_rolling", requests, answers)

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """See Scorer."""
        return self._kept("generate_until", requests, self.scorer.generate_until([each.args for each in requests]))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as the model's chat template renders it."""
        prompt: Any = {
            "messages": chat_history,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": not add_generation_prompt,
        }
        return self._client.detokenize(self._client.tokenize(prompt), skip_special_tokens=False)

    @property
    def tokenizer_name(self) -> str:
        """The name of the model, which lm-eval's cache of requests is told apart by."""
        return self._client.get_model().name.replace("/", "__")

    def _kept(self, method: str, requests: Sequence[Instance], answers: list[Any]) -> list[Any]:
        """The answers, which lm-eval's cache of answers gets too."""
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial(method, request.args, answer)
        return answers


def main() -> None:
    """lm-eval's own command, which knows the model `pagewire`."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
