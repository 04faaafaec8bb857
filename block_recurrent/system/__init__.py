"""Files, signals, devices, progress and other services of the operating system."""
