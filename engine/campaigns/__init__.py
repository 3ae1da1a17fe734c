"""Campaigns: plans and their costs, the jobs that run them, and the records of their results."""
