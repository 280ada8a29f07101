"""The engine: private; its names may change with any release."""
