"""The KV cache: how full, how much of prompts it provides, what it costs when it is too small."""

from dashboards.grafana import Dashboard, Panel, Query, Row, quantile, rate


def _per_group(expr: str) -> str:
    """Of the first rank of each group: all ranks hold the same blocks."""
    return (
        f"sum by (group) ({expr} * on (namespace, job, instance) group_left (group) "
        'group by (namespace, job, instance, group) (pagewire_shard_info{@,tp_rank="0"}))'
    )


def _rate_per_group(metric: str) -> str:
    return _per_group(f"rate({metric}{{@}}[$__rate_interval])")


_ROOM = Row(
    "Room",
    [
        Panel(
            "Blocks in use, by the routers",
            "Share of each group's blocks that sequences hold, as its router knows from the last result.",
            "percentunit",
            [Query("max by (group) (pagewire_group_kv_cache_usage_ratio{@})", "group {{group}}")],
            maximum=1,
        ),
        Panel(
            "Blocks in use, by the shards",
            "The same as the shards count it.",
            "percentunit",
            [Query("max by (instance) (pagewire_shard_kv_cache_usage_ratio{@})", "{{instance}}")],
            maximum=1,
        ),
        Panel(
            "Blocks of the prefix index",
            "Share of the pool whose content can be found again, held or not.",
            "percentunit",
            [
                Query(
                    "pagewire_shard_prefix_cache_blocks{@} / on (namespace, job, instance) "
                    "sum by (namespace, job, instance) (pagewire_shard_kv_cache_blocks{@})",
                    "{{instance}}",
                )
            ],
            maximum=1,
        ),
    ],
)
_HIT_ROW = Row(
    "Prefix cache",
    [
        Panel(
            "Hit rate",
            "Share of looked-up tokens that a cached prefix provided.",
            "percentunit",
            [
                Query(
                    f"{_rate_per_group('pagewire_shard_prefix_cache_hit_tokens_total')} / "
                    f"{_rate_per_group('pagewire_shard_prefix_cache_queried_tokens_total')}",
                    "group {{group}}",
                )
            ],
            maximum=1,
        ),
        Panel(
            "Prompt tokens",
            "Per second, computed and found in the cache, when requests were first admitted.",
            "short",
            [Query(rate("pagewire_tokens_total", by="kind", labels='kind=~"prompt_.*"'), "{{kind}}")],
            stacked=True,
        ),
        Panel(
            "Index changes",
            "Blocks that entered and left the prefix index each second. Leaving as fast as entering, with few hits: "
            "prompts have little in common, or the pool is too small to keep it.",
            "ops",
            [
                Query(_rate_per_group("pagewire_shard_prefix_cache_blocks_added_total"), "added, group {{group}}"),
                Query(_rate_per_group("pagewire_shard_prefix_cache_blocks_removed_total"), "removed, group {{group}}"),
            ],
        ),
    ],
)
_COST = Row(
    "When it is full",
    [
        Panel(
            "Preemptions",
            "Requests put back to wait for want of blocks, per second.",
            "ops",
            [Query(rate("pagewire_preemptions_total", by="group"), "group {{group}}")],
        ),
        Panel(
            "Tokens computed again",
            "Per second, after preemptions and failovers. What the prefix cache kept is not in it.",
            "short",
            [Query(rate("pagewire_tokens_total", by="group", labels='kind="recomputed"'), "group {{group}}")],
        ),
        Panel(
            "Prompt tokens that wait",
            "By shard group.",
            "short",
            [Query("sum by (group) (pagewire_group_tokens_queued{@})", "group {{group}}")],
        ),
        Panel(
            "Tokens of prompts",
            "Sizes of accepted prompts.",
            "short",
            [Query(quantile(q, "pagewire_request_prompt_tokens"), f"p{q * 100:g}") for q in (0.5, 0.9, 0.99)],
        ),
        Panel(
            "Sequences running",
            "By shard group.",
            "short",
            [Query("sum by (group) (pagewire_group_sequences_running{@})", "group {{group}}")],
        ),
    ],
)

DASHBOARD = Dashboard(
    "cache",
    "pagewire / KV cache",
    "How full the KV cache is, how much of prompts it provides, what it costs when it is too small.",
    [_ROOM, _HIT_ROW, _COST],
)
