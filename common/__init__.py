"""What both sides of a federation must agree on: study, model, wire messages, statistics that add, errors."""
