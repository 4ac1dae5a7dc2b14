"""The one open port of a federation: TLS, ten fleet calls and the hello, for admitted sites alone.

A SuperLink of Flower 1.41 serves sites, operators and its own apps on one port, and only the sites' calls are
authenticated there. It therefore listens on the loopback address, and sites reach this gateway instead.
"""
