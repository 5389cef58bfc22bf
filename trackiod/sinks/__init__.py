"""Where runs go beside this host's store, so that they outlive it. One file a sink."""
