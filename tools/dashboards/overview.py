"""The dashboard to open first: is it up, is it full, is it fast."""

from dashboards.grafana import Dashboard, Panel, Query, Row, quantile, rate, stat

ERRORS = 'status=~"INTERNAL|UNAVAILABLE|ABORTED"'
GENERATING = 'method=~"Generate|Complete"'
_FAILED = rate("pagewire_requests_total", labels=f"{GENERATING},{ERRORS}")
_ALL = rate("pagewire_requests_total", labels=GENERATING)

_NOW = Row(
    "Now",
    [
        stat("Routers ready", "Routers that would take a request.", "short", "sum(pagewire_ready{@})"),
        stat(
            "Groups serving",
            "Shard groups of which at least one router holds the lease.",
            "short",
            "count(max by (group) (pagewire_group_serving{@}) == 1) or vector(0)",
        ),
        stat("Requests running", "Admitted to shard groups.", "short", "sum(pagewire_requests_running{@})"),
        stat("Requests queued", "Waiting to be admitted.", "short", "sum(pagewire_requests_queued{@})"),
        stat(
            "Tokens sampled",
            "Per second, over all requests.",
            "short",
            rate("pagewire_tokens_total", labels='kind="generation"'),
        ),
        stat(
            "Failed calls",
            "Share of Generate and Complete calls that failed for no reason of the client's.",
            "percentunit",
            f"{_FAILED} / ({_ALL} > 0) or vector(0)",
        ),
    ],
)
_TRAFFIC = Row(
    "Traffic",
    [
        Panel(
            "Calls",
            "Generate and Complete calls that ended, by gRPC status.",
            "reqps",
            [Query(rate("pagewire_requests_total", by="status", labels=GENERATING) + " > 0", "{{status}}")],
            stacked=True,
        ),
        Panel(
            "Requests",
            "Open from submission to end; running and queued as the schedulers see them.",
            "short",
            [
                Query("sum(pagewire_requests_open{@})", "open"),
                Query("sum(pagewire_requests_running{@})", "running"),
                Query("sum(pagewire_requests_queued{@})", "queued"),
            ],
        ),
        Panel(
            "Tokens",
            "Per second: prompts computed, prompts found in the prefix cache, sampled, and computed again after a "
            "preemption or a failover.",
            "short",
            [Query(rate("pagewire_tokens_total", by="kind"), "{{kind}}")],
            stacked=True,
        ),
    ],
)
_SPEED = Row(
    "Speed",
    [
        Panel(
            "Time to first token",
            "From a call's arrival until the first message with a token is written.",
            "s",
            [Query(quantile(q, "pagewire_time_to_first_token_seconds"), f"p{q * 100:g}") for q in (0.5, 0.9, 0.99)],
        ),
        Panel(
            "Inter-token latency",
            "Between tokens of a sequence as they are written.",
            "s",
            [Query(quantile(q, "pagewire_inter_token_latency_seconds"), f"p{q * 100:g}") for q in (0.5, 0.9, 0.99)],
        ),
        Panel(
            "How sequences ended",
            "Per second, by reason. abort: the client went away; error: the router could not go on.",
            "ops",
            [Query(rate("pagewire_sequences_finished_total", by="reason"), "{{reason}}")],
            stacked=True,
        ),
    ],
)
_ROOM = Row(
    "Room",
    [
        Panel(
            "KV cache in use",
            "Share of each group's blocks that sequences hold.",
            "percentunit",
            [Query("max by (group) (pagewire_group_kv_cache_usage_ratio{@})", "group {{group}}")],
            maximum=1,
        ),
        Panel(
            "Queue, share of its limit",
            "The fuller of the two limits, requests and prompt tokens. At 100 % requests are refused.",
            "percentunit",
            [
                Query("max(pagewire_requests_queued{@} / pagewire_max_queued_requests{@})", "requests"),
                Query("max(pagewire_tokens_queued{@} / pagewire_max_queued_tokens{@})", "tokens"),
            ],
        ),
        Panel(
            "Preemptions and failovers",
            "Per second. A preempted request is computed again when there is room; a failover moves all of a group's.",
            "ops",
            [
                Query(rate("pagewire_preemptions_total"), "preemptions"),
                Query(rate("pagewire_failovers_total"), "failovers"),
            ],
        ),
    ],
)
_ROUTERS = Row(
    "Routers",
    [
        Panel(
            "CPU",
            "Cores in use by each router. Its event loop can use one.",
            "short",
            [
                Query(
                    "rate(process_cpu_seconds_total{@}[$__rate_interval]) "
                    "and on (namespace, job, instance) pagewire_info{@}",
                    "{{instance}}",
                )
            ],
        ),
        Panel(
            "Event loop lag",
            "How late the event loop runs what is due, 99th percentile. All tokens wait meanwhile.",
            "s",
            [Query(quantile(0.99, "pagewire_event_loop_lag_seconds", by="instance"), "{{instance}}")],
        ),
        Panel(
            "Resident memory",
            "Of each router.",
            "bytes",
            [
                Query(
                    "process_resident_memory_bytes{@} and on (namespace, job, instance) pagewire_info{@}",
                    "{{instance}}",
                )
            ],
        ),
        Panel("Versions", "What runs.", "short", [Query("pagewire_info{@}")], "table", width=8, height=6),
        Panel("Models", "What is served.", "short", [Query("pagewire_model_info{@}")], "table", width=16, height=6),
    ],
)

DASHBOARD = Dashboard(
    "overview",
    "pagewire / Overview",
    "Is it up, is it full, is it fast.",
    [_NOW, _TRAFFIC, _SPEED, _ROOM, _ROUTERS],
)
