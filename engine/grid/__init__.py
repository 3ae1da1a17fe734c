"""The grid as a whole: its plan, how an artefact is found or made, jobs, record."""
