"""Sources of pretrained weights, found by name: a module defines `fetch` (`pretrained`)."""
