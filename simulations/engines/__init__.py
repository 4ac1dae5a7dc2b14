"""What carries the messages of a federation on one machine: function calls, Flower's Ray runtime, or real processes.

All three run the same ServerApp and ClientApp.
"""
