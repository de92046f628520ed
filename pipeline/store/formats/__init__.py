"""File formats of a shard: one contract (`base`), one file a format, one table (`table`)."""
