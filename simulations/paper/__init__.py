"""The table of the source paper: its six models on each sequence and on all three, trained on phantoms beside it."""
