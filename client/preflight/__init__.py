"""Whether a hospital's data are fit, before anything is prepared: checks, what they found, pictures, safe remedies."""
