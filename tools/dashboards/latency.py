"""Where the time of a request goes, from its arrival to its last token."""

from dashboards.grafana import Dashboard, Panel, Query, Row, heatmap, mean, quantile, quantiles, rate

_GENERATING = 'method=~"Generate|Complete"'
_CALLS = rate("pagewire_requests_total", labels=_GENERATING)
_LATE = rate("pagewire_requests_total", labels=f'{_GENERATING},status="DEADLINE_EXCEEDED"')

_FIRST = Row(
    "To the first token",
    [
        heatmap("Time to first token", "Requests per second in each bucket.", "pagewire_time_to_first_token_seconds"),
        Panel(
            "Time to first token by part",
            "Means, stacked: admission (checks, template, tokenizing), queue, and prefill with the first write.",
            "s",
            [
                Query(mean("pagewire_admission_time_seconds"), "admission"),
                Query(mean("pagewire_queue_time_seconds"), "queue"),
                Query(mean("pagewire_prefill_time_seconds"), "prefill"),
            ],
            width=12,
            stacked=True,
        ),
        Panel("Admission", "Checks, chat template, tokenizing.", "s", quantiles("pagewire_admission_time_seconds")),
        Panel(
            "Queue",
            "From the queue to the first step plan. Requests that gave up waiting are in it.",
            "s",
            quantiles("pagewire_queue_time_seconds"),
        ),
        Panel(
            "Prefill",
            "From the first step plan to the first written token.",
            "s",
            quantiles("pagewire_prefill_time_seconds"),
        ),
    ],
)
_TOKENS = Row(
    "Token after token",
    [
        heatmap("Inter-token latency", "Tokens per second in each bucket.", "pagewire_inter_token_latency_seconds"),
        Panel(
            "Inter-token latency",
            "As written to the clients. Under load several tokens share a message and its gap.",
            "s",
            quantiles("pagewire_inter_token_latency_seconds"),
            width=12,
        ),
        Panel("Decode", "From the first token to the end.", "s", quantiles("pagewire_decode_time_seconds")),
        Panel("Whole request", "From arrival to end.", "s", quantiles("pagewire_request_latency_seconds")),
        Panel(
            "Tokens of a request",
            "Median and 99th percentile of prompts and of what was sampled for them.",
            "short",
            [
                Query(quantile(0.5, "pagewire_request_prompt_tokens"), "prompt p50"),
                Query(quantile(0.99, "pagewire_request_prompt_tokens"), "prompt p99"),
                Query(quantile(0.5, "pagewire_request_generation_tokens"), "generation p50"),
                Query(quantile(0.99, "pagewire_request_generation_tokens"), "generation p99"),
            ],
        ),
    ],
)
_PLANS = Row(
    "Between router and shards",
    [
        Panel(
            "Plan round trip",
            "From sending a step plan to its result. With two plans in flight, about two steps.",
            "s",
            quantiles("pagewire_plan_round_trip_seconds"),
        ),
        Panel(
            "Mean step by part",
            "As the shards report it: waiting behind the step before, preparing, the model, sampling.",
            "s",
            [
                Query(
                    f"{rate('pagewire_step_seconds_total', by='part')} / ignoring (part) group_left () "
                    f"{rate('pagewire_plan_round_trip_seconds_count')}",
                    "{{part}}",
                )
            ],
            stacked=True,
        ),
        Panel(
            "Plans in flight",
            "Step plans whose results are not back, most over the groups' routers.",
            "short",
            [Query("max by (group) (pagewire_group_plans_inflight{@})", "group {{group}}")],
        ),
        Panel(
            "Event loop lag",
            "How late a router's event loop is. All its streams wait meanwhile.",
            "s",
            quantiles("pagewire_event_loop_lag_seconds"),
        ),
        Panel(
            "Deadlines missed",
            "Share of calls that their deadline ended.",
            "percentunit",
            [Query(f"{_LATE} / {_CALLS}")],
        ),
    ],
)

DASHBOARD = Dashboard(
    "latency",
    "pagewire / Latency",
    "Where the time of a request goes, from its arrival to its last token.",
    [_FIRST, _TOKENS, _PLANS],
)
