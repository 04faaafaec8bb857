"""Facts that are set early in a document and asked for later: what a recurrence can remember."""
