"""Training together against training alone and training in one place, on the same patients."""
