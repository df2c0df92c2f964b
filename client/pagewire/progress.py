"""A progress bar for many prompts. It is shown on terminals only."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pagewire.outputs import RequestOutput


@contextmanager
def progress_bar(num_prompts: int, *, enabled: bool) -> Iterator[Callable[[RequestOutput], None] | None]:
    """Yields a function to call with each answer; None if there is no terminal or nothing to count."""
    if not enabled or num_prompts < 2 or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("Prompts"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rate]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("Prompts", total=num_prompts, rate="")
        num_tokens = 0

        def advance(output: RequestOutput) -> None:
            nonlocal num_tokens
            num_tokens += sum(len(completion.token_ids) for completion in output.outputs)
            elapsed_s = progress.tasks[0].elapsed
            rate = f"{num_tokens / elapsed_s:,.0f} tok/s" if elapsed_s else ""
            progress.update(task, advance=1, rate=rate)

        yield advance
