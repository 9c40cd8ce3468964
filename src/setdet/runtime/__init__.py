"""What runs a detector's network: one file an engine, all behind the Protocol in `base`."""
