"""Reading: from all segments of a server to snapshots, tables, series and health."""
