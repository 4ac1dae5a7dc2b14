"""From NIfTI files to one array per exam: reading, head mask, crop centre, common grid, z-score."""
