"""Test kits: one promise each, asked of whatever a test hands them."""
