"""What people look at: the report page, its charts, and the table in the terminal."""
