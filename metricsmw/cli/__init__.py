"""The `metricsmw` command; the only room of the core that imports adapters or extras."""
