"""The commands of `gliorn-client`, one module each: `add` describes it and names the function that does it."""
