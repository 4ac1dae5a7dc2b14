"""Phantom hospitals: synthetic heads with recurrence or radiation necrosis, scanned as several hospitals would."""
