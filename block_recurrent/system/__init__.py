"""What the operating system is asked for: whole files, locks, signals, and a line on a terminal."""
