"""Where the gain of the recurrence comes from: tables, data and pictures of the analyses."""
