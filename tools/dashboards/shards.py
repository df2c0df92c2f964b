"""Each shard: is it driven, how long are its steps, how full are its batches."""

from dashboards.grafana import Dashboard, Panel, Query, Row, mean, quantile, rate, stat

_ON_SHARDS = "and on (namespace, job, instance) pagewire_shard_info{@}"

_NOW = Row(
    "Now",
    [
        stat("Shards ready", "Shards that would run a plan.", "short", "sum(pagewire_shard_ready{@})"),
        stat("Driven", "Shards whose lease a router holds.", "short", "sum(pagewire_shard_lease_held{@})"),
        stat("Draining", "Shards that were told to stop.", "short", "sum(pagewire_shard_draining{@})"),
        stat(
            "Longest without progress",
            "For how long work has waited without any progress.",
            "s",
            "max(pagewire_shard_stalled_seconds{@})",
        ),
        stat("Steps", "Per second, over all shards.", "ops", rate("pagewire_shard_steps_total")),
        stat("Tokens sampled", "Per second.", "short", rate("pagewire_shard_sampled_tokens_total")),
    ],
)
_STEPS = Row(
    "Steps",
    [
        Panel(
            "Step time",
            "Median and 99th percentile, by shard.",
            "s",
            [
                Query(quantile(0.5, "pagewire_shard_step_seconds", by="instance"), "p50 {{instance}}"),
                Query(quantile(0.99, "pagewire_shard_step_seconds", by="instance"), "p99 {{instance}}"),
            ],
        ),
        Panel(
            "Mean step by part",
            "Preparing the batch, the model, sampling with the way back to the host; over all shards.",
            "s",
            [Query(mean("pagewire_shard_step_part_seconds", by="part"), "{{part}}")],
            stacked=True,
        ),
        Panel(
            "Plans waiting",
            "From a plan's arrival to its launch. Near zero: the device waits for the router.",
            "s",
            [
                Query(quantile(0.5, "pagewire_shard_plan_queue_seconds", by="instance"), "p50 {{instance}}"),
                Query(quantile(0.99, "pagewire_shard_plan_queue_seconds", by="instance"), "p99 {{instance}}"),
            ],
        ),
    ],
)
_BATCHES = Row(
    "Batches",
    [
        Panel(
            "Sequences in a step",
            "Mean and 99th percentile, by shard, and the most that it can hold.",
            "short",
            [
                Query(mean("pagewire_shard_step_sequences", by="instance"), "mean {{instance}}"),
                Query(quantile(0.99, "pagewire_shard_step_sequences", by="instance"), "p99 {{instance}}"),
                Query("max(pagewire_shard_max_sequences{@})", "limit"),
            ],
        ),
        Panel(
            "Tokens in a step",
            "Mean and 99th percentile, by shard, and the most that a plan may ask for.",
            "short",
            [
                Query(mean("pagewire_shard_step_tokens", by="instance"), "mean {{instance}}"),
                Query(quantile(0.99, "pagewire_shard_step_tokens", by="instance"), "p99 {{instance}}"),
                Query("max(pagewire_shard_max_step_tokens{@})", "limit"),
            ],
        ),
        Panel(
            "Tokens",
            "Per second: computed, prompts included, and sampled.",
            "short",
            [
                Query(rate("pagewire_shard_computed_tokens_total", by="instance"), "computed {{instance}}"),
                Query(rate("pagewire_shard_sampled_tokens_total", by="instance"), "sampled {{instance}}"),
            ],
        ),
    ],
)
_FAULTS = Row(
    "Leases and faults",
    [
        Panel(
            "Lease",
            "Counter of the last lease; each step up is a router that took the shard.",
            "short",
            [Query("pagewire_shard_epoch{@}", "{{instance}}")],
        ),
        Panel(
            "Plan streams that broke",
            "Per second, by reason.",
            "ops",
            [Query(rate("pagewire_shard_plan_stream_failures_total", by="reason"), "{{reason}}")],
        ),
        Panel(
            "Failed steps and refused plans",
            "Per second. Neither is ever normal: a failed step is a bug or a fault of the device, a refused plan a "
            "router that counts otherwise than the shard.",
            "ops",
            [
                Query(rate("pagewire_shard_failed_steps_total"), "failed steps"),
                Query(rate("pagewire_shard_refused_plans_total"), "refused plans"),
                Query(rate("pagewire_digest_mismatches_total"), "digest mismatches"),
            ],
        ),
    ],
)
_PROCESSES = Row(
    "Processes",
    [
        Panel(
            "CPU",
            "Cores in use by each shard.",
            "short",
            [Query(f"rate(process_cpu_seconds_total{{@}}[$__rate_interval]) {_ON_SHARDS}", "{{instance}}")],
            width=12,
        ),
        Panel(
            "Resident memory",
            "Of each shard, on the host.",
            "bytes",
            [Query(f"process_resident_memory_bytes{{@}} {_ON_SHARDS}", "{{instance}}")],
            width=12,
        ),
        Panel("Shards", "What runs.", "short", [Query("pagewire_shard_info{@}")], "table", width=24, height=6),
    ],
)

DASHBOARD = Dashboard(
    "shards",
    "pagewire / Shards",
    "Each shard: is it driven, how long are its steps, how full are its batches.",
    [_NOW, _STEPS, _BATCHES, _FAULTS, _PROCESSES],
)
