"""What the daemon uploads: rows as files, how far, when, and the child that does it."""
