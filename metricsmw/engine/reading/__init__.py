"""What a reader makes of all segments of its server."""
