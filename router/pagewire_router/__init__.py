"""The router: tokenizes, queues, schedules; drives shard groups over the plan stream. Never imports torch."""
