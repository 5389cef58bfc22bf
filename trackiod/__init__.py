"""The daemon: one per user and data folder. Receives streams, stores them exactly once, answers about them."""
