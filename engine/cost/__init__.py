"""What a campaign takes: its jobs run on tensors without content, and their work is counted."""
