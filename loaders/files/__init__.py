"""Files on disk: durable writes, untrusted folders, locks, typed JSON, and names in paths."""
