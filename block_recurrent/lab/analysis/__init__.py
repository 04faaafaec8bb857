"""Where the gain of the recurrence comes from: computations on trained models, no files."""
