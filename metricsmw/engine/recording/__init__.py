"""Recording: requests, users and the app's own numbers, into this worker's segment."""
