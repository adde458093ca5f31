"""Measurements: this machine's limits, training speed, decoding, preparation, and a race against other trainers."""
