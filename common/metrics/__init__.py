"""Statistics of an evaluation: what a site sends, how it adds up, and the figures with their intervals."""
