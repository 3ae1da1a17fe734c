"""Features beside the table. An extra imports the core, and nothing imports an extra (`base`)."""
