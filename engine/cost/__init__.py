"""What a campaign costs, found by asking for everything and computing nothing."""
