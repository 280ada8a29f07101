"""The bytes of segments and of the shared minute history: layout, writing, reading."""
