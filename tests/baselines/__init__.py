"""Tests of the other language models."""
