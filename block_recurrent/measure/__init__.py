"""What is measured of the code itself: speed, memory, and whether a run survives being killed."""
