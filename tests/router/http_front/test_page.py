"""The page at / and the figures it shows."""

import httpx2
from pagewire_router.http_front.page import PAGES
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily


class Figures:
    """What groups report, in part."""

    def collect(self):
        running = GaugeMetricFamily("pagewire_group_requests_running", "", labels=["group"])
        running.add_metric(["0"], 2)
        tokens = CounterMetricFamily("pagewire_tokens", "", labels=["group", "kind"])
        tokens.add_metric(["0", "generation"], 7)
        tokens.add_metric(["0", "prompt_computed"], 9)
        yield from (running, tokens, GaugeMetricFamily("pagewire_requests_running", "", value=3))


async def test_the_page_is_whole_and_asks_nobody_else(serve_http):
    async with serve_http() as front, httpx2.AsyncClient(base_url=front.base_url) as client:
        for path in PAGES:
            response = await client.get(path)
            assert response.status_code == 200
            assert "default-src 'self'" in response.headers["content-security-policy"]
            assert "https://" not in response.text
        assert '<script src="page.js">' in (await client.get("/")).text


async def test_the_figures_are_those_of_the_metrics(serve_http):
    async with serve_http() as front, httpx2.AsyncClient(base_url=front.base_url) as client:
        front.runner.collector.register(Figures())
        stats = (await client.get("/page/stats")).json()
        assert stats["model"] == "tiny"
        assert stats["supports_chat"] is True
        assert stats["requests_running"] == 3
        assert stats["groups"] == [{"id": "0", "requests_running": 2, "tokens_generated": 7}]
        # Many pages at once cost no more than one.
        assert (await client.get("/page/stats")).json()["time_s"] == stats["time_s"]


async def test_the_page_needs_no_key_but_its_figures_do(serve_http, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    async with serve_http({"api_keys": str(keys)}) as front, httpx2.AsyncClient(base_url=front.base_url) as client:
        assert (await client.get("/")).status_code == 200
        assert (await client.get("/page/stats")).status_code == 401
        headers = {"authorization": "Bearer secret"}
        assert (await client.get("/page/stats", headers=headers)).status_code == 200


async def test_the_page_can_be_left_out(serve_http):
    async with serve_http({"http_page": False}) as front, httpx2.AsyncClient(base_url=front.base_url) as client:
        assert (await client.get("/")).status_code == 404
        assert (await client.get("/page/stats")).status_code == 404
