"""Meshes of devices, the sharding of arrays over them, and processes that work together."""
