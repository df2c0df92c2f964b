"""Metrics of the router, as Prometheus reads them."""
