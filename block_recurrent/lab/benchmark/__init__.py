"""Timings of training and inference, in turn."""
