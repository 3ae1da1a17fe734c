"""The grid as a whole: its plan and costs, the jobs that run it, the record of its results."""
