"""Bytes: what a worker's segment and the server's shared files hold, and how they are read."""
