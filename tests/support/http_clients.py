"""A server that other people's HTTP clients are tested on, and what it says of itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pagewire_shard
from cluster import eventually, free_port, read_metrics, serve
from tokenizers import Tokenizer

MODEL = "demo"
DEMO_FOLDER = Path(pagewire_shard.__file__).parent / "demo_model"
KEY = "a-key-that-the-router-knows"


@dataclass(frozen=True)
class Server:
    """Where it serves, and what it says of itself."""

    url: str
    metrics_port: int

    @property
    def num_running(self) -> int:
        """Requests that run now."""
        return int(read_metrics(self.metrics_port)["pagewire_requests_running"])

    @property
    def num_queued(self) -> int:
        """Requests that wait."""
        return int(read_metrics(self.metrics_port)["pagewire_requests_queued"])

    @property
    def num_aborted(self) -> int:
        """Sequences that ended because their clients went away."""
        return int(read_metrics(self.metrics_port)['pagewire_sequences_finished_total{reason="abort"}'])

    def check_a_request_is_freed(self, num_aborted: int) -> None:
        """Waits until one more sequence was aborted than before, and nothing runs."""
        eventually(lambda: self.num_aborted == num_aborted + 1, "the request ends with its client")
        eventually(lambda: self.num_running == 0, "nothing runs")


@contextmanager
def demo_server(*flags: str) -> Iterator[Server]:
    """`pagewire serve` with the bundled model."""
    port = free_port()
    with serve(Path(MODEL), "--http-port", "0", "--metrics-port", str(port), *flags) as service:
        yield Server(f"http://{service.http_address()}", port)


def marked_call(name: str, arguments: str) -> str:
    """A regular expression of a call in the format of Hermes, given that of its arguments."""
    return rf'<tool_call>\n\{{"name": "{name}", "arguments": {arguments}\}}\n</tool_call>'


def compact_bias() -> dict[str, int]:
    """A logit_bias without whitespace. The bundled model, which has seen no JSON, writes it without end if it may."""
    tokenizer = Tokenizer.from_file(str(DEMO_FOLDER / "tokenizer.json"))
    ids = range(tokenizer.get_vocab_size())
    return {
        str(token_id): -100 for token_id in ids if tokenizer.decode([token_id], skip_special_tokens=False).isspace()
    }
