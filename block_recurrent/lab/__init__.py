"""What makes and measures the figures of the paper; the core never imports it."""
