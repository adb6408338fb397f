"""Parts of the retry loop detector: its settings, its state and its rules."""
