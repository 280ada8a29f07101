"""The workers of one server: how they find each other, their shared files, their jobs."""
