"""Draws the figures of routers for a terminal."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pagewire.top.figures import RouterFigures, driven_groups, totals

_BARS = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 20
_GAUGE_WIDTH = 8
"""All fits a terminal of 80 columns."""


def view(routers: Sequence[RouterFigures], history: Sequence[float]) -> RenderableType:
    """Everything that is shown at a time.

    history: tokens per second, oldest first.
    """
    problems = [Text(f" {each.address}: {each.problem}", style="red") for each in routers if each.problem]
    models = ", ".join(sorted({each.model for each in routers if each.model}))
    title = Text(" pagewire  ", style="bold").append(models, style="dim")
    return Group(title, _tiles(routers, history), _router_table(routers), Text(), _group_table(routers), *problems)


def _tiles(routers: Sequence[RouterFigures], history: Sequence[float]) -> RenderableType:
    total = totals(routers)
    cache = Text(f"{100 * total.cache_ratio:.1f} %  ").append(_gauge(total.cache_ratio))
    rate = Text(f"{compact(total.generated_per_s)}  ").append(spark(history), style="cyan")
    tiles = (
        ("running", Text(str(total.num_running))),
        ("waiting", Text(str(total.num_queued), style="yellow" if total.num_queued else "")),
        ("cache in use", cache),
        ("tokens per second", rate),
    )
    for _, value in tiles:
        value.stylize("bold", 0, len(value.plain.split("  ")[0]))
    grid = Table.grid(expand=True)
    for ratio in (4, 4, 7, 11):
        grid.add_column(ratio=ratio)
    grid.add_row(*(Panel(value, title=title, title_align="left", border_style="dim") for title, value in tiles))
    return grid


def _router_table(routers: Sequence[RouterFigures]) -> Table:
    table = _table("router", "state", "running", "waiting", "cache", "ended/s", "1st token", "per token")
    for router in routers:
        if router.problem:
            table.add_row(router.address, Text("unreachable", style="red"))
            continue
        table.add_row(
            router.address,
            _state(router.is_ready, router.is_draining, "not ready"),
            str(router.num_running),
            str(router.num_queued),
            f"{100 * router.cache_ratio:.1f} %",
            f"{router.finished_per_s:.1f}",
            milliseconds(router.first_token_s),
            milliseconds(router.inter_token_s),
        )
    return table


def _group_table(routers: Sequence[RouterFigures]) -> Table:
    several = sum(not router.problem for router in routers) > 1
    columns = ("group", *(("router",) if several else ()), "state", "running", "waiting", "cache", "tokens/s")
    table = _table(*columns, "prompts/s", *(() if several else ("from cache",)))
    for router, group in driven_groups(routers):
        prompts = group.prompts_per_s + group.cached_per_s
        table.add_row(
            group.id,
            *((router.address,) if several else ()),
            _state(group.is_serving, group.is_draining, "not serving"),
            str(group.num_running),
            str(group.num_queued),
            Text(f"{100 * group.cache_ratio:5.1f} % ").append(Text() if several else _gauge(group.cache_ratio)),
            compact(group.generated_per_s),
            compact(prompts),
            *(() if several else (f"{100 * group.cached_per_s / prompts:.0f} %" if prompts else "",)),
        )
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim", expand=False)
    for column in columns:
        is_number = column not in ("router", "state", "group")
        table.add_column(column, justify="right" if is_number else "left", no_wrap=True)
    return table


def _state(is_well: bool, is_draining: bool, otherwise: str) -> Text:
    if is_draining:
        return Text("draining", style="yellow")
    return Text("serving", style="green") if is_well else Text(otherwise, style="red")


def _gauge(ratio: float) -> Text:
    filled = round(min(max(ratio, 0.0), 1.0) * _GAUGE_WIDTH)
    style = "red" if ratio > 0.95 else "cyan"
    return Text("━" * filled, style=style).append("━" * (_GAUGE_WIDTH - filled), style="bright_black")


def spark(values: Sequence[float]) -> str:
    """A row of bars, the last value at its right end, as high as their share of the highest."""
    shown = list(values)[-_SPARK_WIDTH:]
    top = max(shown, default=0.0)
    bars = "".join(_BARS[min(int(value / top * len(_BARS)), len(_BARS) - 1)] if top else _BARS[0] for value in shown)
    return bars.rjust(_SPARK_WIDTH, _BARS[0])


def compact(number: float) -> str:
    """A number of at most five characters."""
    if number >= 1e6:
        return f"{number / 1e6:.1f}M"
    return f"{number / 1000:.1f}k" if number >= 10_000 else f"{number:.0f}"


def milliseconds(seconds: float | None) -> str:
    """A time in words; nothing if there is none."""
    if seconds is None:
        return ""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"
