"""Out to the engines: metric families and what writes them in the formats that engines read.

- `model`: families with their points, the language that all writers speak.
- `names`: OpenTelemetry's names as Prometheus writes them; escaping schemes.
- `protobuf`, `openmetrics`, `text`: one writer each, a pure function from families to bytes.
- `negotiation`: which of them a scraper's `Accept` asks for, and gzip.
"""
