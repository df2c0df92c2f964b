"""`pagewire bench`: offers a load to a running router and reports latency and throughput."""
