"""Where a hospital's exams come from: a table, a BIDS folder, a datalist, or DICOM that is converted here."""
