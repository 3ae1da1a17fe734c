"""`make gpu`: what a first GPU can tell, in stages. `docs/gpu.md` says what each must show."""
