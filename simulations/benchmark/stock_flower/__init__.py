"""A federation as Flower's own tutorials write it, to measure beside ours; its folder is what Flower carries."""
