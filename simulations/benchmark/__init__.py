"""What is measured of speed, memory and bytes, always as ratios within one run."""
