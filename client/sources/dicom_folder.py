"""Names of what lies in the folder that DICOM files are converted into."""

BIDS_FOLDER = "bids"
"""The converted exams, without identifiers."""
CHOICE_FILE = "series.tsv"
"""Which series is which sequence, with the identifiers that the DICOM files hold; for the site's eyes alone."""
