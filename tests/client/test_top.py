"""`pagewire top` reads pages, tells rates from two of them, and draws them."""

import io
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pagewire.cli import main
from pagewire.top.cli import Watch
from pagewire.top.exposition import Page, UnreadablePage, parse_page, read_page, url_of
from pagewire.top.figures import GroupFigures, RouterFigures, driven_groups, router_figures, totals
from pagewire.top.view import compact, milliseconds, short_names, spark, view
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from rich.console import Console

TEXT = """\
# HELP pagewire_ready 1 if a new request would run.
# TYPE pagewire_ready gauge
pagewire_ready 1.0
pagewire_draining 0.0
pagewire_requests_running {running}
pagewire_requests_queued 3.0
pagewire_kv_cache_usage_ratio 0.25
pagewire_model_info{{architecture="L",model="tiny"}} 1.0
pagewire_group_serving{{group="0"}} {serving}
pagewire_group_serving{{group="1"}} 0.0
pagewire_group_draining{{group="0"}} 0.0
pagewire_group_requests_running{{group="0"}} {running}
pagewire_group_kv_cache_usage_ratio{{group="0"}} 0.25
pagewire_tokens_total{{group="0",kind="generation"}} {generated}
pagewire_tokens_total{{group="0",kind="prompt_computed"}} 100.0
pagewire_tokens_total{{group="0",kind="prompt_cached"}} {cached}
pagewire_time_to_first_token_seconds_sum {first_s}
pagewire_time_to_first_token_seconds_count {first}
pagewire_sequences_finished_total{{reason="stop"}} 5.0
"""


def page(time_s=0.0, *, running=2, serving=1, generated=1000, cached=0, first_s=1.0, first=10):
    values = {"running": running, "serving": serving, "generated": generated, "cached": cached}
    return parse_page(TEXT.format(**values, first_s=first_s, first=first), time_s)


def drawn(routers, history=(), width=140):
    console = Console(file=io.StringIO(), width=width)
    console.print(view(routers, history, width))
    return console.file.getvalue()


def test_rates_and_means_are_of_the_time_between_two_pages():
    later = page(12.0, generated=1500, cached=40, first_s=3.0, first=14)
    figures = router_figures("a:1", later, page(10.0))
    assert (figures.model, figures.is_ready, figures.num_running, figures.num_queued) == ("tiny", True, 2, 3)
    assert figures.first_token_s == 0.5
    assert figures.inter_token_s is None
    group, other = figures.groups
    assert (group.generated_per_s, group.prompts_per_s, group.cached_per_s) == (250, 0, 20)
    assert group.is_serving
    assert not other.is_serving


def test_the_first_page_and_a_restarted_router_have_no_rates():
    assert router_figures("a:1", page(), None).groups[0].generated_per_s == 0
    assert router_figures("a:1", page(2.0, generated=10, first=1), page(1.0)).groups[0].generated_per_s == 0
    assert router_figures("a:1", page(2.0, generated=10, first=1), page(1.0)).first_token_s is None


def test_a_group_is_shown_once_by_the_router_that_drives_it():
    standby = router_figures("a:1", page(serving=0, running=0), None)
    active = router_figures("b:1", page(), None)
    assert [(router.address, group.id) for router, group in driven_groups([standby, active])] == [
        ("b:1", "0"),
        ("a:1", "1"),
    ]
    assert totals([standby, active]).num_running == 2


def test_what_is_drawn():
    earlier, later = page(10.0), page(12.0, generated=1500, cached=300, first_s=3.0, first=14)
    text = drawn([router_figures("a:1", later, earlier)], [0, 100, 250])
    for part in ("running", "waiting", "25.0 %", "250", "█", "tiny", "serving", "500.0 ms", "not serving", "100 %"):
        assert part in text


def many_routers():
    """Two routers with the names that a cluster gives them, one that drives four groups, and one that is gone."""
    groups = tuple(
        GroupFigures(f"pagewire-shard-{i}", True, False, 256, 1024, 0.97, 16_834.0, 29_211.0, 4_100.0) for i in range(4)
    )
    names = [f"pagewire-router-{i}.llm.svc.cluster.local:9400" for i in range(2)]
    return [
        *(RouterFigures(name, "", "llama", True, False, 1024, 1024, 0.97, 113.2, 1.2, 0.1, groups) for name in names),
        RouterFigures("10.0.0.9:9400", problem="Connection refused"),
    ]


