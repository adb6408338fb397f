"""What an agent's own process imports: the usage event, and how to send it. Light on purpose."""
