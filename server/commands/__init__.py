"""The commands of `gliorn-server`, one module each: `add` describes it and names the function that does it."""
