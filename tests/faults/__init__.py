"""Trials that disturb a tiny campaign at random: it is killed, stopped, damaged or has no room."""
