"""The store: one SQLite database a project. `project` writes, `reader` reads, `digest` understands batches."""
