"""What `rib doctor` looks at. Nothing here imports a library that may be broken, hidden or slow."""
