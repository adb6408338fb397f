"""What is done about incidents: one file per action, found by themselves."""
