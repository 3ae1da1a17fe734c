"""Models in and out: evaluate, merge and export them, and write their cards; results too: publish
and audit them."""
