"""How far sets are apart: transport problems between them, and who solves them."""
