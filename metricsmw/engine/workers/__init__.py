"""The workers of one server: which processes they are, and what they share."""
