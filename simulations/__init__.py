"""A federation on one machine: phantom hospitals, faults, engines and the commands that run them."""
