"""The command lines: `trackio` answers, `trackiod` runs the daemon. One file a command."""
