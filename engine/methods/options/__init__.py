"""Options of the benchmark's ten methods, one file each, without torch: planning imports them."""
