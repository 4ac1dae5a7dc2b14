"""Property tests are not timed, so that a busy machine fails none of them, and draw the same cases every time."""

from hypothesis import settings

settings.register_profile("untimed", deadline=None, derandomize=True)
settings.load_profile("untimed")
