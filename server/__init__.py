"""The coordinator: rounds, aggregation, gatekeeper, checkpoints, history and report."""
