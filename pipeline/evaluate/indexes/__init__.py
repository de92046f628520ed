"""Search indexes over embeddings: one file a kind, one table, one rule (see `table`)."""
