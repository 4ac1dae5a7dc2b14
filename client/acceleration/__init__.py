"""The fastest way a site's device has to compute the steps of training, for studies that ask for it."""
