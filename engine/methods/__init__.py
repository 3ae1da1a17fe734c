"""Methods, one small file each, found by name; `base` says what a method is and may ask for."""
