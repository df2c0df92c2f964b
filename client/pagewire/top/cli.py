"""`pagewire top`: figures of one or more routers, drawn again every second."""

import argparse
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from pagewire.top.exposition import DEFAULT_PORT, Page, UnreadablePage, read_page, url_of
from pagewire.top.figures import RouterFigures, router_figures, totals

NUM_POINTS = 60
MIN_INTERVAL_S = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    parser.add_argument(
        "routers",
        nargs="*",
        default=[f"127.0.0.1:{DEFAULT_PORT}"],
        metavar="HOST:PORT",
        help=f"metrics address of each router, or the URL of its page (default: 127.0.0.1:{DEFAULT_PORT})",
    )
    parser.add_argument(
        "--interval", type=_interval, default=1.0, metavar="SECONDS", help="time between readings (default: 1)"
    )
    parser.add_argument("--once", action="store_true", help="print the figures of one interval, and end")


def _interval(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not MIN_INTERVAL_S <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is no time of {MIN_INTERVAL_S} to 3600 seconds")
    return value


class Watch:
    """Reads the pages of routers again and again."""

    def __init__(self, routers: Sequence[str], timeout_s: float) -> None:
        self._urls = {address: url_of(address) for address in routers}
        self._timeout_s = timeout_s
        self._before: dict[str, Page] = {}
        self._threads = ThreadPoolExecutor(max_workers=min(len(self._urls), 32), thread_name_prefix="top")
        self.history: deque[float] = deque(maxlen=NUM_POINTS)
        """Tokens per second of all routers, oldest first."""

    def read(self) -> list[RouterFigures]:
        """The figures since the last reading. The first reading has no rates."""
        is_first = not self._before
        figures = list(self._threads.map(self._read_one, self._urls))
        if not is_first:
            self.history.append(totals(figures).generated_per_s)
        return figures

    def _read_one(self, address: str) -> RouterFigures:
        try:
            page = read_page(self._urls[address], self._timeout_s)
        except UnreadablePage as error:
            return RouterFigures(address, problem=str(error))
        before, self._before[address] = self._before.get(address), page
        return router_figures(address, page, before)

    def close(self) -> None:
        """Ends the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def run(args: argparse.Namespace) -> int:
    """Draws figures until Ctrl-C; with --once the exit status is 1 if no router could be read."""
    from rich.console import Console
    from rich.live import Live

    from pagewire.top.view import view

    console = Console()
    watch = Watch(args.routers, timeout_s=max(2.0, args.interval))
    try:
        routers = watch.read()
        if args.once:
            time.sleep(args.interval)
            routers = watch.read()
            console.print(view(routers, watch.history, console.width))
            return int(all(router.problem for router in routers))
        with Live(
            view(routers, watch.history, console.width), console=console, screen=console.is_terminal, auto_refresh=False
        ) as live:
            while True:
                time.sleep(args.interval)
                live.update(view(watch.read(), watch.history, console.width), refresh=True)
    except KeyboardInterrupt:
        return 0
    finally:
        watch.close()
