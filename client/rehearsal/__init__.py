"""The rehearsal before the first round: everything that will matter, tried, with what to do where it would fail."""
