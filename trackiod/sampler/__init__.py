"""The sampler: a child of the daemon that samples the node, once for all ranks and runs."""
