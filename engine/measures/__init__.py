"""Numbers from stored predictions alone: accuracy, RI and mRI, and how sure they are. No torch."""
