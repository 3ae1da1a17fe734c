"""Methods beyond the benchmark's ten. Nothing outside this folder imports them."""
