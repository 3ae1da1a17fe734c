"""Options of the methods beyond the ten, one file each, without torch: planning imports them."""