@pytest.mark.parametrize("width", [80, 120, 200])
def test_every_figure_fits_the_terminal(width):
    text = drawn(many_routers(), [1.0] * 60, width)
    assert "…" not in text
    assert all(len(line) <= width for line in text.splitlines())
    for part in ("pagewire-router-1", "10.0.0.9", "no answer", "pagewire-shard-3", "per token", "100.0 ms", "12 %"):
        assert part in text, part
    assert ("pagewire-router-0" in text.partition("pagewire-shard-0")[2]) == (width >= 100)


def test_names_of_routers_are_as_short_as_tells_them_apart():
    assert short_names(["a:1"]) == {"a:1": "a:1"}
    assert short_names(["a:1", "a:2"]) == {"a:1": "a:1", "a:2": "a:2"}
    assert short_names(["a.x:1", "b.x:1"]) == {"a.x:1": "a", "b.x:1": "b"}
    assert short_names(["a.x:1", "a.y:1"]) == {"a.x:1": "a.x", "a.y:1": "a.y"}
    assert short_names(["10.0.0.1:1", "[::1]:1"]) == {"10.0.0.1:1": "10.0.0.1", "[::1]:1": "[::1]"}


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=("Cs",)), max_size=8), st.floats(allow_nan=False), max_size=5
    )
)
def test_samples_are_read_as_prometheus_writes_them(values):
    registry = CollectorRegistry()
    gauge = Gauge("load", "Help with {braces} 1", ["a", "b"], registry=registry)
    for label, value in values.items():
        gauge.labels(label, "x y").set(value)
    found = parse_page(generate_latest(registry).decode(), 0.0)
    for label, value in values.items():
        assert found.value("load", a=label, b="x y") == value


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("router", "http://router:9400/metrics"),
        ("router:1", "http://router:1/metrics"),
        ("[::1]:1", "http://[::1]:1/metrics"),
        ("[::1]", "http://[::1]:9400/metrics"),
        ("https://router:1", "https://router:1/metrics"),
        ("http://router/pages/metrics", "http://router/pages/metrics"),
    ],
)
def test_addresses(address, url):
    assert url_of(address) == url


def test_small_words():
    assert [compact(number) for number in (0, 999.6, 9999, 12_345, 2_500_000)] == ["0", "1000", "9999", "12.3k", "2.5M"]
    assert [milliseconds(seconds) for seconds in (None, 0.0123, 2)] == ["", "12.3 ms", "2.00 s"]
    assert spark([], 20) == "▁" * 20
    assert spark([0, 1, 2], 5) == "▁▁▁▅█"


@pytest.fixture
def served():
    """Serves pages one after the other, and then 503."""
    pages = [TEXT.format(running=1, serving=1, generated=n, cached=0, first_s=0, first=0) for n in (0, 50, 100)]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = pages.pop(0).encode() if pages else b""
            self.send_response(200 if body else 503)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_router_that_cannot_be_read_is_a_row_of_its_own(served):
    watch = Watch([served, "127.0.0.1:1"], timeout_s=5.0)
    first = watch.read()
    second = watch.read()
    watch.close()
    assert not first[0].problem
    assert second[0].groups[0].generated_per_s > 0
    assert len(watch.history) == 1
    assert "refused" in second[1].problem
    assert "refused" in drawn(second)


def test_once_prints_one_interval_and_says_by_its_status_if_there_was_none(served, capsys):
    assert main(["top", served, "--once", "--interval", "0.1"]) == 0
    assert "tiny" in capsys.readouterr().out
    main(["top", served, "--once", "--interval", "0.1"])
    assert main(["top", served, "--once", "--interval", "0.1"]) == 1
    assert "answers 503" in capsys.readouterr().out


def test_what_is_no_page_is_refused():
    assert parse_page("<html>\nnot a page\n{} x\na b\n", 0.0) == Page(0.0, {})
    with pytest.raises(UnreadablePage):
        read_page("http://[bad", 1.0)


@pytest.mark.parametrize("interval", ["0", "-1", "x", "nan"])
def test_an_interval_is_a_time(interval, capsys):
    with pytest.raises(SystemExit):
        main(["top", "--interval", interval])
    assert "--interval" in capsys.readouterr().err
