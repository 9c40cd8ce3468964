"""Reading, writing and finding checkpoints."""
