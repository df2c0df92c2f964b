"""Draws the figures of routers for a terminal."""

import ipaddress
from collections.abc import Callable, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pagewire.top.figures import RouterFigures, driven_groups, totals

_BARS = "▁▂▃▄▅▆▇█"
MIN_WIDTH = 80
"""All fits a terminal of so many columns; on a wider one, curves and gauges grow and names are whole."""
_NAME_WIDTH = 17
"""Most characters of a name on a terminal of MIN_WIDTH."""
_SHORT_ID = 8
"""Ids of groups up to this length leave room for gauges on a terminal of MIN_WIDTH."""
_ROUTER_OF_GROUP_WIDTH = 100
"""From this width on, the table of groups says which router drives each."""


def view(routers: Sequence[RouterFigures], history: Sequence[float], width: int = MIN_WIDTH) -> RenderableType:
    """Everything that is shown at a time.

    Args:
        history: tokens per second, oldest first.
        width: columns of the terminal.
    """
    problems = [Text(f" {each.address}: {each.problem}", style="red") for each in routers if each.problem]
    models = ", ".join(sorted({each.model for each in routers if each.model}))
    title = Text(" pagewire  ", style="bold").append(models, style="dim")
    names = short_names([each.address for each in routers])
    return Group(
        title,
        _tiles(routers, history, width),
        _router_table(routers, names, width),
        Text(),
        _group_table(routers, names, width),
        *problems,
    )


def short_names(addresses: Sequence[str]) -> Mapping[str, str]:
    """Names that tell routers apart: without ports, and without domains, where what is left differs."""
    shorter: tuple[Callable[[str], str], ...] = (_without_port, lambda name: _without_domain(_without_port(name)))
    names = {address: address for address in addresses}
    for shorten in shorter:
        tried = {address: shorten(address) for address in addresses}
        if len(addresses) > 1 and len(set(tried.values())) == len(names):
            names = tried
    return names


def _without_port(address: str) -> str:
    host, _, port = address.rpartition(":")
    return host if host and port.isdecimal() else address


def _without_domain(host: str) -> str:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host.partition(".")[0] if "/" not in host else host
    return host


def _fit(name: str, width: int) -> str:
    """A name as a table of the terminal's width has room for it: its middle is left out if it is too long."""
    room = _NAME_WIDTH + max(width - MIN_WIDTH, 0) // 2
    if len(name) <= room:
        return name
    tail = (room - 1) // 2
    return f"{name[: room - 1 - tail]}…{name[len(name) - tail :]}"


def _tiles(routers: Sequence[RouterFigures], history: Sequence[float], width: int) -> RenderableType:
    total = totals(routers)
    beyond = max(width - MIN_WIDTH, 0)
    cache = Text(f"{100 * total.cache_ratio:.1f} %  ").append(_gauge(total.cache_ratio, 8 + 7 * beyond // 26))
    rate = Text(f"{compact(total.generated_per_s)}  ").append(spark(history, 20 + 11 * beyond // 26), style="cyan")
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


def _router_table(routers: Sequence[RouterFigures], names: Mapping[str, str], width: int) -> Table:
    table = _table("router", "state", "running", "waiting", "cache", "ended/s", "1st token", "per token")
    for router in routers:
        name = _fit(names[router.address], width)
        if router.problem:
            table.add_row(name, Text("no answer", style="red"))
            continue
        table.add_row(
            name,
            _state(router.is_ready, router.is_draining, "not ready"),
            str(router.num_running),
            str(router.num_queued),
            f"{100 * router.cache_ratio:.1f} %",
            f"{router.finished_per_s:.1f}",
            milliseconds(router.first_token_s),
            milliseconds(router.inter_token_s),
        )
    return table


def _group_table(routers: Sequence[RouterFigures], names: Mapping[str, str], width: int) -> Table:
    several = sum(not router.problem for router in routers) > 1 and width >= _ROUTER_OF_GROUP_WIDTH
    columns = ("group", *(("router",) if several else ()), "state", "running", "waiting", "cache", "tokens/s")
    table = _table(*columns, "prompts/s", "from cache")
    groups = driven_groups(routers)
    has_room = width >= _ROUTER_OF_GROUP_WIDTH or all(len(group.id) <= _SHORT_ID for _, group in groups)
    gauge_width = 20 if width >= 2 * MIN_WIDTH else 8 if has_room else 0
    for router, group in groups:
        prompts = group.prompts_per_s + group.cached_per_s
        table.add_row(
            _fit(group.id, width),
            *((_fit(names[router.address], width),) if several else ()),
            _state(group.is_serving, group.is_draining, "not serving"),
            str(group.num_running),
            str(group.num_queued),
            Text(f"{100 * group.cache_ratio:.1f} % ").append(_gauge(group.cache_ratio, gauge_width)),
            compact(group.generated_per_s),
            compact(prompts),
            f"{100 * group.cached_per_s / prompts:.0f} %" if prompts else "",
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


def _gauge(ratio: float, width: int) -> Text:
    filled = round(min(max(ratio, 0.0), 1.0) * width)
    style = "red" if ratio > 0.95 else "cyan"
    return Text("━" * filled, style=style).append("━" * (width - filled), style="bright_black")


def spark(values: Sequence[float], width: int) -> str:
    """A row of bars, the last value at its right end, as high as their share of the highest."""
    shown = list(values)[-width:]
    top = max(shown, default=0.0)
    bars = "".join(_BARS[min(int(value / top * len(_BARS)), len(_BARS) - 1)] if top else _BARS[0] for value in shown)
    return bars.rjust(width, _BARS[0])


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
