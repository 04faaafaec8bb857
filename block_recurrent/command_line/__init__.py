"""The command `block-recurrent`: its entry point, its options, and the core's programs."""
